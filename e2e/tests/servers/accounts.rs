//! NATS with the users that `charts/shop/nats-users.yaml` asks for, and what these may do.

use std::{collections::BTreeMap, time::Duration};

use async_nats::{
    Client, ConnectOptions, Event, StatusCode,
    jetstream::{kv, stream::Config},
};
use jetwright_crds::dead_letter;
use jetwright_e2e::control_plane;
use jetwright_testing::{Namespace, NatsServer};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    chart::Chart,
    shop::{NOBODY, SOON, Shop},
};

/// Who connects without credentials, as tests and their operators do: may do everything. The services' pods do not.
const TESTER: &str = "tester";
/// Who consumes, and has no other rights.
const CONSUMER: &str = "mailer";

/// Makes the Secrets of the shop's NATS users in a namespace, and starts a server that knows these.
pub async fn start_nats(namespace: &Namespace<'_>) -> NatsServer {
    let name = namespace.name();
    let users = json!({
        "users": {"namespace": name},
        "orders": {"namespace": name},
        CONSUMER: {"namespace": name, "consume": {"users": ["mails"]}},
        TESTER: {"namespace": name, "publish": [">"], "subscribe": [">"]},
    });
    let values = json!({"nats": {"bundled": {"enabled": true, "users": users}}});
    Chart::nats_users().apply(namespace, values).await;
    let secrets: Api<Secret> = namespace.api();
    let config =
        secrets.get("jetwright-nats-config").await.unwrap().data.unwrap().remove("nats.conf").unwrap();
    let config = String::from_utf8(config.0).unwrap();
    // What comes before is where it listens and stores, which is another matter on this machine.
    let (_, accounts) = config.split_once("system_account:").unwrap();
    NatsServer::builder().config(&format!("system_account:{accounts}\nno_auth_user: {TESTER}")).start().await
}

/// A client that is the user of a Secret, and what the server says that it may not do.
async fn client_of(
    namespace: &Namespace<'_>,
    nats: &NatsServer,
    secret: &str,
) -> (Client, mpsc::UnboundedReceiver<String>) {
    let secrets: Api<Secret> = namespace.api();
    let keys = secrets.get(secret).await.unwrap().data.unwrap();
    let value = |key: &str| String::from_utf8(keys[key].0.clone()).unwrap();
    let (told, refusals) = mpsc::unbounded_channel();
    let options = ConnectOptions::with_user_and_password(value("username"), value("password"))
        .custom_inbox_prefix(value("inbox-prefix"))
        .event_callback(move |event| {
            if let Event::ServerError(error) = event {
                let _ = told.send(error.to_string());
            }
            std::future::ready(())
        });
    (nats.client_with(options).await, refusals)
}

