//! The dashboards of the chart, without Grafana: they are whole, and Prometheus can read every query.

use std::{collections::BTreeSet, fs, process::Command};

use jetwright_testing::{Folder, Program};
use serde_json::{Value, json};

use crate::{
    alerts::files,
    operator_chart::{VALUES, render},
};

const DASHBOARDS: &str = "../charts/jetwright/files/dashboards";

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
