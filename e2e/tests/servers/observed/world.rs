//! The demo with Prometheus and Jaeger, and what a test asks of it.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use async_nats::{ConnectOptions, jetstream};
use jetwright_e2e::{
    jaeger,
    prometheus::{self, Labels},
};
use jetwright_testing::await_until;
use reqwest::Method;
use serde_json::{Value, json};

use crate::demo::{Demo, assert_nothing_left};

/// Longer than anything takes that is looked at here, beside other tests.
const BOUND: Duration = Duration::from_secs(90);
/// The administrator of the demo's NATS.
const ADMINISTRATOR: (&str, &str) = ("admin", "demo");
/// What Prometheus counts where it does not keep what it was given, or cannot evaluate a rule.
const LOST: [&str; 5] = [
    "prometheus_target_scrapes_sample_duplicate_timestamp_total",
    "prometheus_target_scrapes_sample_out_of_order_total",
    "prometheus_target_scrapes_sample_out_of_bounds_total",
    "prometheus_target_scrapes_exceeded_sample_limit_total",
    "prometheus_rule_evaluation_failures_total",
];

pub struct World {
    demo: Demo,
    parts: Value,
    pub prometheus: prometheus::Client,
    pub jaeger: jaeger::Client,
    http: reqwest::Client,
}

impl World {
    /// Starts the demo, which shows itself an order that fails, and an alert.
    pub fn start() -> Self {
        let demo = Demo::new();
        let (account, _) = demo.run(&["up", "--observe"]);
        for part in [
            "An order fails on purpose: ",
            "payment_authorization ",
            "ERROR the card's issuer declined",
            "/trace/",
            "docs/runbooks/DeadLettersArriving.md",
        ] {
            assert!(account.contains(part), "nothing of {part:?} in\n{account}");
        }
        let parts = demo.parts();
        let url = |name: &str| parts["observers"][name].as_str().unwrap().to_owned();
        Self {
            prometheus: prometheus::Client::new(url("prometheus")),
            jaeger: jaeger::Client::new(url("jaeger")),
            http: reqwest::Client::new(),
            demo,
            parts,
        }
    }

    /// Ends it, and requires that Prometheus and Jaeger end with it.
    pub fn end(&self) {
        let (processes, folder) = self.demo.processes();
        self.demo.run(&["down"]);
        assert_nothing_left(&self.demo, &processes, &folder);
    }

    pub fn kubectl(&self, args: &[&str]) -> String {
        let output = Command::new(self.parts["kubectl"].as_str().unwrap())
            .env("KUBECONFIG", self.parts["kubeconfig"].as_str().unwrap())
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub async fn jetstream(&self) -> jetstream::Context {
        let (user, password) = ADMINISTRATOR;
        let options = ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned());
        let servers: Vec<_> = self.parts["nats"].as_str().unwrap().split(',').collect();
        jetstream::new(options.connect(servers).await.unwrap())
    }

    /// Names of the NATS servers, as their configurations have them, and ids of their processes.
    pub fn nats_servers(&self) -> Vec<(String, u32)> {
        let named = |(pid, _): (u32, String)| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            let configuration = line.split('\0').find(|word| word.ends_with("/nats-server.conf"))?;
            let text = fs::read_to_string(configuration).ok()?;
            Some((text.lines().next()?.strip_prefix("server_name: ")?.to_owned(), pid))
        };
        self.demo.processes().0.into_iter().filter_map(named).collect()
    }

    async fn ask(&self, method: Method, service: &str, path: &str, body: Option<Value>) -> Value {
        let url = format!("{}{path}", self.parts["services"][service].as_str().unwrap());
        await_until(&format!("an answer of {url}"), BOUND, async || {
            let mut request = self.http.request(method.clone(), &url);
            if let Some(body) = &body {
                request = request.json(body);
            }
            request.send().await?.error_for_status()?.json().await
        })
        .await
    }

    /// Registers a user, and returns the id.
    pub async fn register(&self) -> String {
        let body = json!({"email": "eve@example.org"});
        let user = self.ask(Method::POST, "user-directory", "/users", Some(body)).await;
        user["id"].as_str().unwrap().to_owned()
    }

    /// Places an order, and returns the id.
    pub async fn place(&self, user: &str, sku: &str, quantity: u32) -> String {
        let body = json!({"user_id": user, "lines": [{"sku": sku, "quantity": quantity}]});
        let order = self.ask(Method::POST, "order-fulfilment", "/orders", Some(body)).await;
        order["order_id"].as_str().unwrap().to_owned()
    }

    /// An order, once it has ended.
    pub async fn ended(&self, order: &str) -> Value {
        await_until(&format!("the end of order {order}"), BOUND, async || {
            let order = self.ask(Method::GET, "order-fulfilment", &format!("/orders/{order}"), None).await;
            if order["state"] == "placed" { Err("not yet") } else { Ok(order) }
        })
        .await
    }

    /// Lines that the pods of the shop have logged.
    pub fn logged(&self) -> Vec<Value> {
        let logs: PathBuf = self.demo.home.join("logs");
        // A pod may go meanwhile, and its log with it.
        let texts =
            fs::read_dir(logs).unwrap().filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
        let lines = texts.flat_map(|text| text.lines().map(ToOwned::to_owned).collect::<Vec<_>>());
        lines.filter_map(|line| serde_json::from_str(&line).ok()).collect()
    }

    /// Waits until an alert with these labels fires.
    pub async fn fires<const N: usize>(&self, alert: &str, labels: [(&str, &str); N]) {
        await_until(&format!("{alert} {labels:?} to fire"), BOUND, async || {
            let firing = self.prometheus.firing().await?;
            anyhow::ensure!(firing.iter().any(|found| is(found, alert, &labels)), "{firing:?}");
            anyhow::Ok(())
        })
        .await;
    }

    /// Waits until no alert with these labels fires.
    pub async fn resolves<const N: usize>(&self, alert: &str, labels: [(&str, &str); N]) {
        await_until(&format!("{alert} {labels:?} to be resolved"), BOUND, async || {
            let firing = self.prometheus.firing().await?;
            anyhow::ensure!(!firing.iter().any(|found| is(found, alert, &labels)), "{firing:?}");
            anyhow::Ok(())
        })
        .await;
    }

    /// Waits until the operator and each pod of a service are scraped without an error.
    pub async fn everything_is_scraped(&self) {
        await_until("everything is scraped", BOUND, async || {
            let targets = self.prometheus.targets().await?;
            let of = |job: &str| targets.iter().filter(|target| target.labels["job"] == job).count();
            let count = ["jetwright-operator", "jetwright-services", "prometheus"].map(of);
            anyhow::ensure!(count == [1, 3, 1], "{count:?}: {targets:?}");
            anyhow::ensure!(targets.iter().all(|target| target.is_up), "{targets:?}");
            anyhow::Ok(())
        })
        .await;
    }

    /// Requires that Prometheus kept every sample that it was given, and could evaluate every rule.
    pub async fn no_sample_was_lost(&self) {
        for counter in LOST {
            let found = self.prometheus.query(counter).await.unwrap();
            assert!(!found.is_empty(), "{counter} is not there");
            for sample in found {
                assert!(sample.value == 0.0, "{counter}: {sample:?}");
            }
        }
        assert_eq!(self.prometheus.failed_rules().await.unwrap(), [""; 0]);
    }
}

fn is(found: &Labels, alert: &str, labels: &[(&str, &str)]) -> bool {
    let has = |name: &str, value: &str| found.get(name).is_some_and(|found| found == value);
    has("alertname", alert) && labels.iter().all(|(name, value)| has(name, value))
}
