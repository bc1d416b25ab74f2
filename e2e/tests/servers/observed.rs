//! The dashboards beside a demo that runs: a real Prometheus scrapes it, with the chart's rules, and has an answer to every query of a panel.

use std::{fs, process::Command, time::Duration};

use jetwright_e2e::path;
use jetwright_testing::{Folder, Process, Program, await_until, free_port, target_folder};
use serde_json::{Value, json};

use crate::dashboards::queries;

/// Long enough for a rate over figures that are sampled every 30 s.
const BOUND: Duration = Duration::from_mins(4);

/// The values of the dashboards' variables.
const VARIABLES: [(&str, &str); 6] = [
    ("$namespace", "shop"),
    ("$event_stream", "orders"),
    ("$event_consumer", "order-fulfilment"),
    ("$job", "operator"),
    ("$pod", ".*"),
    ("$severity", ".*"),
];

/// What the demo has nothing of: limits and thresholds of its streams, lag of each copy, and alerts.
const ABSENT: [&str; 6] = ["_max_bytes", "_max_messages", "fill_ratio", "_monitoring{", "peer_lag", "ALERTS"];

/// Where the parts of the demo are.
fn demo() -> Value {
    let folder =
        std::env::var_os("JETWRIGHT_DEMO_FOLDER").map_or_else(|| target_folder().join("demo"), Into::into);
    let parts = fs::read(folder.join("demo.json"))
        .unwrap_or_else(|error| panic!("no demo runs, make demo starts one: {error}"));
    serde_json::from_slice(&parts).unwrap()
}

/// Addresses of the services' pods, with their names.
fn pods(demo: &Value) -> Vec<(String, String)> {
    let template = r#"{range .items[*]}{.metadata.name} {.status.podIP}{"\n"}{end}"#;
    let output = Command::new(demo["kubectl"].as_str().unwrap())
        .env("KUBECONFIG", demo["kubeconfig"].as_str().unwrap())
        .args(["get", "pods", "-n", "shop", "-l", "jetwright.dev/workload", "-o"])
        .arg(format!("jsonpath={template}"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let pods = text.lines().filter_map(|line| line.split_once(' '));
    pods.map(|(name, address)| (name.to_owned(), address.to_owned())).collect()
}

fn configuration(demo: &Value) -> Value {
    let rules = path("../charts/jetwright/files/alerts/*.yaml");
    let operator = demo["operator"].as_str().unwrap().trim_start_matches("http://");
    let pods = pods(demo);
    assert!(pods.len() >= 2, "{pods:?}");
    let services = pods.iter().map(
        |(name, address)| json!({"targets": [format!("{address}:9090")], "labels": {"namespace": "shop", "pod": name}}),
    );
    json!({
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": [rules],
        "scrape_configs": [
            {
                "job_name": "operator", "honor_labels": true,
                "static_configs": [{"targets": [operator], "labels": {"namespace": "jetwright", "pod": "operator"}}],
            },
            {"job_name": "services", "static_configs": services.collect::<Vec<_>>()},
        ],
    })
}

async fn results(url: &str, query: &str) -> Result<usize, String> {
    let query = VARIABLES.iter().fold(query.to_owned(), |query, (name, value)| query.replace(name, value));
    let asked = reqwest::Url::parse_with_params(&format!("{url}/api/v1/query"), [("query", &query)]).unwrap();
    let text = reqwest::get(asked).await.map_err(|error| error.to_string())?.text().await.unwrap();
    let answer: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
    let result = answer["data"]["result"].as_array().ok_or(text)?;
    Ok(result.len())
}

#[tokio::test]
#[ignore = "needs a demo that runs: make check-dashboards"]
async fn no_panel_is_empty_beside_the_demo() {
    let folder = Folder::new("prometheus");
    let file = folder.path().join("prometheus.yml");
    fs::write(&file, configuration(&demo()).to_string()).unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let _prometheus = Process::builder(Program::Prometheus.path())
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
        .arg(format!("--web.listen-address={address}"))
        .start();
    let url = format!("http://{address}");
    let queries = queries();
    let expected: Vec<_> =
        queries.iter().filter(|(_, query)| !ABSENT.iter().any(|word| query.contains(word))).collect();
    assert!(expected.len() > 50, "{}", expected.len());
    await_until("every panel has something to show", BOUND, || async {
        let mut empty = Vec::new();
        for (place, query) in &expected {
            if results(&url, query).await? == 0 {
                empty.push(format!("{place}: {query}"));
            }
        }
        if empty.is_empty() { Ok(()) } else { Err(empty.join("\n")) }
    })
    .await;
    for (place, query) in &queries {
        results(&url, query).await.unwrap_or_else(|error| panic!("{place}: {error}"));
    }
}
