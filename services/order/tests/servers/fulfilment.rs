use std::collections::BTreeSet;

use jetwright_proto::events::v1::{OrderLine, OrderPlaced, OrderRejected, PaymentAuthorized};
use jetwright_runtime::PublishOptions;
use jetwright_testing::await_until;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::shop::{SOON, Shop};

pub fn timeline(order: &Value) -> Vec<&str> {
    order["timeline"].as_array().unwrap().iter().map(|moment| moment["event"].as_str().unwrap()).collect()
}

pub fn rejection(order: &Value) -> (&str, &str) {
    let rejection = &order["rejection"];
    (rejection["step"].as_str().unwrap(), rejection["reason"].as_str().unwrap())
}

pub fn placed(order_id: &str, user_id: &str) -> OrderPlaced {
    OrderPlaced {
        order_id: order_id.to_owned(),
        user_id: user_id.to_owned(),
        lines: vec![OrderLine { sku: "mug".to_owned(), quantity: 1, unit_price: 1250 }],
        amount: 1250,
        currency: "EUR".to_owned(),
        placed_at: 1,
    }
}

pub fn rejected(order_id: &str) -> OrderRejected {
    OrderRejected { order_id: order_id.to_owned(), reason: "late".to_owned(), ..OrderRejected::default() }
}

#[tokio::test]
async fn an_order_that_passes_every_step_is_confirmed() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let user = shop.register().await;
    let id = service.place(&user, "mug", 2).await;
    let order = service.ended(&id).await;
    assert_eq!(order["state"], "confirmed");
    assert_eq!(order["authorization_id"], format!("auth-{id}"));
    assert_eq!(
        (&order["amount"], &order["currency"], &order["user_id"]),
        (&json!(2500), &json!("EUR"), &json!(user))
    );
    assert_eq!(timeline(&order), ["placed", "confirmed"]);
    shop.await_stock("mug", 98).await;
    assert_eq!(shop.gateway.authorized(), [(id, 2500)].into());
    assert_eq!(shop.events("payments").await, ["payments.*.authorized"]);
    for step in ["user_validation", "inventory_reservation", "payment_authorization"] {
        let counted =
            format!(r#"fulfilment_step_duration_seconds_count{{step="{step}",outcome="passed"}} 1"#);
        assert!(service.metrics().contains(&counted), "{counted}");
    }
    service.stop().await;
}

#[tokio::test]
async fn an_order_of_nobody_is_rejected() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let nobody = Uuid::now_v7().to_string();
    let id = service.place(&nobody, "mug", 2).await;
    let order = service.ended(&id).await;
    assert_eq!(rejection(&order), ("user_validation", format!("there is no user {nobody}").as_str()));
    shop.await_settled().await;
    assert_eq!(shop.events("notifications").await, ["notifications.*.order_rejected"]);
    assert_eq!(
        (shop.gateway.asked(), shop.stock("mug").await),
        (0, json!({"available": 100, "reserved": {}}))
    );
    service.stop().await;
}

#[tokio::test]
async fn an_order_of_too_much_is_rejected_and_gives_back_what_was_set_aside() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let user = shop.register().await;
    let body =
        json!({"user_id": user, "lines": [{"sku": "mug", "quantity": 3}, {"sku": "rare", "quantity": 2}]});
    let (_, accepted) = service.post(&body, None).await;
    let order = service.ended(accepted["order_id"].as_str().unwrap()).await;
    assert_eq!(rejection(&order), ("inventory_reservation", "there is not enough of rare"));
    shop.await_stock("mug", 100).await;
    shop.await_stock("rare", 1).await;
    assert_eq!(shop.gateway.asked(), 0);
    service.stop().await;
}

#[tokio::test]
async fn an_order_that_cannot_be_paid_is_rejected_and_gives_its_stock_back() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let user = shop.register().await;
    let id = service.place(&user, "unlucky", 1).await;
    let order = service.ended(&id).await;
    assert_eq!(rejection(&order), ("payment_authorization", "the card was declined"));
    shop.await_stock("unlucky", 100).await;
    shop.await_settled().await;
    assert_eq!(shop.events("payments").await, ["payments.*.declined"]);
    assert_eq!(shop.events("notifications").await, ["notifications.*.order_rejected"]);
    // The gateway is told that nothing is wanted any more, and nothing was there to be given back.
    assert_eq!(shop.gateway.voided(), [id]);
    service.stop().await;
}

#[tokio::test]
async fn a_gateway_that_fails_or_loses_its_answer_is_asked_again_under_the_same_key() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let user = shop.register().await;
    shop.gateway.fail(2);
    shop.gateway.lose_answers(1);
    let id = service.place(&user, "mug", 1).await;
    assert_eq!(service.ended(&id).await["state"], "confirmed");
    assert_eq!((shop.gateway.asked(), shop.gateway.authorized()), (4, [(id, 1250)].into()));
    shop.await_stock("mug", 99).await;
    service.stop().await;
}

