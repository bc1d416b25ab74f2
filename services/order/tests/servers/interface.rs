use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::shop::{Running, Shop};

async fn problem(service: &Running, body: Value) -> (u16, Value) {
    let (status, problem) = service.post(&body, None).await;
    assert_eq!(problem["status"], status, "{problem}");
    (status, problem["errors"].clone())
}

#[tokio::test]
async fn wrong_orders_are_refused_with_their_fields() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let user = Uuid::now_v7();
    let order =
        |sku: &str, quantity: Value| json!({"user_id": user, "lines": [{"sku": sku, "quantity": quantity}]});
    for (body, field) in [
        (order("hat", json!(1)), "lines[0].sku"),
        (order("mug", json!(0)), "lines[0].quantity"),
        (order("mug", json!(-1)), "lines[0].quantity"),
        (json!({"user_id": user, "lines": []}), "lines"),
        (json!({"user_id": "ann", "lines": []}), "user_id"),
        (json!({"user_id": user, "lines": [], "coupon": "x"}), "coupon"),
    ] {
        let (status, errors) = problem(&service, body.clone()).await;
        assert_eq!((status, &errors[0]["field"]), (422, &json!(field)), "{body}: {errors}");
    }
    let sent = async |body: String| {
        let request = service.client.post(format!("{}/orders", service.url)).body(body);
        let response = request.header("content-type", "application/json").send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        response.status().as_u16()
    };
    assert_eq!(sent("{".to_owned()).await, 400);
    assert_eq!(sent(" ".repeat(70_000)).await, 413);
    assert_eq!(shop.events("orders").await, Vec::<String>::new());
    for nowhere in [Uuid::now_v7().to_string(), "seven".to_owned()] {
        assert_eq!(service.get(&nowhere).await.0, 404);
    }
    service.stop().await;
}

#[tokio::test]
async fn a_key_places_one_order_however_often_it_is_sent() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let user = shop.register().await;
    let order = |quantity: u32| json!({"user_id": user, "lines": [{"sku": "mug", "quantity": quantity}]});
    let first = service.post(&order(1), Some("k-1")).await;
    assert_eq!(first.0, 202);
    assert_eq!(service.post(&order(1), Some("k-1")).await, first);
    let id = first.1["order_id"].as_str().unwrap();
    service.ended(id).await;
    assert_eq!(service.post(&order(1), Some("k-1")).await, first);
    let (status, problem) = service.post(&order(2), Some("k-1")).await;
    assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!("Idempotency-Key")));
    assert_eq!(shop.events("orders").await, ["orders.*.placed", "orders.*.confirmed"]);
    service.stop().await;
}

#[tokio::test]
async fn a_key_has_its_answer_also_when_the_catalogue_has_changed() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    let user = shop.register().await;
    let order = |sku: &str| json!({"user_id": user, "lines": [{"sku": sku, "quantity": 1}]});
    let first = service.post(&order("mug"), Some("k-1")).await;
    assert_eq!(first.0, 202);
    service.stop().await;
    let service = shop.serve_with("pin=100:10".parse().unwrap()).await;
    assert_eq!(service.post(&order("mug"), Some("k-1")).await, first);
    // Another order under the key, of what was sold, is sold now, or never was.
    for sku in ["rare", "pin", "hat"] {
        let (status, problem) = service.post(&order(sku), Some("k-1")).await;
        assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!("Idempotency-Key")), "{sku}");
    }
    let (status, problem) = service.post(&order("mug"), Some("k-2")).await;
    assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!("lines[0].sku")));
    service.stop().await;
}

#[tokio::test]
async fn without_nats_an_order_is_not_taken_and_the_caller_told_in_bounded_time() {
    let shop = Shop::open().await;
    let service = shop.serve().await;
    shop.nats.kill();
    let begun = Instant::now();
    let body = json!({"user_id": Uuid::now_v7(), "lines": [{"sku": "mug", "quantity": 1}]});
    let request = service.client.post(format!("{}/orders", service.url)).json(&body);
    let response = request.send().await.unwrap();
    assert_eq!(response.status().as_u16(), 503);
    assert_eq!(response.headers()["retry-after"], "1");
    assert!(begun.elapsed() < Duration::from_secs(8), "it took {:?}", begun.elapsed());
    shop.nats.start_again().await;
    let user = shop.register().await;
    let id = service.place(&user, "mug", 1).await;
    assert_eq!(service.ended(&id).await["state"], "confirmed");
    service.stop().await;
}
