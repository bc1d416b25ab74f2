//! What breaks at night, and what a user of the shop notices of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_nats::HeaderMap;
use futures::{StreamExt, future::join_all, stream};
use jetwright_crds::EventStream;
use jetwright_proto::events::v1::{OrderConfirmed, OrderRejectedNotification, PaymentAuthorized};
use jetwright_testing::await_until;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Service},
};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::{Value, json};

use crate::{
    shop::{SOON, Shop, handled, log, metric, order, placed},
    stream::{Stored, await_event, stored},
};

/// Requires that every one of these orders is confirmed, and that each has one end, and one payment that the gateway knows.
async fn each_is_confirmed_once(shop: &Shop, ids: &[String]) {
    for id in ids {
        shop.confirmed(id).await;
    }
    let (orders, payments) =
        tokio::join!(stored(&shop.jetstream, "orders", ""), stored(&shop.jetstream, "payments", ""));
    let mut found: Vec<_> = orders.iter().chain(&payments).map(|message| message.subject.clone()).collect();
    let mut expected: Vec<_> = ids
        .iter()
        .flat_map(|id| {
            let payment = format!("payments.{id}.authorized");
            [format!("orders.{id}.placed"), format!("orders.{id}.confirmed"), payment]
        })
        .collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    let mut authorizations = BTreeSet::new();
    for end in orders.iter().filter(|message| message.subject.ends_with(".confirmed")) {
        let end: OrderConfirmed = end.event();
        authorizations.insert((end.order_id, end.authorization_id));
    }
    for paid in payments.iter().map(Stored::event::<PaymentAuthorized>) {
        let decision = shop.payments.decision(&paid.order_id).await;
        assert_eq!(
            (&decision["status"], &decision["id"]),
            (&json!("authorized"), &json!(paid.authorization_id))
        );
        assert!(authorizations.contains(&(paid.order_id, paid.authorization_id)), "{authorizations:?}");
    }
}

#[tokio::test]
async fn users_who_register_while_the_order_service_is_stopped_can_order_once_it_is_back() {
    let shop = Shop::open().await;
    shop.orders.stop().await;
    let mut users = Vec::new();
    for number in 0..10 {
        users.push(shop.register(&format!("user{number}@example.org")).await);
    }
    assert_eq!(shop.waiting("users", "order-users").await, (10, 0));
    shop.orders.start_again().await;
    shop.await_handled("users", "order-users").await;
    let known = shop.jetstream.get_key_value("order-users").await.unwrap();
    for user in &users {
        assert!(known.get(user).await.unwrap().is_some(), "the order service has not learned of {user}");
    }
    let ids = join_all(users.iter().map(|user| shop.place(user, "mug", 1))).await;
    each_is_confirmed_once(&shop, &ids).await;
    shop.await_stock("mug", 990).await;
}

/// Kills the order service, with payments that are decided at once and answered late, so that many decisions are made and not known then.
async fn killed_in_the_middle_of_fifty_orders(shop: &Shop) {
    let user = shop.register("ann@example.org").await;
    // Also where the first order takes long.
    let first = shop.place(&user, "mug", 1).await;
    shop.confirmed(&first).await;
    let mut ends = shop.nats.client().await.subscribe("orders.*.confirmed").await.unwrap();
    let placing = stream::iter(0..50)
        .map(|number| {
            let user = &user;
            async move { shop.place_patiently(user, "mug", &format!("order-{number}")).await }
        })
        .buffer_unordered(8)
        .collect::<Vec<_>>();
    let trouble = async {
        for _ in 0..10 {
            tokio::time::timeout(SOON, ends.next()).await.unwrap();
        }
        shop.orders.process().kill();
        let confirmed = stored(&shop.jetstream, "orders", "").await;
        let confirmed = confirmed.iter().filter(|message| message.subject.ends_with(".confirmed")).count();
        assert!(confirmed < 50, "it was killed too late to show anything");
        let (_, unacknowledged) = shop.waiting("orders", "order-fulfilment").await;
        assert!(unacknowledged > 0, "nothing was being handled, so the kill shows nothing");
        shop.orders.start_again().await;
    };
    let (mut ids, ()) = tokio::join!(placing, trouble);
    ids.push(first);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 51);
    each_is_confirmed_once(shop, &ids).await;
    shop.await_handled("orders", "order-fulfilment").await;
    shop.await_stock("mug", 949).await;
}

