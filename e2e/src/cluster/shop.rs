//! The shop, over HTTP. Callers are patient: they send a request again, under its key, until somebody answers it.

use std::time::Duration;

use jetwright_testing::await_until;
use serde_json::{Value, json};

use super::{
    SHOP, SOON,
    gateway::{Answer, Gateway},
};

/// How long the whole of an order may take while pods are killed or replaced: its attempts take three minutes before it is rejected.
const DECIDED: Duration = Duration::from_mins(4);

/// The shop.
pub struct Shop<'a> {
    gateway: &'a Gateway,
}

impl<'a> Shop<'a> {
    pub(super) fn new(gateway: &'a Gateway) -> Self {
        Self { gateway }
    }

    /// Registers a user, and returns the id.
    pub async fn register(&self, email: &str) -> String {
        let answer = self.post("user-directory", "/users", email, &json!({ "email": email })).await;
        assert!(matches!(answer.status, 200 | 201), "{answer:?}");
        text(&answer.body["id"])
    }

    /// Places an order under a key, and returns its id.
    pub async fn place(&self, user: &str, sku: &str, quantity: u32, key: &str) -> String {
        let order = json!({"user_id": user, "lines": [{"sku": sku, "quantity": quantity}]});
        let answer = self.post("order-fulfilment", "/orders", key, &order).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        text(&answer.body["order_id"])
    }

    /// An order, once it is confirmed or rejected.
    pub async fn ended(&self, order: &str) -> Value {
        await_until(&format!("the end of order {order}"), DECIDED, async || {
            let answer = self.gateway.get(&service("order-fulfilment"), &format!("/orders/{order}")).await?;
            let ended = answer.status == 200 && answer.body["state"] != "placed";
            if ended { Ok(answer.body) } else { Err(format!("{answer:?}")) }
        })
        .await
    }

    /// Requires that an order is confirmed.
    pub async fn confirmed(&self, order: &str) -> Value {
        let ended = self.ended(order).await;
        assert_eq!(ended["state"], "confirmed", "{ended}");
        ended
    }

    /// What the payment simulator decided about an order.
    pub async fn payment(&self, order: &str) -> Value {
        await_until(&format!("the payment of order {order}"), SOON, async || {
            let answer =
                self.gateway.get(&service("payment-simulator"), &format!("/authorizations/{order}")).await?;
            if answer.status == 200 { Ok(answer.body) } else { Err(format!("{answer:?}")) }
        })
        .await
    }

    async fn post(&self, name: &str, path: &str, key: &str, body: &Value) -> Answer {
        await_until(&format!("an answer to {path} {key}"), SOON, async || {
            let answer = self.gateway.post(&service(name), path, key, body).await?;
            // Where no pod is ready, the API server says 503 by itself; 502 and 504 where one ends meanwhile.
            if matches!(answer.status, 500 | 502..=504) { Err(format!("{answer:?}")) } else { Ok(answer) }
        })
        .await
    }
}

fn service(name: &str) -> String {
    format!("{SHOP}/{name}:http")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}
