//! The connection and JetStream's API against real servers.
#![allow(clippy::unwrap_used, reason = "all of this target is tests, their helpers too")]

mod bucket;

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use jetwright_nats::{
    Api, ApiError, Connection, ConnectionConfig, Credentials, NoReply, Violation, parse_addresses,
};
use jetwright_testing::{Folder, MountedSecret, NatsServer, RawClient, await_until};
use serde_json::{Value, json};
use tokio::time::timeout;

/// How long a test waits for what should take far less than a second.
const SOON: Duration = Duration::from_secs(15);
/// How long it waits for a reply that does not come.
const A_WHILE: Duration = Duration::from_millis(300);

fn config(nats: &NatsServer) -> ConnectionConfig {
    ConnectionConfig {
        name: "tests".to_owned(),
        servers: parse_addresses(nats.url()).collect::<Result<_, _>>().unwrap(),
        credentials: None,
        credentials_setting: "--credentials",
        domain: None,
    }
}

/// A connection that is established.
async fn connect(config: ConnectionConfig) -> Connection {
    let connection = Connection::open(config).await.unwrap();
    timeout(SOON, connection.state().wait_for(|state| state.connected)).await.unwrap().unwrap();
    connection
}

async fn ask(connection: &Connection, subject: &str) -> Result<Bytes, NoReply> {
    connection.request_once(subject.to_owned(), Bytes::new(), A_WHILE).await
}

#[tokio::test]
async fn a_request_ends_with_its_reply_or_with_the_reason_why_there_is_none() {
    let nats = NatsServer::builder()
        .config(
            "authorization: { users: [{user: admin, password: admin}, \
             {user: u, password: p, permissions: {publish: {deny: [denied]}}}] }",
        )
        .start()
        .await;
    let secret = MountedSecret::new(&[("username", "u"), ("password", "p")]);
    let credentials = Credentials::open("--credentials", secret.path()).unwrap();
    let connection = connect(ConnectionConfig { credentials: Some(credentials), ..config(&nats) }).await;
    assert!(matches!(ask(&connection, "nobody").await, Err(NoReply::NoResponders)));
    let denied = ask(&connection, "denied").await;
    assert!(matches!(denied, Err(NoReply::Forbidden(Violation::Publish(to))) if to == "denied"));
    let client = connection.client();
    let _silent = client.subscribe("silent").await.unwrap();
    let mut echoing = client.subscribe("echo").await.unwrap();
    tokio::spawn(async move {
        while let Some(request) = echoing.next().await {
            client.publish(request.reply.unwrap(), "here".into()).await.unwrap();
        }
    });
    assert_eq!(ask(&connection, "echo").await.unwrap(), Bytes::from("here"));
    assert!(matches!(ask(&connection, "silent").await, Err(NoReply::Silence)));
    nats.stop().await;
    timeout(SOON, connection.state().wait_for(|state| !state.connected)).await.unwrap().unwrap();
    assert!(connection.state().borrow().disconnected_for().is_some());
    assert!(matches!(ask(&connection, "echo").await, Err(NoReply::NotConnected)));
    nats.start_again().await;
    timeout(SOON, connection.state().wait_for(|state| state.connected)).await.unwrap().unwrap();
    assert!(matches!(ask(&connection, "nobody").await, Err(NoReply::NoResponders)));
}

#[tokio::test]
async fn the_api_reaches_the_jetstream_of_its_domain_alone() {
    let store = Folder::new("domain");
    let domain = format!("jetstream: {{ store_dir: {:?}, domain: hub }}", store.path());
    let nats = NatsServer::builder().config(&domain).start().await;
    let of = async |domain: &str| {
        let connection = connect(ConnectionConfig { domain: Some(domain.to_owned()), ..config(&nats) }).await;
        Api::new(&connection, SOON, |_, _| {})
    };
    let (hub, other) = (of("hub").await, of("spoke").await);
    let stream = json!({"name": "orders", "subjects": ["orders.*"], "num_replicas": 1});
    let created: Value = hub.create_stream("orders", &stream).await.unwrap();
    let found: Option<Value> = hub.stream_info("orders").await.unwrap();
    assert_eq!(found.unwrap()["config"], created["config"]);
    let consumer = json!({"durable_name": "billing", "ack_policy": "explicit"});
    let _: Value = hub.create_consumer("orders", "billing", &consumer).await.unwrap();
    let info: Option<Value> = hub.consumer_info("orders", "billing").await.unwrap();
    assert_eq!(info.unwrap()["name"], "billing");
    let absent: Option<Value> = hub.consumer_info("none", "billing").await.unwrap();
    assert_eq!((absent, hub.delete_consumer("orders", "none").await.unwrap()), (None, false));
    let elsewhere = other.stream_info::<Value>("orders").await.unwrap_err();
    assert!(
        matches!(&elsewhere, ApiError::Unanswered { why, .. } if why.contains("JetStream is unavailable"))
    );
    let streams = hub.list_streams::<Value>(0).await.unwrap();
    assert_eq!((streams.items.len(), streams.limit, streams.total), (1, 256, 1));
    let consumers = hub.list_consumers::<Value>("orders", 0).await.unwrap();
    assert_eq!((consumers.items[0]["name"].as_str(), consumers.total), (Some("billing"), 1));
    let beyond = hub.list_consumers::<Value>("orders", 1).await.unwrap();
    assert_eq!((beyond.items.len(), beyond.total), (0, 1));
    assert_eq!(
        [hub.delete_stream("orders").await.unwrap(), hub.delete_stream("orders").await.unwrap()],
        [true, false]
    );
}

#[tokio::test]
async fn a_client_that_ends_for_good_is_replaced_and_requests_go_on() {
    let nats = NatsServer::start().await;
    let connection = connect(config(&nats)).await;
    let mut ending = connection.client().subscribe("poison").await.unwrap();
    connection.client().flush().await.unwrap();
    let headers = b"NATS/1.0\r\nNote: a\rb\r\n\r\n";
    RawClient::connect(nats.url()).await.publish("poison", headers, b"").await;
    timeout(SOON, connection.link().wait_for(|link| link.generation == 1 && link.connected))
        .await
        .unwrap()
        .unwrap();
    assert!(ending.next().await.is_none());
    let info: Option<Value> = Api::new(&connection, SOON, |_, _| {}).stream_info("none").await.unwrap();
    assert_eq!((info, connection.link().borrow().epoch), (None, 2));
}

#[tokio::test]
async fn messages_that_come_faster_than_they_are_read_are_noticed() {
    let nats = NatsServer::start().await;
    let connection = connect(config(&nats)).await;
    let _unread = connection.client().subscribe("flood").await.unwrap();
    connection.client().flush().await.unwrap();
    let publisher = nats.client().await;
    let flood = async {
        loop {
            for _ in 0..10_000 {
                publisher.publish("flood", Bytes::new()).await.unwrap();
            }
            publisher.flush().await.unwrap();
        }
    };
    tokio::select! {
        () = connection.slow_consumer().notified() => {}
        () = flood => {}
        () = tokio::time::sleep(SOON) => panic!("no notice"),
    }
    await_until("the connection", SOON, async || {
        ask(&connection, "nobody")
            .await
            .is_err_and(|error| matches!(error, NoReply::NoResponders))
            .then_some(())
            .ok_or("no answer")
    })
    .await;
}