#[tokio::test]
async fn an_order_service_killed_in_the_middle_of_fifty_orders_confirms_each_exactly_once() {
    let shop = Shop::with_payments_that_take(Duration::from_millis(150)).await;
    killed_in_the_middle_of_fifty_orders(&shop).await;
}

#[tokio::test]
async fn with_order_one_killed_in_the_middle_of_fifty_confirms_each_exactly_once_too() {
    let shop = Shop::with_order(Duration::from_millis(150)).await;
    killed_in_the_middle_of_fifty_orders(&shop).await;
}

#[tokio::test]
async fn orders_go_on_when_nats_is_restarted_under_the_running_shop() {
    let shop = Shop::open().await;
    let user = shop.register("ann@example.org").await;
    let mut ids = vec![shop.place(&user, "mug", 1).await];
    shop.confirmed(&ids[0]).await;
    let (users, orders) = (shop.users.process().pid(), shop.orders.process().pid());

    shop.nats.stop().await;
    let placing = join_all((0..10).map(|number| {
        let (shop, user) = (&shop, &user);
        async move { shop.place_patiently(user, "mug", &format!("order-{number}")).await }
    }));
    let (more, ()) = tokio::join!(placing, shop.nats.start_again());
    ids.extend(more);
    each_is_confirmed_once(&shop, &ids).await;
    shop.await_stock("mug", 989).await;
    // The notifications were kept in memory: the operator makes their stream again, and users are told again.
    await_until("the notifications are back", SOON, || shop.jetstream.get_stream("notifications")).await;
    let id = shop.place(&user, "poster", 3).await;
    assert_eq!(shop.ended(&id).await["state"], "rejected");
    let subject = format!("notifications.{user}.order_rejected");
    await_event::<OrderRejectedNotification>(&shop.jetstream, &subject).await;
    assert_eq!((shop.users.process().pid(), shop.orders.process().pid()), (users, orders));
    assert_eq!((shop.users.process().exited(), shop.orders.process().exited()), (None, None));
}

/// What the operator made, with its version in Kubernetes, or its configuration and time of creation in JetStream.
async fn made(shop: &Shop) -> BTreeMap<String, String> {
    let mut made = BTreeMap::new();
    let deployments: Api<Deployment> = shop.namespace.api();
    for object in deployments.list(&ListParams::default()).await.unwrap() {
        made.insert(format!("Deployment {}", object.name_any()), version(&object));
    }
    let services: Api<Service> = shop.namespace.api();
    for object in services.list(&ListParams::default()).await.unwrap() {
        made.insert(format!("Service {}", object.name_any()), version(&object));
    }
    let config_maps: Api<ConfigMap> = shop.namespace.api();
    for object in config_maps.list(&ListParams::default()).await.unwrap() {
        made.insert(format!("ConfigMap {}", object.name_any()), version(&object));
    }
    let mut streams = shop.jetstream.streams();
    while let Some(info) = streams.next().await {
        let info = info.unwrap();
        let stream = shop.jetstream.get_stream(&info.config.name).await.unwrap();
        let mut consumers = stream.consumers();
        while let Some(consumer) = consumers.next().await {
            let consumer = consumer.unwrap();
            made.insert(
                format!("consumer {} of {}", consumer.name, info.config.name),
                format!("{} {:?}", consumer.created, sorted(&consumer.config)),
            );
        }
        made.insert(
            format!("stream {}", info.config.name),
            format!("{} {:?}", info.created, sorted(&info.config)),
        );
    }
    made
}

fn version(object: &impl ResourceExt) -> String {
    format!("{:?} {:?}", object.meta().generation, object.resource_version())
}

/// A configuration whose maps are in order.
fn sorted(config: &impl serde::Serialize) -> Value {
    serde_json::to_value(config).unwrap()
}

