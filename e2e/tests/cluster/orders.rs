//! The shop, as its customers and the team that runs it know it.

use std::{cell::Cell, collections::BTreeSet};

use futures::{StreamExt, stream};
use jetwright_crds::EventConsumer;
use jetwright_e2e::cluster::{Cluster, LATER, Nats, SHOP, SOON, Shop};
use jetwright_testing::await_until;
use serde_json::json;

/// Orders placed at once.
const AT_ONCE: usize = 8;

/// A name that no other test uses, nor an earlier run on the same cluster.
pub fn unique(what: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("{what}-{}", now.as_millis())
}

/// Places so many orders of a mug, and returns their ids.
pub async fn place_many(shop: &Shop<'_>, user: &str, count: usize) -> Vec<String> {
    let run = unique("order");
    let keys: Vec<_> = (0..count).map(|number| format!("{run}-{number}")).collect();
    let orders = stream::iter(&keys).map(|key| shop.place(user, "mug", 1, key));
    let ids: Vec<_> = orders.buffer_unordered(AT_ONCE).collect().await;
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), count, "each key is an order of its own");
    ids
}

/// Places a hundred orders, and more until thirty have been placed after something was killed.
pub async fn place_around(shop: &Shop<'_>, user: &str, killed: &Cell<bool>) -> Vec<String> {
    let mut ids = Vec::new();
    let mut after = 0;
    while after < 30 || ids.len() < 100 {
        assert!(ids.len() < 1000, "a thousand orders, and nothing was killed");
        let was_killed = killed.get();
        let more = place_many(shop, user, 10).await;
        after += if was_killed { more.len() } else { 0 };
        ids.extend(more);
    }
    ids
}

/// Requires that each of these orders is confirmed, was placed and confirmed once, and was paid once.
pub async fn each_is_confirmed_once(shop: &Shop<'_>, nats: &Nats, ids: &[String]) {
    for id in ids {
        let order = shop.confirmed(id).await;
        assert_eq!(shop.payment(id).await["id"], order["authorization_id"], "{order}");
    }
    each_event_is_stored_once(nats, ids).await;
}

/// Requires that each of these orders, all of them confirmed, has each of its events once.
pub async fn each_event_is_stored_once(nats: &Nats, ids: &[String]) {
    let known: BTreeSet<_> = ids.iter().map(String::as_str).collect();
    let mut found: Vec<_> =
        [nats.stored("orders", "orders.>").await, nats.stored("payments", "payments.>").await]
            .concat()
            .into_iter()
            .map(|message| message.subject)
            .filter(|subject| subject.split('.').nth(1).is_some_and(|id| known.contains(id)))
            .collect();
    let mut expected: Vec<_> = ids
        .iter()
        .flat_map(|id| {
            [
                format!("orders.{id}.placed"),
                format!("orders.{id}.confirmed"),
                format!("payments.{id}.authorized"),
            ]
        })
        .collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn an_order_is_confirmed_and_one_that_cannot_be_paid_or_has_no_user_is_rejected_with_the_step() {
    let cluster = Cluster::connect().await;
    let shop = cluster.shop();
    let user = shop.register(&format!("{}@example.org", unique("ann"))).await;
    let confirmed = shop.place(&user, "mug", 2, &unique("mugs")).await;
    let declined = shop.place(&user, "raffle-ticket", 1, &unique("ticket")).await;
    let nobody = "0190a5a0-0000-7000-8000-000000000000";
    let stranger = shop.place(nobody, "mug", 1, &unique("stranger")).await;

    let order = shop.confirmed(&confirmed).await;
    assert_eq!((&order["amount"], &order["currency"]), (&json!(2500), &json!("EUR")));
    for (order, step) in [(declined, "payment_authorization"), (stranger, "user_validation")] {
        let order = shop.ended(&order).await;
        assert_eq!(
            (&order["state"], &order["rejection"]["step"]),
            (&json!("rejected"), &json!(step)),
            "{order}"
        );
    }
}

#[tokio::test]
async fn a_service_pod_killed_in_the_middle_of_a_hundred_orders_loses_and_repeats_none() {
    let cluster = Cluster::connect().await;
    let (shop, nats) = (cluster.shop(), cluster.nats(0).await);
    let user = shop.register(&format!("{}@example.org", unique("ann"))).await;
    let before = nats.messages("orders").await;
    let killed = Cell::new(false);
    let trouble = async {
        await_until("some orders are placed and some of them decided", SOON, async || {
            let stored = nats.messages("orders").await - before;
            if stored >= 30 { Ok(()) } else { Err(stored) }
        })
        .await;
        let pods = cluster
            .kubectl("get pods --namespace shop -l jetwright.dev/workload=order-fulfilment -o name")
            .await;
        let pod = pods.lines().next().unwrap().trim_start_matches("pod/");
        cluster.kill(SHOP, pod).await;
        killed.set(true);
    };
    let (ids, ()) = tokio::join!(place_around(&shop, &user, &killed), trouble);
    each_is_confirmed_once(&shop, &nats, &ids).await;
    cluster.await_all_ready(SHOP, LATER).await;
}

#[tokio::test]
async fn users_who_register_while_the_order_service_has_no_pods_can_order_once_it_is_back() {
    let cluster = Cluster::connect().await;
    let shop = cluster.shop();
    cluster.kubectl("scale eventconsumer order-fulfilment --namespace shop --replicas=0").await;
    let zero = cluster
        .await_condition::<EventConsumer>((SHOP, "order-fulfilment"), ("WorkloadReady", "True"), LATER)
        .await;
    assert_eq!(zero.reason, "ScaledToZero");
    await_until("no pod of it is left", LATER, async || {
        let pods = cluster
            .kubectl("get pods --namespace shop -l jetwright.dev/workload=order-fulfilment -o name")
            .await;
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    })
    .await;

    let run = unique("user");
    let mut users = Vec::new();
    for number in 0..10 {
        users.push(shop.register(&format!("{run}-{number}@example.org")).await);
    }
    cluster.kubectl("scale eventconsumer order-fulfilment --namespace shop --replicas=2").await;
    for user in &users {
        let order = shop.place(user, "mug", 1, &unique(user)).await;
        shop.confirmed(&order).await;
    }
    await_until("it has caught up with all users", SOON, async || {
        let nats = cluster.nats(0).await;
        let stream = nats.stream("users").await;
        let consumer: async_nats::jetstream::consumer::PullConsumer =
            stream.get_consumer("order-users").await.map_err(|error| error.to_string())?;
        let info = consumer.cached_info();
        if (info.num_pending, info.num_ack_pending) == (0, 0) { Ok(()) } else { Err(format!("{info:?}")) }
    })
    .await;
    cluster.await_all_ready(SHOP, LATER).await;
}