#[tokio::test]
async fn a_gateway_that_does_not_know_the_shop_for_a_while_ends_no_order() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let user = shop.register().await;
    shop.gateway.lock_out(3);
    let id = service.place(&user, "mug", 1).await;
    assert_eq!(service.ended(&id).await["state"], "confirmed");
    assert_eq!(shop.gateway.asked(), 4);
    service.stop().await;
}

#[tokio::test]
async fn a_gateway_that_hangs_is_given_up_and_asked_again_under_the_same_key() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let user = shop.register().await;
    shop.gateway.hang(1);
    let id = service.place(&user, "mug", 1).await;
    let order = service.ended(&id).await;
    assert_eq!((&order["state"], shop.gateway.asked()), (&json!("confirmed"), 2));
    assert_eq!(shop.gateway.authorized(), [(id, 1250)].into());
    service.stop().await;
}

#[tokio::test]
async fn an_amount_whose_authorization_was_never_told_is_given_back_when_the_order_is_rejected() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let user = shop.register().await;
    // It authorizes, and nobody ever hears of it.
    shop.gateway.hang(u32::MAX);
    let id = service.place(&user, "mug", 1).await;
    await_until("the authorization", SOON, async || {
        if shop.gateway.authorized().contains_key(&id) { Ok(()) } else { Err(shop.gateway.asked()) }
    })
    .await;
    shop.others
        .publish(&format!("orders.{id}.rejected"), &rejected(&id), PublishOptions::default())
        .await
        .unwrap();
    shop.await_settled().await;
    assert_eq!(shop.gateway.authorized(), [].into());
    assert_eq!(shop.gateway.voided(), [id]);
    assert_eq!(shop.events("payments").await, ["payments.*.voided"]);
    shop.await_stock("mug", 100).await;
    service.stop().await;
}

#[tokio::test]
async fn an_article_that_lost_its_stock_begins_anew() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let user = shop.register().await;
    shop.jetstream.get_key_value("inventory").await.unwrap().purge("mug").await.unwrap();
    let id = service.place(&user, "mug", 1).await;
    assert_eq!(service.ended(&id).await["state"], "confirmed");
    shop.await_stock("mug", 99).await;
    shop.await_settled().await;
    assert!(service.metrics().contains(r#"inventory_open_reservations{sku="mug"} 0"#));
    service.stop().await;
}

#[tokio::test]
async fn a_stock_that_cannot_be_read_for_a_while_ends_no_order() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let user = shop.register().await;
    let bucket = shop.jetstream.get_key_value("inventory").await.unwrap();
    bucket.put("mug", r#"{"shelves": []}"#.into()).await.unwrap();
    let id = service.place(&user, "mug", 1).await;
    shop.await_retried("orders", "order-fulfilment").await;
    bucket.put("mug", r#"{"available": 7, "reserved": {}, "shelves": []}"#.into()).await.unwrap();
    assert_eq!(service.ended(&id).await["state"], "confirmed");
    service.stop().await;
}

#[tokio::test]
async fn with_and_without_partitions_orders_end_and_are_shown_the_same() {
    for shop in [Shop::open().await, Shop::open_without_partitions().await] {
        let service = shop.serve().await;
        let user = shop.register().await;
        for (sku, end) in [("mug", "confirmed"), ("unlucky", "rejected")] {
            let id = service.place(&user, sku, 1).await;
            let order = service.ended(&id).await;
            let timeline = order["timeline"].as_array().unwrap().iter().map(|entry| entry["event"].as_str());
            assert_eq!(timeline.collect::<Vec<_>>(), [Some("placed"), Some(end)], "{order}");
        }
        shop.await_settled().await;
        shop.await_stock("unlucky", 100).await;
        service.stop().await;
    }
}

#[tokio::test]
async fn an_order_under_the_id_of_another_is_not_fulfilled() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let (user, id, other) = (shop.register().await, Uuid::now_v7(), Uuid::now_v7());
    let loud = id.to_string().to_uppercase();
    for (subject, order_id) in [(other.to_string(), id.to_string()), (loud.clone(), loud)] {
        let subject = format!("orders.{subject}.placed");
        shop.others.publish(&subject, &placed(&order_id, &user), PublishOptions::default()).await.unwrap();
    }
    shop.await_settled().await;
    assert_eq!(shop.events("orders").await, ["orders.*.placed", "orders.*.placed"]);
    assert_eq!(shop.gateway.asked(), 0);
    service.stop().await;
}

#[tokio::test]
async fn the_last_piece_is_sold_once_however_many_want_it() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let user = shop.register().await;
    let orders = futures::future::join_all((0..10).map(|_| service.place(&user, "rare", 1))).await;
    let mut confirmed = 0;
    for id in &orders {
        confirmed += usize::from(service.ended(id).await["state"] == "confirmed");
    }
    assert_eq!(confirmed, 1);
    shop.await_stock("rare", 0).await;
    assert_eq!(shop.gateway.authorized().len(), 1);
    service.stop().await;
}