/// Asserts that the user of a Secret may publish to none of these subjects, nor listen to orders past JetStream.
async fn assert_refused(
    namespace: &Namespace<'_>,
    nats: &NatsServer,
    secret: &str,
    subjects: &[&'static str],
) {
    let (client, mut refusals) = client_of(namespace, nats, secret).await;
    for subject in subjects {
        client.publish(*subject, "".into()).await.unwrap();
        let refused = timeout(SOON, refusals.recv()).await.unwrap().unwrap();
        assert!(refused.contains(&format!("Publish to \"{subject}\"")), "{secret}: {refused}");
    }
    let _listening = client.subscribe("orders.>").await.unwrap();
    let refused = timeout(SOON, refusals.recv()).await.unwrap().unwrap();
    assert!(refused.contains("Subscription to \"orders.>\""), "{secret}: {refused}");
}

#[tokio::test]
async fn each_service_is_a_nats_user_of_its_own_and_needs_no_more_than_this_one_may() {
    let connected = [("user-directory", "users"), ("order-fulfilment", "orders")];
    needs_no_more(&Shop::open().await, &connected).await;
    let watching = [connected[0], connected[1], ("order-fulfilment watches", "orders")];
    needs_no_more(&Shop::with_order(Duration::ZERO).await, &watching).await;
}

/// Everything that the services do, over these connections, as these users.
async fn needs_no_more(shop: &Shop, connected: &[(&str, &str)]) {
    let user = shop.register("ann@example.org").await;
    // Whom no projection knows is looked for in the stream.
    assert_eq!(shop.user(NOBODY).await.0, 404);
    for (user, sku, end) in
        [(&*user, "mug", "confirmed"), (&user, "raffle-ticket", "rejected"), (NOBODY, "mug", "rejected")]
    {
        let order = shop.place(user, sku, 1).await;
        assert_eq!(shop.ended(&order).await["state"], end);
    }
    for (stream, consumer) in [
        ("users", "user-directory"),
        ("users", "order-users"),
        ("orders", "order-fulfilment"),
        ("orders", "order-compensation"),
    ] {
        shop.await_handled(stream, consumer).await;
    }
    let connections: Value = shop.nats.monitor("/connz?auth=true").await.unwrap();
    let connections = connections["connections"].as_array().unwrap().iter();
    let users: BTreeMap<_, _> = connections
        .filter(|connection| connection["authorized_user"] != TESTER)
        .map(|connection| (connection["name"].as_str(), connection["authorized_user"].as_str()))
        .collect();
    assert_eq!(users, connected.iter().map(|(name, user)| (Some(*name), Some(*user))).collect());
    let log = shop.nats.process().log();
    assert!(!log.contains(" Violation "), "{log}");
}

#[tokio::test]
async fn a_service_may_not_do_what_is_anothers_or_the_operators() {
    let namespace = control_plane().await.namespace("permissions").await;
    let nats = start_nats(&namespace).await;
    let beyond = [
        (
            "nats-users",
            [
                "orders.x.placed",
                "$JS.API.STREAM.INFO.users",
                "$KV.inventory.mug",
                "$JS.API.STREAM.MSG.GET.orders",
                "$JS.API.CONSUMER.MSG.NEXT.users.order-users",
                "$JS.ACK.users.order-users.1.1.1.1.0",
                "$JS.API.STREAM.DELETE.users",
                "$JS.API.DIRECT.GET.orders",
                "jetwright.dlq.users.order-users.1.1",
                "$KV.jetwright.member.shop.x",
                "$JS.API.STREAM.MSG.GET.KV_jetwright",
                "$JS.API.CONSUMER.CREATE.KV_jetwright.x",
                "$JS.API.CONSUMER.MSG.NEXT.orders.order-fulfilment-p0",
                "$KV.jetwright.held.orders.order-fulfilment.0",
            ],
        ),
        (
            "nats-orders",
            [
                "users.x.created",
                "$JS.API.DIRECT.GET.KV_user-directory.$KV.user-directory.x",
                "$KV.user-directory.x",
                "$JS.API.STREAM.MSG.GET.KV_user-directory",
                "$JS.API.CONSUMER.MSG.NEXT.users.user-directory",
                "$JS.ACK.users.user-directory.1.1.1.1.0",
                "$JS.API.CONSUMER.CREATE.orders.another",
                "$JS.API.CONSUMER.MSG.NEXT.orders.order-fulfilment-p8",
                "$KV.jetwright.map.orders.order-fulfilment",
                "$KV.jetwright.member.another.x",
                "$KV.jetwright.held.orders.order-compensation.0",
                "$JS.API.STREAM.MSG.DELETE.KV_jetwright",
                "$JS.API.DIRECT.GET.orders-dlq",
                "jetwright.dlq.users.user-directory.1.1",
            ],
        ),
    ];
    for (secret, subjects) in beyond {
        assert_refused(&namespace, &nats, secret, &subjects).await;
    }
    // By this the test above would know.
    assert!(nats.process().log().contains(" Violation "));
}

#[tokio::test]
async fn who_consumes_from_a_stream_may_fetch_its_messages_and_those_of_no_other() {
    let namespace = control_plane().await.namespace("permissions").await;
    let nats = start_nats(&namespace).await;
    let jetstream = nats.jetstream().await;
    let users = Config { name: "users".into(), subjects: vec!["users.*.*".into()], ..Config::default() };
    jetstream.create_stream(users).await.unwrap();
    jetstream.publish("users.x.created", "x".into()).await.unwrap().await.unwrap();
    let secret = format!("nats-{CONSUMER}");
    let (client, _refusals) = client_of(&namespace, &nats, &secret).await;
    let first = client.request("$JS.API.STREAM.MSG.GET.users", r#"{"seq": 1}"#.into()).await.unwrap();
    let first: Value = serde_json::from_slice(&first.payload).unwrap();
    assert_eq!(first["message"]["subject"], "users.x.created", "{first}");
    let beyond = [
        "$JS.API.STREAM.MSG.GET.orders",
        "$JS.API.STREAM.MSG.DELETE.users",
        "$JS.API.STREAM.INFO.users",
        "$JS.API.DIRECT.GET.users",
        "$JS.API.CONSUMER.INFO.users.user-directory",
        "$JS.ACK.users.user-directory.1.1.1.1.0",
        "users.x.created",
    ];
    assert_refused(&namespace, &nats, &secret, &beyond).await;
}

#[tokio::test]
async fn the_operator_may_not_publish_fetch_purge_or_copy_events() {
    let namespace = control_plane().await.namespace("permissions").await;
    let nats = start_nats(&namespace).await;
    let beyond = [
        "orders.x.placed",
        "$KV.inventory.mug",
        "$KV.jetwright-verify.x",
        "$JS.API.STREAM.MSG.GET.orders",
        "$JS.API.STREAM.MSG.DELETE.orders",
        "$JS.API.STREAM.PURGE.KV_jetwright",
        "$JS.FC.orders.x.x",
        "$JS.API.DIRECT.GET.orders",
        "$JS.API.STREAM.PURGE.orders",
        "$JS.API.STREAM.SNAPSHOT.orders",
        "$JS.API.STREAM.RESTORE.orders",
        "$JS.API.CONSUMER.MSG.NEXT.orders.order-fulfilment",
        "$JS.ACK.orders.order-fulfilment.1.1.1.1.0",
        "jetwright.dlq.orders.order-fulfilment.1.1",
    ];
    assert_refused(&namespace, &nats, "jetwright-nats-operator", &beyond).await;
}

#[tokio::test]
async fn the_operator_may_write_and_watch_the_bucket_in_which_partitions_are_shared_out_and_publish_nothing_else()
 {
    let namespace = control_plane().await.namespace("permissions").await;
    let nats = start_nats(&namespace).await;
    let jetstream = nats.jetstream().await;
    let config = kv::Config { bucket: "jetwright".into(), ..Default::default() };
    jetstream.create_key_value(config).await.unwrap();
    let (client, mut refusals) = client_of(&namespace, &nats, "jetwright-nats-operator").await;
    let stored = client.request("$KV.jetwright.operator", "{}".into()).await.unwrap();
    let stored: Value = serde_json::from_slice(&stored.payload).unwrap();
    assert_eq!(stored["stream"], "KV_jetwright", "{stored}");
    let query = r#"{"last_by_subj": "$KV.jetwright.operator"}"#;
    let read = client.request("$JS.API.STREAM.MSG.GET.KV_jetwright", query.into()).await.unwrap();
    let read: Value = serde_json::from_slice(&read.payload).unwrap();
    assert_eq!(read["message"]["subject"], "$KV.jetwright.operator", "{read}");
    client.publish("$JS.FC.KV_jetwright.x.y", "".into()).await.unwrap();
    client.flush().await.unwrap();
    assert!(refusals.try_recv().is_err());
}

#[tokio::test]
async fn a_service_may_keep_the_dead_letters_of_its_own_consumers_and_read_its_streams_directly() {
    let shop = Shop::open().await;
    let own = [
        ("nats-users", "users", &["user-directory"][..], &["users", "KV_user-directory"][..]),
        (
            "nats-orders",
            "orders",
            &["order-fulfilment", "order-compensation"],
            &["orders", "payments", "users", "KV_inventory"],
        ),
        ("nats-orders", "users", &["order-users"], &["KV_order-users"]),
    ];
    for (secret, stream, consumers, streams) in own {
        let (client, mut refusals) = client_of(&shop.namespace, &shop.nats, secret).await;
        for consumer in consumers {
            let subject = dead_letter::subject(&dead_letter::prefix(stream, consumer), 1, 1);
            let stored = client.request(subject, "x".into()).await.unwrap();
            let stored: Value = serde_json::from_slice(&stored.payload).unwrap();
            assert_eq!(stored["stream"], json!(dead_letter::stream(stream)), "{stored}");
        }
        for stream in streams {
            let nothing = Some(StatusCode::NOT_FOUND);
            let first = client.request(format!("$JS.API.DIRECT.GET.{stream}"), r#"{"seq": 1}"#.into()).await;
            let first = first.unwrap().status;
            assert!(first.is_none() || first == nothing, "{stream}: {first:?}");
            let last = format!("$JS.API.DIRECT.GET.{stream}.of.this.name");
            assert_eq!(client.request(last, "".into()).await.unwrap().status, nothing, "{stream}");
        }
        assert!(refusals.try_recv().is_err());
    }
}
