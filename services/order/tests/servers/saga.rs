//! What the attempts at one order leave when they fail, are killed, or are slower than others.

use jetwright_order_service::{
    gateway::Decision,
    order::OrderResult,
    saga::fulfilment::UNDECIDED_REASON,
    saga::ports::Ports,
    saga::steps::{StepMetrics, Steps},
};
use jetwright_proto::events::v1::OrderConfirmed;
use jetwright_runtime::PublishOptions;
use jetwright_testing::await_until;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    fulfilment::{placed, rejected, rejection, timeline},
    program::{Program, builder},
    shop::{SOON, Shop},
};

/// Places an order of a mug with a program that is about to be killed.
async fn place(program: &Program, user: &str) -> String {
    let order = json!({"user_id": user, "lines": [{"sku": "mug", "quantity": 1}]});
    let request = reqwest::Client::new().post(format!("{}/orders", program.url)).json(&order);
    let accepted: Value = request.send().await.unwrap().json().await.unwrap();
    accepted["order_id"].as_str().unwrap().to_owned()
}

async fn await_authorized(shop: &Shop, order_id: &str) {
    await_until("the authorization", SOON, async || {
        if shop.gateway.authorized().contains_key(order_id) { Ok(()) } else { Err(shop.gateway.asked()) }
    })
    .await;
}

async fn await_asked(shop: &Shop, times: u32) {
    await_until(&format!("{times} requests for an authorization"), SOON, async || {
        let asked = shop.gateway.asked();
        if asked >= times { Ok(()) } else { Err(asked) }
    })
    .await;
}

#[tokio::test]
async fn money_that_a_killed_attempt_authorized_is_voided_when_another_attempt_rejects_at_an_earlier_step() {
    let shop = Shop::open().await;
    let first = Program::start(&shop).await;
    let user = shop.register().await;
    shop.gateway.hang(1);
    let id = place(&first, &user).await;
    await_authorized(&shop, &id).await;
    first.kill();

    // The next attempt knows of none before it, and does not come as far as the payment.
    shop.make_order_consumers_again().await;
    shop.forget_users().await;
    let service = shop.serve().await;
    let order = service.ended(&id).await;
    assert_eq!(rejection(&order).0, "user_validation");
    shop.await_settled().await;
    assert_eq!((shop.gateway.authorized(), shop.gateway.voided()), ([].into(), vec![id]));
    assert_eq!(shop.events("payments").await, ["payments.*.voided"]);
    shop.await_stock("mug", 100).await;
    service.stop().await;
}

#[tokio::test]
async fn an_order_whose_gateway_is_away_for_longer_than_all_attempts_is_rejected_and_later_voided() {
    let shop = Shop::open().await;
    let first = Program::start(&shop).await;
    let user = shop.register().await;
    // The gateway authorizes, its answer is lost, and then it is away.
    shop.gateway.lose_answers(1);
    let id = place(&first, &user).await;
    await_authorized(&shop, &id).await;
    shop.gateway.set_away(true);
    await_asked(&shop, 2).await;
    first.kill();

    let second = Program::start(&shop).await;
    let order: Value = await_until("the end of the order", SOON, async || {
        let answer =
            reqwest::get(format!("{}/orders/{id}", second.url)).await.map_err(|error| error.to_string())?;
        let order: Value = answer.json().await.map_err(|error| error.to_string())?;
        if order["state"] == "placed" { Err(order.to_string()) } else { Ok(order) }
    })
    .await;
    assert_eq!(rejection(&order), ("payment_authorization", UNDECIDED_REASON));
    shop.await_stock("mug", 100).await;
    await_until("an attempt to void", SOON, async || {
        if shop.gateway.voids_asked() > 1 { Ok(()) } else { Err(shop.gateway.voids_asked()) }
    })
    .await;
    assert_eq!(shop.events("notifications").await, ["notifications.*.order_rejected"]);
    assert!(shop.gateway.authorized().contains_key(&id));
    second.kill();

    // The void is owed by the service and not by a process.
    shop.gateway.set_away(false);
    let service = shop.serve().await;
    shop.await_settled().await;
    assert_eq!((shop.gateway.authorized(), shop.gateway.voided()), ([].into(), vec![id]));
    assert_eq!(shop.events("orders").await, ["orders.*.placed", "orders.*.rejected"]);
    assert_eq!(shop.events("payments").await, ["payments.*.voided"]);
    service.stop().await;
}