#[tokio::test]
async fn an_operator_that_dies_disturbs_no_service_and_changes_nothing_when_it_is_back() {
    let shop = Shop::open().await;
    let user = shop.register("ann@example.org").await;
    let before = made(&shop).await;
    // Beside the chart's seven streams are those of dead letters, of users and of orders.
    assert_eq!(before.len(), 2 + 2 + 3 + 4 + 7 + 2, "{before:#?}");
    let (users, orders) = (shop.users.process().pid(), shop.orders.process().pid());

    shop.operator.process.kill();
    let mut ids = vec![shop.place(&user, "mug", 1).await];
    shop.confirmed(&ids[0]).await;

    let second = shop.another_operator();
    for (controller, objects) in [("stream", 9), ("consumer", 4)] {
        let line =
            format!(r#"jetwright_operator_reconciles_total{{controller="{controller}",outcome="ok"}}"#);
        await_until(&format!("the next operator has looked at every {controller}"), SOON, async || {
            let ready = reqwest::get(format!("{}/readyz", second.admin_url)).await;
            ready.and_then(reqwest::Response::error_for_status).map_err(|error| error.to_string())?;
            let count = metric(&second.admin_url, &line).await;
            if count >= objects { Ok(()) } else { Err(count.to_string()) }
        })
        .await;
    }
    ids.push(shop.place(&user, "mug", 1).await);
    each_is_confirmed_once(&shop, &ids).await;

    let after = made(&shop).await;
    assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    for (what, version) in &before {
        assert_eq!(&after[what], version, "{what} was changed");
    }
    let streams: Api<EventStream> = shop.namespace.api();
    for stream in streams.list(&ListParams::default()).await.unwrap() {
        assert_eq!(stream.status.unwrap().drift, None, "{:?}", stream.metadata.name);
    }
    assert_eq!((shop.users.process().pid(), shop.orders.process().pid()), (users, orders));
    assert_eq!((shop.users.process().exited(), shop.orders.process().exited()), (None, None));
    let disturbed = |line: &Value| line["level"] == "WARN" || line["level"] == "ERROR";
    for pod in [&shop.users, &shop.orders] {
        assert!(!log(pod).iter().any(disturbed), "{}", pod.process().log());
    }
}

#[tokio::test]
async fn a_message_that_is_no_event_does_not_stop_the_stream_and_is_counted_and_logged() {
    let shop = Shop::open().await;
    let user = shop.register("ann@example.org").await;
    let mut headers = HeaderMap::new();
    headers.insert("Event-Type", "events.v1.OrderPlaced");
    let jetstream = &shop.jetstream;
    let wrong = jetstream.publish_with_headers("orders.x.placed", headers, "not protobuf".into());
    let wrong = wrong.await.unwrap().await.unwrap().sequence;
    let bare = jetstream.publish("orders.x.placed", "{}".into()).await.unwrap().await.unwrap().sequence;

    let id = shop.place(&user, "mug", 1).await;
    shop.confirmed(&id).await;
    shop.await_handled("orders", "order-fulfilment").await;
    assert_eq!(handled(&shop.orders, "undecodable").await, 2);
    let log = log(&shop.orders);
    for (sequence, why) in [
        (wrong, "failed to decode the payload as events.v1.OrderPlaced"),
        (bare, "header Event-Type is missing"),
    ] {
        let told = |line: &&Value| line["message"] == "gave up event" && line["span"]["sequence"] == sequence;
        let line = log.iter().find(told).unwrap_or_else(|| panic!("nothing of {sequence} in {log:?}"));
        assert_eq!((&line["span"]["subject"], &line["level"]), (&json!("orders.x.placed"), &json!("ERROR")));
        assert!(line["error"].as_str().unwrap().contains(why), "{line}");
    }
}

/// Two pods of the order service, and orders of callers of both.
async fn two_replicas_share_the_orders(shop: &Shop) {
    let (second, url) = shop.scale_orders_to_two().await;
    let user = shop.register("ann@example.org").await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(shop.place(&user, "mug", 1).await);
        ids.push(placed(&shop.try_post_order(&url, order(&user, "mug", 1), &[]).await.unwrap()));
    }
    each_is_confirmed_once(shop, &ids).await;
    shop.await_handled("orders", "order-fulfilment").await;
    shop.await_stock("mug", 960).await;
    let (one, other) = tokio::join!(handled(&shop.orders, "done"), handled(&second, "done"));
    assert_eq!(one + other, 40, "{one} and {other}");
    assert!(one > 0 && other > 0, "one pod did all: {one} and {other}");
}

#[tokio::test]
async fn two_replicas_share_the_orders_and_each_order_is_handled_once() {
    let shop = Shop::open().await;
    two_replicas_share_the_orders(&shop).await;
}

#[tokio::test]
async fn with_order_two_replicas_share_the_partitions_and_each_order_is_handled_once() {
    let shop = Shop::with_order(Duration::ZERO).await;
    two_replicas_share_the_orders(&shop).await;
}
