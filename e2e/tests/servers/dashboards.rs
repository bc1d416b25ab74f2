//! The dashboards of the chart, without Grafana: they are whole, Prometheus can read every query, and nothing in them or in the rules asks for a
//! metric that does not exist.

use std::{collections::BTreeSet, fs, process::Command};

use jetwright_e2e::path;
use jetwright_testing::{Folder, Program};
use serde_json::{Value, json};

use crate::{
    alerts::{files, plain, rules},
    operator_chart::{VALUES, render},
};

const DASHBOARDS: &str = "../charts/jetwright/files/dashboards";
/// The tables of all metrics that there are.
const CATALOGUE: &str = "../docs/metrics.md";

/// Dashboards by the name of their file.
fn dashboards() -> Vec<(String, Value)> {
    let parsed = |file: &std::path::PathBuf| {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        (name, serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap())
    };
    files(DASHBOARDS).iter().map(parsed).collect()
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row")
}

/// The queries of all panels, each with where it stands.
pub fn queries() -> Vec<(String, String)> {
    let dashboards = dashboards();
    let of = |(file, dashboard): &(String, Value)| {
        let of_panel = |panel: &Value| {
            let place = format!("{file}: {}", panel["title"].as_str().unwrap());
            let targets = panel["targets"].as_array().unwrap().clone();
            targets
                .into_iter()
                .map(move |target| (place.clone(), target["expr"].as_str().unwrap().to_owned()))
        };
        panels(dashboard).flat_map(of_panel).collect::<Vec<_>>()
    };
    dashboards.iter().flat_map(of).collect()
}

/// Names of metrics in a PromQL expression: words of ours, or of a process, before a brace, a bracket or a blank.
fn metrics(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    let known = ["jetwright_", "jetwright:", "process_", "http_server_"];
    words.filter(|word| known.iter().any(|start| word.starts_with(start))).map(str::to_owned).collect()
}

#[test]
fn every_dashboard_has_its_datasource_by_variable_and_panels_that_say_what_they_show() {
    let mut uids = BTreeSet::new();
    for (file, dashboard) in dashboards() {
        assert!(uids.insert(dashboard["uid"].as_str().unwrap().to_owned()), "{file}");
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        assert_eq!(variables[0]["type"], "datasource", "{file}");
        for thing in panels(&dashboard).chain(variables.iter().skip(1)) {
            assert_eq!(thing["datasource"]["uid"], "${datasource}", "{file}: {thing}");
        }
        for panel in panels(&dashboard) {
            assert!(!panel["title"].as_str().unwrap().is_empty(), "{file}");
            assert!(!panel["targets"].as_array().unwrap().is_empty(), "{file}: {}", panel["title"]);
        }
    }
    assert_eq!(uids.len(), 6);
}

#[test]
fn prometheus_can_read_every_query_of_a_panel() {
    let folder = Folder::new("dashboards");
    let as_rule = |(index, (_, query)): (usize, (String, String))| json!({"record": format!("q{index}"), "expr": query});
    let rules: Vec<_> = queries().into_iter().enumerate().map(as_rule).collect();
    assert!(rules.len() > 60, "{}", rules.len());
    let file = folder.path().join("queries.yaml");
    fs::write(&file, json!({"groups": [{"name": "queries", "rules": rules}]}).to_string()).unwrap();
    let output = Command::new(Program::Promtool.path()).args(["check", "rules"]).arg(file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_metric_in_a_panel_or_a_rule_is_one_that_a_program_exports_or_a_rule_records() {
    let plain = plain();
    let rules: Vec<_> = plain.values().flat_map(rules).collect();
    let mut known: BTreeSet<String> =
        rules.iter().filter_map(|rule| rule["record"].as_str()).map(str::to_owned).collect();
    let catalogue = fs::read_to_string(path(CATALOGUE)).unwrap();
    let rows = catalogue.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    for (name, rest) in rows {
        known.insert(name.to_owned());
        if rest.starts_with("histogram") {
            known.extend(["bucket", "count", "sum"].map(|part| format!("{name}_{part}")));
        }
    }
    let rules = rules.iter().map(|rule| {
        let name = rule["alert"].as_str().or(rule["record"].as_str()).unwrap();
        (name.to_owned(), rule["expr"].as_str().unwrap().to_owned())
    });
    let mut count = 0;
    for (place, expression) in rules.chain(queries()) {
        for metric in metrics(&expression) {
            assert!(known.contains(&metric), "{place} asks for {metric}, which nobody exports");
            count += 1;
        }
    }
    assert!(count > 100, "{count}");
}

#[test]
fn the_chart_gives_grafanas_sidecar_every_dashboard_as_it_is() {
    let values = [
        "--set=metrics.dashboards.enabled=true,metrics.dashboards.labelValue=yes,metrics.dashboards.labelKey=dashboards",
    ];
    let show = ["--show-only=templates/dashboards.yaml"];
    let map: Value =
        serde_saphyr::from_str(&render(&[&VALUES, &values[..], &show].concat()).unwrap()).unwrap();
    assert_eq!(map["metadata"]["labels"]["dashboards"], "yes");
    let data = map["data"].as_object().unwrap();
    let dashboards = dashboards();
    assert_eq!(data.len(), dashboards.len());
    for (file, dashboard) in dashboards {
        let text = data[&format!("jetwright-{file}")].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Value>(text).unwrap(), dashboard, "{file}");
    }
}