#[tokio::test]
async fn a_payment_that_the_gateway_will_never_take_is_a_rejection_and_no_order_without_an_end() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let user = shop.register().await;
    shop.gateway.refuse(1);
    let id = service.place(&user, "mug", 1).await;
    let order = service.ended(&id).await;
    assert_eq!(rejection(&order), ("payment_authorization", UNDECIDED_REASON));
    shop.await_stock("mug", 100).await;
    service.stop().await;
}

#[tokio::test]
async fn a_slow_attempt_neither_sets_pieces_aside_nor_pays_after_another_one_has_rejected_the_order() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let (user, id) = (shop.register().await, Uuid::now_v7().to_string());
    let (placed, adapters) = (placed(&id, &user), shop.adapters().await);
    let options = PublishOptions::default;
    // No attempt of the service itself is under way.
    shop.jetstream.delete_consumer_from_stream("order-fulfilment", "orders").await.unwrap();
    shop.others.publish(&format!("orders.{id}.placed"), &placed, options()).await.unwrap();
    let (_, version) = adapters.load_order(&id).await.unwrap().unwrap();
    shop.others.publish(&format!("orders.{id}.rejected"), &rejected(&id), options()).await.unwrap();
    shop.await_handled("orders", "order-compensation").await;

    let metrics = StepMetrics::register(&mut Registry::default());
    let deadline = Instant::now() + SOON;
    let steps = Steps { ports: &adapters, metrics: &metrics, order: &placed, version: &version, deadline };
    let (step, failure) = Box::pin(steps.take()).await.unwrap_err();
    assert_eq!(step.name(), "inventory_reservation", "{failure}");
    assert_eq!(shop.stock("mug").await, json!({"available": 100, "reserved": {}}));
    assert_eq!(shop.gateway.asked(), 0);
    let end = OrderResult::Confirmed(OrderConfirmed { order_id: id.clone(), ..OrderConfirmed::default() });
    assert!(!adapters.end_order(&version, &end).await.unwrap(), "an order ends once");
    // And the gateway takes no authorization after the void.
    let late = adapters.authorize(&id, 1250, "EUR").await.unwrap();
    assert!(matches!(late, Decision::Declined(_)), "{late:?}");
    assert_eq!(shop.gateway.authorized(), [].into());
    service.stop().await;
}

#[tokio::test]
async fn a_confirmed_order_keeps_its_pieces_and_its_payment_whatever_is_published_later() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let user = shop.register().await;
    let id = service.place(&user, "mug", 1).await;
    assert_eq!(service.ended(&id).await["state"], "confirmed");
    let options = PublishOptions::default();
    shop.others.publish(&format!("orders.{id}.rejected"), &rejected(&id), options).await.unwrap();
    shop.await_settled().await;
    assert_eq!(service.get(&id).await.1["state"], "confirmed");
    assert_eq!(shop.gateway.authorized(), [(id, 1250)].into());
    assert_eq!(shop.gateway.voids_asked(), 0);
    shop.await_stock("mug", 99).await;
    service.stop().await;
}

#[tokio::test]
async fn one_command_ends_an_order_that_no_consumer_decides_any_more() {
    let shop = Shop::open().await;
    shop.serve().await.stop().await;
    let (user, confirmed, undecided) =
        (shop.register().await, Uuid::now_v7().to_string(), Uuid::now_v7().to_string());
    for id in [&confirmed, &undecided] {
        let subject = format!("orders.{id}.placed");
        shop.others.publish(&subject, &placed(id, &user), PublishOptions::default()).await.unwrap();
    }
    let settle = async |id: &str| {
        let process = builder(&shop).args(["settle", id]).start();
        (process.wait_exit(SOON).await.code(), process.log())
    };
    let (code, log) = settle(&confirmed).await;
    assert_eq!(code, Some(0), "{log}");
    shop.gateway.set_away(true);
    let (code, log) = settle(&undecided).await;
    assert_eq!(code, Some(1), "the void is not done: {log}");
    shop.gateway.set_away(false);
    let (code, log) = settle(&undecided).await;
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(settle(&Uuid::now_v7().to_string()).await.0, Some(1));

    assert_eq!(shop.gateway.authorized(), [(confirmed.clone(), 1250)].into());
    assert_eq!(shop.gateway.voided(), std::slice::from_ref(&undecided));
    shop.await_stock("mug", 99).await;
    // The consumers find nothing left to do.
    let service = shop.serve().await;
    shop.await_settled().await;
    for (id, events) in [(&confirmed, ["placed", "confirmed"]), (&undecided, ["placed", "rejected"])] {
        assert_eq!(timeline(&service.get(id).await.1), events);
    }
    shop.await_stock("mug", 99).await;
    service.stop().await;
}
