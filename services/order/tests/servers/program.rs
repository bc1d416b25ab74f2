//! The program itself, as the operator starts it.

use jetwright_process::{http, metrics};
use jetwright_testing::{Folder, Process, ProcessBuilder, await_until, binary, free_port};
use serde_json::{Value, json};

use crate::shop::{SOON, Shop, WARES};

#[tokio::test]
async fn wrong_settings_stop_it_at_the_start_with_every_mistake_named() {
    let process = Process::builder(binary("jetwright-order-service"))
        .env("ORDERS_HTTP_ADDRESS", "everywhere")
        .env("ORDERS_CATALOGUE", "mug")
        .env("ORDERS_PAYMENTS_TIMEOUT_MILLISECONDS", "0")
        .env("JETWRIGHT_BINDINGS", "/nowhere.yaml")
        .env("JETWRIGHT_ADMIN_ADDRESS", "9090")
        .start();
    assert_eq!(process.wait_exit(SOON).await.code(), Some(2));
    let log = process.log();
    for name in [
        "http.address (ORDERS_HTTP_ADDRESS)",
        "catalogue (ORDERS_CATALOGUE)",
        "payments.url (ORDERS_PAYMENTS_URL)",
        "payments.timeoutMilliseconds",
        "NATS_URL",
        "/nowhere.yaml",
        "JETWRIGHT_ADMIN_ADDRESS",
    ] {
        assert!(log.contains(name), "{name} is not in:\n{log}");
    }
}

/// The running program.
pub struct Program {
    pub process: Process,
    pub url: String,
    admin: String,
}

impl Program {
    pub async fn start(shop: &Shop) -> Self {
        let (http, admin) = (free_port(), free_port());
        let process = builder(shop)
            .env("ORDERS_HTTP_ADDRESS", format!("127.0.0.1:{http}"))
            .env("JETWRIGHT_ADMIN_ADDRESS", format!("127.0.0.1:{admin}"))
            .start();
        await_until("readiness", SOON, async || {
            let answer = reqwest::get(format!("http://127.0.0.1:{admin}/readyz")).await;
            answer.and_then(reqwest::Response::error_for_status)
        })
        .await;
        Self { process, url: format!("http://127.0.0.1:{http}"), admin: format!("http://127.0.0.1:{admin}") }
    }

    /// Kills the program, which has no time to finish anything.
    pub fn kill(self) {
        self.process.kill();
    }
}

/// The program with the settings of a shop.
pub fn builder(shop: &Shop) -> ProcessBuilder {
    let folder = Folder::new("order-service");
    let bindings = folder.path().join("bindings.yaml");
    std::fs::write(&bindings, serde_saphyr::to_string(&shop.bindings()).unwrap()).unwrap();
    Process::builder(binary("jetwright-order-service"))
        .folder(&folder)
        .env("NATS_URL", shop.nats.url())
        .env("JETWRIGHT_BINDINGS", &bindings)
        .env("ORDERS_PAYMENTS_URL", &shop.payments_url)
        .env("ORDERS_PAYMENTS_TIMEOUT_MILLISECONDS", "2000")
        .env("ORDERS_CATALOGUE", WARES)
}

#[tokio::test]
async fn it_carries_one_trace_from_the_callers_request_to_the_end_of_the_order() {
    let shop = Shop::open().await;
    let Program { process, url, .. } = Program::start(&shop).await;

    let user = shop.register().await;
    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    let accepted: Value = reqwest::Client::new()
        .post(format!("{url}/orders"))
        .header("traceparent", format!("00-{trace_id}-b7ad6b7169203331-01"))
        .json(&json!({"user_id": user, "lines": [{"sku": "mug", "quantity": 1}]}))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let order_id = accepted["order_id"].as_str().unwrap();
    let line = process.await_log("ended order", SOON).await;
    assert!(line.contains(trace_id) && line.contains(order_id), "{line}");
    let placed = shop.jetstream.get_stream("orders").await.unwrap().get_raw_message(1).await.unwrap();
    assert!(placed.headers.get("traceparent").unwrap().as_str().contains(trace_id));
    assert_eq!(shop.gateway.traces(), [trace_id.to_owned()]);

    process.signal("TERM");
    assert_eq!(process.wait_exit(SOON).await.code(), Some(0), "{}", process.log());
}

#[tokio::test]
async fn it_exports_what_the_catalogues_have_and_nothing_else() {
    let shop = Shop::open().await;
    let program = Program::start(&shop).await;
    let user = shop.register().await;
    let order = json!({"user_id": user, "lines": [{"sku": "mug", "quantity": 1}]});
    let placed = reqwest::Client::new().post(format!("{}/orders", program.url)).json(&order).send().await;
    assert_eq!(placed.unwrap().status(), 202);
    program.process.await_log("ended order", SOON).await;
    let scraped = reqwest::get(format!("{}/metrics", program.admin)).await.unwrap().text().await.unwrap();
    let own = jetwright_order_service::metrics::CATALOGUE;
    let catalogues = [own, jetwright_runtime::METRICS, http::METRICS, metrics::program::CATALOGUE];
    assert_eq!(metrics::exposition::deviations(&scraped, &catalogues), [""; 0]);
    for row in own {
        assert!(scraped.contains(&format!("\n{}", row.name)), "{} is not in\n{scraped}", row.name);
    }
}

#[tokio::test]
async fn it_says_how_it_is_called_and_refuses_what_it_does_not_know() {
    for (argument, code, told) in [
        ("--help", 0, "Usage: jetwright-order-service [COMMAND]"),
        ("--version", 0, "jetwright-order-service "),
        ("--catalogue", 2, "unexpected argument '--catalogue'"),
    ] {
        let process = Process::builder(binary("jetwright-order-service")).arg(argument).start();
        assert_eq!(process.wait_exit(SOON).await.code(), Some(code), "{argument}");
        process.await_log(told, SOON).await;
    }
}

#[tokio::test]
async fn one_command_makes_what_is_known_of_users_anew() {
    let shop = Shop::open().await;
    let user = shop.register().await;
    let bucket = shop.jetstream.get_key_value("order-users").await.unwrap();
    bucket.put("nobody", "{}".into()).await.unwrap();
    let rebuild = builder(&shop).arg("rebuild").start();
    assert_eq!(rebuild.wait_exit(SOON).await.code(), Some(0), "{}", rebuild.log());
    let known: Value = serde_json::from_slice(&bucket.get(&user).await.unwrap().unwrap()).unwrap();
    assert_eq!((&known["sequence"], &known["entry"]), (&json!(1), &json!({})));
    assert_eq!(bucket.get("nobody").await.unwrap(), None);
}
