//! The directory follows the events, and is never asked for more than it knows.

use jetwright_testing::await_until;
use reqwest::StatusCode;
use serde_json::json;

use crate::bench::{ANN, Bench, SOON};

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
    assert_eq!(entry, json!({"email": ANN, "created_at": user["created_at"], "position": 1}));
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
        let handled = service.process.log().matches("in the directory").count();
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