#[tokio::test]
async fn a_crowd_that_orders_one_article_is_served() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let user = shop.register().await;
    let orders = futures::future::join_all((0..100).map(|_| service.place(&user, "mug", 1))).await;
    for id in &orders {
        assert_eq!(service.ended(id).await["state"], "confirmed");
    }
    shop.await_stock("mug", 0).await;
    service.stop().await;
}

#[tokio::test]
async fn a_payment_for_an_order_that_was_rejected_meanwhile_is_given_back_once() {
    let shop = Shop::open().await;
    let (order_id, user_id) = (Uuid::now_v7().to_string(), shop.register().await);
    // What an attempt leaves that was overtaken after the gateway had authorized.
    let placed = placed(&order_id, &user_id);
    let authorized = PaymentAuthorized { order_id: order_id.clone(), ..PaymentAuthorized::default() };
    let rejected = rejected(&order_id);
    let options = PublishOptions::default;
    shop.others.publish(&format!("payments.{order_id}.authorized"), &authorized, options()).await.unwrap();
    shop.others.publish(&format!("orders.{order_id}.placed"), &placed, options()).await.unwrap();
    shop.others.publish(&format!("orders.{order_id}.rejected"), &rejected, options()).await.unwrap();
    let service = shop.serve().await;
    shop.await_settled().await;
    assert_eq!(shop.gateway.voided(), [order_id]);
    assert_eq!(shop.events("payments").await, ["payments.*.authorized", "payments.*.voided"]);
    service.stop().await;
}

#[tokio::test]
async fn orders_that_are_delivered_again_have_every_effect_once() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let user = shop.register().await;
    let confirmed = service.place(&user, "mug", 2).await;
    let rejected = service.place(&user, "unlucky", 1).await;
    service.ended(&confirmed).await;
    service.ended(&rejected).await;
    shop.await_settled().await;
    service.stop().await;
    let before =
        [shop.events("orders").await, shop.events("payments").await, shop.events("notifications").await];

    shop.make_order_consumers_again().await;
    let service = shop.serve().await;
    shop.await_settled().await;
    let after =
        [shop.events("orders").await, shop.events("payments").await, shop.events("notifications").await];
    assert_eq!(after, before);
    shop.await_stock("mug", 98).await;
    shop.await_stock("unlucky", 100).await;
    assert_eq!(shop.gateway.authorized(), [(confirmed, 2500)].into());
    service.stop().await;
}

#[tokio::test]
async fn users_who_registered_while_the_service_was_off_can_order() {
    let shop = Shop::open().await;
    shop.serve().await.stop().await;
    let users = futures::future::join_all((0..20).map(|_| shop.register())).await;
    let service = shop.serve().await;
    // Some before the projection has caught up: the stream of users knows them.
    for user in &users {
        let id = service.place(user, "mug", 1).await;
        assert_eq!(service.ended(&id).await["state"], "confirmed");
    }
    shop.await_handled("users", "order-users").await;
    let bucket = shop.jetstream.get_key_value("order-users").await.unwrap();
    let mut sequences = BTreeSet::new();
    for user in &users {
        let known: Value = serde_json::from_slice(&bucket.get(user).await.unwrap().unwrap()).unwrap();
        sequences.insert(known["sequence"].as_u64().unwrap());
    }
    assert_eq!(sequences, (1..=20).collect());
    service.stop().await;
}

#[tokio::test]
async fn what_is_known_of_users_follows_a_stream_that_was_made_again() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    shop.register().await;
    let user = shop.register().await;
    let known = async || {
        let bucket = shop.jetstream.get_key_value("order-users").await.unwrap();
        let entry = bucket.get(&user).await.unwrap().ok_or("not known")?;
        Ok::<Value, &str>(serde_json::from_slice(&entry).unwrap())
    };
    let before = await_until("the user to be known", SOON, known).await;
    assert_eq!(before["sequence"], 2);
    service.stop().await;
    shop.make_users_again().await;
    shop.register_as(&user).await;
    let service = shop.serve().await;
    await_until("the user to be known from the new stream", SOON, async || match known().await {
        Ok(now) if now["sequence"] == 1 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    service.stop().await;
}
