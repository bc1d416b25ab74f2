//! The directory follows the events, and is never asked for more than it knows.

use jetwright_proto::events::v1::UserCreated;
use jetwright_testing::await_until;
use jiff::Timestamp;
use prost::Message;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use crate::bench::{ANN, Bench, SOON, answer};

#[tokio::test]
async fn a_user_is_shown_before_the_directory_knows_of_it() {
    let bench = Bench::without_consumer().await;
    let service = bench.service().await;
    let user = service.register(ANN).await;
    let id = user["id"].as_str().unwrap();
    assert!(bench.entry(id).await.is_err());
    assert_eq!(service.show(id).await, (StatusCode::OK, user.clone()));

    bench.create_consumer().await;
    let (entry, _) = bench.in_directory(id).await;
    let stored = bench.jetstream.get_stream("users").await.unwrap().get_raw_message(1).await.unwrap().time;
    let stored = Timestamp::from_nanosecond(stored.unix_timestamp_nanos()).unwrap();
    let contact = json!({"email": ANN, "created_at": user["created_at"]});
    assert_eq!(entry, json!({"time": stored, "sequence": 1, "entry": contact}));
}

#[tokio::test]
async fn a_user_in_the_directory_is_shown_from_there() {
    let bench = Bench::start().await;
    let service = bench.service().await;
    let user = service.register(ANN).await;
    let id = user["id"].as_str().unwrap();
    bench.in_directory(id).await;
    bench.jetstream.get_stream("users").await.unwrap().purge().await.unwrap();
    assert_eq!(service.show(id).await, (StatusCode::OK, user.clone()));
}

#[tokio::test]
async fn without_its_bucket_users_are_shown_from_the_stream() {
    let bench = Bench::without_consumer().await;
    bench.jetstream.delete_stream("KV_user-directory").await.unwrap();
    let service = bench.service().await;
    let user = service.register(ANN).await;
    assert_eq!(service.show(user["id"].as_str().unwrap()).await, (StatusCode::OK, user.clone()));
}

#[tokio::test]
async fn an_event_that_is_delivered_again_changes_nothing() {
    let bench = Bench::start().await;
    let service = bench.service().await;
    let user = service.register(ANN).await;
    let id = user["id"].as_str().unwrap();
    let before = bench.in_directory(id).await;
    bench.delete_consumer().await;
    bench.create_consumer().await;
    await_until("the event to be handled again", SOON, async || {
        let handled = service.process.log().matches("updated projection").count();
        if handled >= 2 { Ok(()) } else { Err(format!("handled {handled} times")) }
    })
    .await;
    assert_eq!(bench.entry(id).await, Ok(before));
}

#[tokio::test]
async fn what_is_no_event_does_not_keep_later_users_out() {
    let bench = Bench::start().await;
    let service = bench.service().await;
    bench.jetstream.publish("users.x.created", "not protobuf".into()).await.unwrap().await.unwrap();
    let user = service.register(ANN).await;
    bench.in_directory(user["id"].as_str().unwrap()).await;
}

/// Stores an event as another writer would.
async fn publish(bench: &Bench, subject: &str, event: &UserCreated) {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Event-Type", "events.v1.UserCreated");
    let event = event.encode_to_vec().into();
    bench.jetstream.publish_with_headers(subject.to_owned(), headers, event).await.unwrap().await.unwrap();
}

