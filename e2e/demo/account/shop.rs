//! The shop over HTTP. The caller is patient: it sends a request again, under its key, until somebody answers it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::state::Parts;

/// How long it takes at most until an order is decided, and a request answered, while pods are killed.
const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(100);

/// The shop.
pub struct Shop {
    client: Client,
    services: BTreeMap<String, String>,
}

impl Shop {
    pub fn new(parts: &Parts) -> Result<Self> {
        let client = Client::builder().timeout(Duration::from_secs(20)).build()?;
        Ok(Self { client, services: parts.services.clone() })
    }

    /// Registers a user; the id.
    pub async fn register(&self) -> Result<String> {
        let body = json!({"email": format!("ann-{}@example.org", uuid::Uuid::new_v4())});
        let user = self.ask(Method::POST, "user-directory", "/users", Some(body), "").await?;
        text(&user["id"])
    }

    /// Places an order, under a key if it is not empty; the order's id.
    pub async fn place(&self, user: &str, sku: &str, quantity: u32, key: &str) -> Result<String> {
        let body = json!({"user_id": user, "lines": [{"sku": sku, "quantity": quantity}]});
        let order = self.ask(Method::POST, "order-fulfilment", "/orders", Some(body), key).await?;
        text(&order["order_id"])
    }

    /// An order, once it is decided.
    pub async fn ended(&self, order: &str) -> Result<Value> {
        let end = Instant::now() + PATIENCE;
        loop {
            let found =
                self.ask(Method::GET, "order-fulfilment", &format!("/orders/{order}"), None, "").await?;
            if found["state"] != "placed" {
                return Ok(found);
            }
            if Instant::now() > end {
                bail!("order {order} was not decided within {PATIENCE:?}");
            }
            sleep(PAUSE).await;
        }
    }

    async fn ask(
        &self,
        method: Method,
        service: &str,
        path: &str,
        body: Option<Value>,
        key: &str,
    ) -> Result<Value> {
        let url = format!("{}{path}", self.services.get(service).context("no such service")?);
        let generated = uuid::Uuid::new_v4().to_string();
        let key = if key.is_empty() { &generated } else { key };
        let end = Instant::now() + PATIENCE;
        loop {
            let mut request = self.client.request(method.clone(), &url).header("idempotency-key", key);
            if let Some(body) = &body {
                request = request.json(body);
            }
            let failure = match request.send().await {
                Ok(answer) if answer.status().is_success() => return Ok(answer.json().await?),
                Ok(answer) if answer.status().is_server_error() => answer.text().await.unwrap_or_default(),
                Ok(answer) => bail!("{url}: {} {}", answer.status(), answer.text().await.unwrap_or_default()),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() > end {
                bail!("{url} was not answered within {PATIENCE:?}: {failure}");
            }
            sleep(PAUSE).await;
        }
    }
}

fn text(value: &Value) -> Result<String> {
    Ok(value.as_str().context("an id in the answer")?.to_owned())
}
