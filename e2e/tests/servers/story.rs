//! What the shop is for: users register, orders are confirmed or rejected, and everyone can see why.

use std::time::Duration;

use async_nats::jetstream::stream::{DiscardPolicy, StorageType};
use jetwright_proto::events::v1::{
    FulfilmentStep, OrderConfirmed, OrderLine, OrderPlaced, OrderRejected, OrderRejectedNotification,
    PaymentAuthorized, PaymentDeclined, UserCreated,
};
use serde_json::{Value, json};

use crate::{
    pod::Pod,
    shop::{Answer, NOBODY, Shop, log, order, placed},
    stream::{Stored, await_event, stored},
};

/// The lines of a pod's log with this message and trace.
fn lines(pod: &Pod, message: &str, trace_id: &str) -> usize {
    let of_trace = |line: &&Value| line["message"] == message && line["trace_id"] == trace_id;
    log(pod).iter().filter(of_trace).count()
}

fn timeline(order: &Value) -> Vec<&str> {
    order["timeline"].as_array().unwrap().iter().map(|moment| moment["event"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn each_stream_keeps_its_events_as_long_as_they_matter() {
    let shop = Shop::open().await;
    let config =
        async |name: &str| shop.jetstream.get_stream(name).await.unwrap().cached_info().config.clone();
    for truth in ["users", "orders", "payments"] {
        let config = config(truth).await;
        assert_eq!((config.storage, config.max_age), (StorageType::File, Duration::ZERO), "{truth}");
        // A full stream refuses what is new, and forgets nothing.
        assert_eq!(config.discard, DiscardPolicy::New, "{truth}");
    }
    let notifications = config("notifications").await;
    assert_eq!(
        (notifications.storage, notifications.max_age),
        (StorageType::Memory, Duration::from_hours(1))
    );
    for bucket in ["user-directory", "order-users", "inventory"] {
        let status = shop.jetstream.get_key_value(bucket).await.unwrap().status().await.unwrap();
        assert_eq!((status.history(), status.max_age()), (1, Duration::ZERO), "{bucket}");
    }
}

#[tokio::test]
async fn a_registered_user_and_an_order_become_events_and_the_order_is_confirmed() {
    let shop = Shop::open().await;
    let user = shop.register("ann@example.org").await;
    let (status, shown) = shop.user(&user).await;
    assert_eq!((status, &shown["id"], &shown["email"]), (200, &json!(user), &json!("ann@example.org")));
    let wanted = json!({"user_id": user, "lines": [
        {"sku": "mug", "quantity": 2}, {"sku": "notebook", "quantity": 1},
    ]});
    let id = placed(&shop.post_order(wanted.to_string(), &[]).await);

    let order = shop.confirmed(&id).await;
    assert_eq!((&order["amount"], &order["currency"]), (&json!(3299), &json!("EUR")));
    assert_eq!(timeline(&order), ["placed", "confirmed"]);
    let authorization = order["authorization_id"].as_str().unwrap().to_owned();
    let decision = shop.payments.decision(&id).await;
    assert_eq!(
        (&decision["id"], &decision["status"], &decision["amount"]),
        (&json!(authorization), &json!("authorized"), &json!(3299))
    );
    assert_eq!(shop.payments.authorized().await, 1);
    shop.await_stock("mug", 998).await;
    shop.await_stock("notebook", 999).await;

    let jetstream = &shop.jetstream;
    let (_, created) = await_event::<UserCreated>(jetstream, &format!("users.{user}.created")).await;
    assert_eq!((&created.user_id, created.email.as_str()), (&user, "ann@example.org"));
    let (_, event) = await_event::<OrderPlaced>(jetstream, &format!("orders.{id}.placed")).await;
    let line = |sku: &str, quantity, unit_price| OrderLine { sku: sku.to_owned(), quantity, unit_price };
    let expected = OrderPlaced {
        order_id: id.clone(),
        user_id: user,
        lines: vec![line("mug", 2, 1250), line("notebook", 1, 799)],
        amount: 3299,
        currency: "EUR".to_owned(),
        placed_at: event.placed_at,
    };
    assert_eq!(event, expected);
    let (_, paid) = await_event::<PaymentAuthorized>(jetstream, &format!("payments.{id}.authorized")).await;
    assert_eq!((&paid.authorization_id, paid.amount), (&authorization, 3299));
    let (_, end) = await_event::<OrderConfirmed>(jetstream, &format!("orders.{id}.confirmed")).await;
    assert_eq!((end.order_id, end.authorization_id), (id, authorization));
    let mut ids = Vec::new();
    for (stream, count) in [("users", 1), ("orders", 2), ("payments", 1), ("notifications", 0)] {
        let messages = stored(jetstream, stream, "").await;
        assert_eq!(messages.len(), count, "{messages:?}");
        ids.extend(messages.iter().map(|message| message.header("Nats-Msg-Id").to_owned()));
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4, "every event has an id of its own: {ids:?}");
}

#[tokio::test]
async fn the_trace_that_a_caller_began_is_in_every_event_and_in_both_services_logs() {
    let shop = Shop::open().await;
    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    let traceparent = format!("00-{trace_id}-b7ad6b7169203331-01");
    let headers = [("traceparent", traceparent.as_str())];
    let registered = shop.post_user(json!({"email": "ann@example.org"}).to_string(), &headers).await;
    let user = registered.body["id"].as_str().unwrap();
    let id = placed(&shop.post_order(order(user, "mug", 1), &headers).await);
    shop.confirmed(&id).await;
    for (stream, consumer) in
        [("users", "user-directory"), ("users", "order-users"), ("orders", "order-fulfilment")]
    {
        shop.await_handled(stream, consumer).await;
    }
    for stream in ["users", "orders", "payments"] {
        for message in stored(&shop.jetstream, stream, "").await {
            assert_eq!(message.trace_id(), trace_id, "{message:?}");
        }
    }
    assert_eq!(lines(&shop.users, "registered user", trace_id), 1);
    assert_eq!(lines(&shop.users, "updated projection", trace_id), 1);
    assert_eq!(lines(&shop.orders, "updated projection", trace_id), 1);
    assert_eq!(lines(&shop.orders, "ended order", trace_id), 1);
}

#[tokio::test]
async fn a_request_without_a_trace_begins_one_that_both_services_carry_on() {
    let shop = Shop::open().await;
    let user = shop.register("ann@example.org").await;
    let id = shop.place(&user, "mug", 1).await;
    shop.confirmed(&id).await;
    shop.await_handled("users", "order-users").await;
    shop.await_handled("orders", "order-fulfilment").await;
    let (created, _) = await_event::<UserCreated>(&shop.jetstream, &format!("users.{user}.created")).await;
    let (placed, _) = await_event::<OrderPlaced>(&shop.jetstream, &format!("orders.{id}.placed")).await;
    let (registration, ordering) = (created.trace_id(), placed.trace_id());
    assert_ne!(registration, ordering, "two requests are two traces");
    assert_eq!(lines(&shop.users, "registered user", registration), 1);
    assert_eq!(lines(&shop.orders, "updated projection", registration), 1);
    assert_eq!(lines(&shop.orders, "ended order", ordering), 1);
    for message in stored(&shop.jetstream, "payments", "").await {
        assert_eq!(message.trace_id(), ordering);
    }
}

#[tokio::test]
async fn an_order_that_cannot_be_fulfilled_is_rejected_with_step_and_reason_and_its_user_is_told() {
    let shop = Shop::open().await;
    let user = shop.register("ann@example.org").await;
    let refused = [
        (NOBODY, "mug", 1, FulfilmentStep::UserValidation, format!("there is no user {NOBODY}")),
        (
            &user,
            "poster",
            3,
            FulfilmentStep::InventoryReservation,
            "there is not enough of poster".to_owned(),
        ),
        (
            &user,
            "raffle-ticket",
            1,
            FulfilmentStep::PaymentAuthorization,
            "the card's issuer declined".to_owned(),
        ),
    ];
    for (user, sku, quantity, step, reason) in refused {
        let id = shop.place(user, sku, quantity).await;
        let order = shop.ended(&id).await;
        assert_eq!(order["state"], "rejected", "{order}");
        assert_eq!(timeline(&order), ["placed", "rejected"]);
        assert_eq!(order["rejection"], json!({"step": step.name(), "reason": reason}));
        let (_, end) = await_event::<OrderRejected>(&shop.jetstream, &format!("orders.{id}.rejected")).await;
        assert_eq!((end.step(), &end.reason), (step, &reason));
        shop.await_handled("orders", "order-compensation").await;
        let subject = format!("notifications.{user}.order_rejected");
        let told: Vec<OrderRejectedNotification> =
            stored(&shop.jetstream, "notifications", &subject).await.iter().map(Stored::event).collect();
        let told: Vec<_> = told.into_iter().filter(|told| told.order_id == id).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((told[0].user_id.as_str(), told[0].step(), &told[0].reason), (user, step, &reason));
    }
    // Only the last one got as far as to the money, and what was set aside for it is back.
    let declined: Vec<PaymentDeclined> =
        stored(&shop.jetstream, "payments", "").await.iter().map(Stored::event).collect();
    assert_eq!((declined.len(), declined[0].amount), (1, 113));
    for (sku, available) in [("mug", 1000), ("poster", 2), ("raffle-ticket", 100)] {
        shop.await_stock(sku, available).await;
    }
}

#[tokio::test]
async fn a_wrong_request_is_refused_with_the_field_that_is_wrong() {
    let shop = Shop::open().await;
    let refused = |answer: &Answer, status: u16, field: Option<&str>| {
        assert_eq!(answer.headers["content-type"], "application/problem+json", "{answer:?}");
        assert_eq!((answer.status, &answer.body["status"]), (status, &json!(status)), "{answer:?}");
        assert_eq!(answer.body["errors"][0]["field"].as_str(), field, "{answer:?}");
    };
    for (body, status, field) in [
        (r#"{"email": "no address"}"#, 422, Some("email")),
        (r#"{"email": 7}"#, 422, Some("email")),
        (r#"{"email": "ann@example.org", "name": "Ann"}"#, 422, Some("name")),
        (r#"{"email": "#, 400, None),
    ] {
        refused(&shop.post_user(body, &[]).await, status, field);
    }
    for (body, field) in [
        (order(NOBODY, "hat", 1), "lines[0].sku"),
        (order(NOBODY, "mug", 0), "lines[0].quantity"),
        (order("ann", "mug", 1), "user_id"),
        (json!({"user_id": NOBODY, "lines": []}).to_string(), "lines"),
    ] {
        refused(&shop.post_order(body, &[]).await, 422, Some(field));
    }
    for (status, body) in [shop.user(NOBODY).await, shop.order(NOBODY).await.unwrap()] {
        assert_eq!((status, &body["status"]), (404, &json!(404)));
    }
    for stream in ["users", "orders"] {
        assert!(stored(&shop.jetstream, stream, "").await.is_empty(), "nothing came of it");
    }
}