#[tokio::test]
async fn a_directory_follows_a_stream_that_was_made_again() {
    let bench = Bench::start().await;
    let service = bench.service().await;
    service.register("bob@example.org").await;
    let id = service.register(ANN).await["id"].as_str().unwrap().to_owned();
    assert_eq!(bench.in_directory(&id).await.0["sequence"], 2);
    bench.make_stream_again().await;
    let moved = UserCreated { user_id: id.clone(), email: "ann@example.com".to_owned(), created_at: 1 };
    publish(&bench, &format!("users.{id}.created"), &moved).await;
    bench.create_consumer().await;
    await_until("the user as the new stream has it", SOON, async || match bench.entry(&id).await {
        Ok((entry, _)) if entry["entry"]["email"] == moved.email => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

#[tokio::test]
async fn an_event_under_the_id_of_another_user_is_not_kept() {
    let bench = Bench::start().await;
    let service = bench.service().await;
    let (id, other) = ("0193f0a6-7d2b-7c3e-8a4f-0123456789ab", "0193f0a6-7d2b-7c3e-8a4f-ba9876543210");
    let event =
        |user_id: &str| UserCreated { user_id: user_id.to_owned(), email: ANN.to_owned(), created_at: 1 };
    publish(&bench, &format!("users.{other}.created"), &event(id)).await;
    let loud = id.to_uppercase();
    publish(&bench, &format!("users.{loud}.created"), &event(&loud)).await;
    let user = service.register(ANN).await;
    bench.in_directory(user["id"].as_str().unwrap()).await;
    await_until("both to be given up", SOON, async || {
        let given_up = service.process.log().matches("gave up event").count();
        if given_up == 2 { Ok(()) } else { Err(given_up) }
    })
    .await;
    for id in [id, other, &loud] {
        assert!(bench.entry(id).await.is_err(), "{id}");
    }
}

#[tokio::test]
async fn the_stream_of_users_has_the_name_that_the_binding_says() {
    let bench = Bench::with_stream("people").await;
    let service = bench.service().await;
    let user = service.register(ANN).await;
    let id = user["id"].as_str().unwrap();
    assert_eq!(service.show(id).await, (StatusCode::OK, user.clone()));
    bench.create_consumer().await;
    bench.in_directory(id).await;
}

#[tokio::test]
async fn who_wrote_is_shown_what_was_written_from_the_directory_or_where_that_is_behind_from_the_stream() {
    let bench = Bench::start().await;
    let service = bench.service().await;
    let response = service.post(&json!({"email": ANN}), &[]).await;
    let written = sequence(&response);
    let user: Value = response.json().await.unwrap();
    let id = user["id"].as_str().unwrap();
    let shown = service.show_at_least(id, &written).await;
    assert_eq!((sequence(&shown), shown.json::<Value>().await.unwrap()), (written, user.clone()));

    // The directory will not hear of what follows, and it is asked for.
    bench.in_directory(id).await;
    bench.delete_consumer().await;
    let again = UserCreated { user_id: id.to_owned(), email: ANN.to_owned(), created_at: 1 };
    publish(&bench, &format!("users.{id}.created"), &again).await;
    for (minimum, shown) in [("0", "1"), ("1", "1"), ("2", "2")] {
        let response = service.show_at_least(id, minimum).await;
        assert_eq!((response.status(), sequence(&response).as_str()), (StatusCode::OK, shown), "{minimum}");
        assert_eq!(response.json::<Value>().await.unwrap(), user, "{minimum}");
    }
    for (wrong, why) in
        [("3", "the user's newest event is 2"), ("two", "must be the Event-Sequence of a response")]
    {
        let (status, problem) = answer(service.show_at_least(id, wrong).await).await;
        let expected = json!([{"field": "Minimum-Event-Sequence", "detail": why}]);
        assert_eq!((status, &problem["errors"]), (StatusCode::UNPROCESSABLE_ENTITY, &expected));
    }
    let nobody = service.show_at_least("0193f0a6-7d2b-7c3e-8a4f-0123456789ab", "3").await;
    assert_eq!(nobody.status(), StatusCode::NOT_FOUND);
}

fn sequence(response: &Response) -> String {
    response.headers()["event-sequence"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn one_command_rebuilds_the_directory() {
    let bench = Bench::without_consumer().await;
    let service = bench.service().await;
    let user = service.register(ANN).await;
    let id = user["id"].as_str().unwrap();
    let ghost = "0193f0a6-7d2b-7c3e-8a4f-0123456789ab";
    for (id, entry) in [(id, "{}"), (ghost, "{}")] {
        let key = format!("$KV.user-directory.{id}");
        bench.jetstream.publish(key, entry.into()).await.unwrap().await.unwrap();
    }
    let rebuild = bench.program().arg("rebuild").start();
    assert_eq!(rebuild.wait_exit(SOON).await.code(), Some(0), "{}", rebuild.log());
    let line = rebuild.await_log("rebuilt projection", SOON).await;
    let line: Value = serde_json::from_str(&line).unwrap();
    let counts = ["events", "rebuilt", "removed"].map(|name| line[name].as_u64().unwrap());
    assert_eq!(counts, [1, 1, 1], "{line}");
    let (entry, _) = bench.in_directory(id).await;
    assert_eq!(entry["entry"], json!({"email": ANN, "created_at": user["created_at"]}));
    assert!(bench.is_deleted(ghost).await);
}
