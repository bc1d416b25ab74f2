//! Who registers is a user, once, as an event.

use std::time::{Duration, Instant};

use jetwright_proto::events::v1::UserCreated;
use jiff::Timestamp;
use prost::Message;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::bench::{ANN, Bench, answer};

const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";

#[tokio::test]
async fn a_registered_user_is_an_event_and_is_shown() {
    let bench = Bench::start().await;
    let service = bench.service().await;
    let traceparent = format!("00-{TRACE_ID}-b7ad6b7169203331-01");
    let response = service.post(&json!({"email": ANN}), &[("traceparent", &traceparent)]).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let [location, sequence] =
        ["location", "event-sequence"].map(|name| response.headers()[name].to_str().unwrap().to_owned());
    let user: Value = response.json().await.unwrap();
    let id = user["id"].as_str().unwrap();
    assert_eq!((location.as_str(), sequence.as_str()), (format!("/users/{id}").as_str(), "1"));
    assert_eq!(service.get(&location).await, (StatusCode::OK, user.clone()));

    let stream = bench.jetstream.get_stream("users").await.unwrap();
    let message = stream.get_raw_message(1).await.unwrap();
    let created_at: Timestamp = user["created_at"].as_str().unwrap().parse().unwrap();
    let event = UserCreated {
        user_id: id.to_owned(),
        email: ANN.to_owned(),
        created_at: created_at.as_millisecond(),
    };
    assert_eq!(message.subject.as_str(), format!("users.{id}.created"));
    assert_eq!(UserCreated::decode(message.payload).unwrap(), event);
    let header = |name: &str| message.headers.get(name).map(|value| value.as_str().to_owned());
    assert_eq!(header("Event-Type").as_deref(), Some("events.v1.UserCreated"));
    assert_eq!(header("Content-Type").as_deref(), Some("application/protobuf"));
    assert!(header("Nats-Msg-Id").is_some());
    assert!(header("traceparent").unwrap().contains(TRACE_ID), "{:?}", message.headers);

    bench.in_directory(id).await;
    service.process.await_log("updated projection", crate::bench::SOON).await;
    let lines = service.lines_of_trace(TRACE_ID);
    let messages: Vec<_> = lines.iter().filter_map(|line| line["message"].as_str()).collect();
    for message in ["registered user", "POST answered", "updated projection"] {
        assert!(messages.contains(&message), "{message:?} not in {messages:?}");
    }
}

#[tokio::test]
async fn one_key_registers_one_user_however_often_and_at_once() {
    let bench = Bench::start().await;
    let service = bench.service().await;
    let body = json!({"email": ANN});
    let posts =
        (0..8).map(|_| async { answer(service.post(&body, &[("idempotency-key", "ann-1")]).await).await });
    let answers = futures::future::join_all(posts).await;
    let users: Vec<_> = answers.iter().map(|(_, user)| user).collect();
    assert!(users.iter().all(|user| *user == users[0]), "{answers:?}");
    let created = answers.iter().filter(|(status, _)| *status == StatusCode::CREATED).count();
    let repeated = answers.iter().filter(|(status, _)| *status == StatusCode::OK).count();
    assert_eq!((created, repeated, bench.events().await), (1, 7, 1));

    let other = json!({"email": "bob@example.org"});
    let (status, problem) = answer(service.post(&other, &[("idempotency-key", "ann-1")]).await).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(problem["errors"][0]["field"], "Idempotency-Key");
    assert_eq!(bench.events().await, 1);
}

#[tokio::test]
async fn without_a_key_everybody_is_somebody_else() {
    let bench = Bench::start().await;
    let service = bench.service().await;
    assert_ne!(service.register(ANN).await["id"], service.register(ANN).await["id"]);
    assert_eq!(bench.events().await, 2);
}

#[tokio::test]
async fn wrong_input_is_told_by_its_field_and_stores_nothing() {
    let bench = Bench::start().await;
    let service = bench.service().await;
    let long = format!("{{\"email\": \"{}\"}}", "a".repeat(70_000));
    for (content_type, body, status, field) in [
        ("application/json", r#"{"email": "ann"}"#, 422, Some("email")),
        ("application/json", r#"{"email": 7}"#, 422, Some("email")),
        ("application/json", "{}", 422, Some("email")),
        ("application/json", r#"{"email": "ann@example.org", "admin": true}"#, 422, Some("admin")),
        ("application/json", r#"{"email": "#, 400, None),
        ("application/json", &long, 413, None),
        ("text/plain", r#"{"email": "ann@example.org"}"#, 415, None),
    ] {
        let response = service.post_text(content_type, body.to_owned()).await;
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{body:.50}");
        let (answered, problem) = answer(response).await;
        assert_eq!(
            (answered.as_u16(), problem["errors"][0]["field"].as_str()),
            (status, field),
            "{body:.50}"
        );
    }
    let unknown = "00000000-0000-0000-0000-000000000001";
    for path in [&format!("/users/{unknown}"), "/users/ann", "/nowhere"] {
        assert_eq!(service.get(path).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    assert_eq!(service.get("/users").await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(bench.events().await, 0);
}

#[tokio::test]
async fn while_nats_is_away_callers_are_told_soon_to_come_again_and_may() {
    let bench = Bench::start().await;
    let service = bench.service().await;
    service.await_ready().await;
    bench.nats.stop().await;
    let (body, key) = (json!({"email": ANN}), [("idempotency-key", "ann-1")]);
    let asked = Instant::now();
    let response = service.post(&body, &key).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key("retry-after"));
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    let asked = Instant::now();
    let (status, _) = service.show("00000000-0000-0000-0000-000000000001").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert_eq!(service.ready().await.0, StatusCode::SERVICE_UNAVAILABLE);

    bench.nats.start_again().await;
    service.await_ready().await;
    let response = service.post(&body, &key).await;
    assert!(response.status().is_success(), "{response:?}");
    assert_eq!(bench.events().await, 1);
}
