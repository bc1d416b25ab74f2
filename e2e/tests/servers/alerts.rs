//! The rules of the chart: Prometheus takes them, each alert fires when it has to and is silent otherwise, the chart changes of them what its
//! values say, and each has its runbook.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
};

use jetwright_e2e::{path, prometheus::rules::of_chart};
use jetwright_testing::Program;
use serde_json::{Value, json};

use crate::operator_chart::{VALUES, render};

const RULES: &str = "../charts/jetwright/files/alerts";
const TESTS: &str = "../charts/jetwright/tests/alerts";
const RUNBOOKS: &str = "../docs/runbooks";

/// The files of a folder, in order.
pub fn files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(path(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{folder} is empty");
    files
}

fn promtool(args: &[&str], files: &[PathBuf]) {
    let output = Command::new(Program::Promtool.path()).args(args).args(files).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// Groups of rules by the name of their file.
pub fn plain() -> BTreeMap<String, Value> {
    of_chart().unwrap()
}

pub fn rules(groups: &Value) -> impl Iterator<Item = &Value> {
    let groups = groups["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap())
}

/// The alerts of the plain files, by name.
fn alerts() -> BTreeMap<String, Value> {
    let plain = plain();
    let rules = plain.values().flat_map(rules);
    rules.filter_map(|rule| Some((rule["alert"].as_str()?.to_owned(), rule.clone()))).collect()
}

/// What the chart makes of these values for the rules.
fn chart(values: &[&str]) -> Value {
    let show = ["--set=metrics.rules.enabled=true", "--show-only=templates/alerts.yaml"];
    serde_saphyr::from_str(&render(&[&VALUES, &show[..], values].concat()).unwrap()).unwrap()
}

fn alert<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    rules(&object["spec"]).find(|rule| rule["alert"] == name)
}

#[test]
fn prometheus_takes_every_rule_without_a_complaint() {
    promtool(&["check", "rules", "--lint=all", "--lint-fatal"], &files(RULES));
}

#[test]
fn each_alert_fires_when_it_has_to_and_is_silent_otherwise() {
    promtool(&["test", "rules"], &files(TESTS));
    let tests: String = files(TESTS).iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    for name in alerts().keys() {
        let cases: Vec<_> = tests.split(&format!("alertname=\"{name}\"")).skip(1).collect();
        let expected = cases.iter().map(|case| case.split("- expr").next().unwrap());
        assert!(expected.clone().any(|case| case.contains("labels:")), "no test in which {name} fires");
    }
}

#[test]
fn every_alert_says_how_bad_it_is_what_it_is_and_what_to_run() {
    for (name, rule) in alerts() {
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(["critical", "warning", "info"].contains(&severity), "{name}");
        assert!(rule["keep_firing_for"].is_string(), "{name} flickers");
        let annotation = |key: &str| rule["annotations"][key].as_str().unwrap_or_default().to_owned();
        assert!(!annotation("summary").is_empty(), "{name}");
        assert!(annotation("description").contains("Run: kubectl "), "{name} has no line to run");
        assert_eq!(annotation("runbook_url"), format!("docs/runbooks/{name}.md"));
        let thresholds = rule["expr"].as_str().unwrap().matches("# threshold").count();
        assert!(thresholds <= 1, "{name} has {thresholds} thresholds");
    }
}

#[test]
fn without_values_of_their_own_the_charts_rules_are_the_plain_files() {
    let plain = plain();
    let map = chart(&["--set=metrics.rules.kind=ConfigMap"]);
    assert_eq!(map["kind"], "ConfigMap");
    let parsed = |text: &Value| serde_saphyr::from_str::<Value>(text.as_str().unwrap()).unwrap();
    let data = map["data"].as_object().unwrap();
    assert_eq!(
        data.iter().map(|(file, text)| (file.clone(), parsed(text))).collect::<BTreeMap<_, _>>(),
        plain
    );

    let object = chart(&["--set=metrics.rules.labels.release=prometheus"]);
    assert_eq!(object["kind"], "PrometheusRule");
    assert_eq!(object["metadata"]["labels"]["release"], "prometheus");
    let groups = plain.values().flat_map(|file| file["groups"].as_array().unwrap().clone());
    assert_eq!(object["spec"]["groups"], json!(groups.collect::<Vec<_>>()));
    assert!(!render(&VALUES).unwrap().contains("PrometheusRule"), "the definition may be absent");
}

#[test]
fn values_change_one_alert_and_leave_the_others_as_they_are() {
    let own = "metrics.rules.alerts.StreamNearLimit";
    let object = chart(&[
        "--set=metrics.rules.alerts.ConsumerSaturated.enabled=false,metrics.rules.alertLabels.team=events",
        &format!("--set={own}.threshold=0.8,{own}.for=1h,{own}.keepFiringFor=2h,{own}.severity=critical"),
        &format!("--set={own}.labels.team=storage,{own}.annotations.contact=storage"),
        "--set=metrics.rules.runbookBase=https://runbooks.example.org/",
    ]);
    let near = alert(&object, "StreamNearLimit").unwrap();
    assert_eq!((&near["for"], &near["keep_firing_for"]), (&json!("1h"), &json!("2h")));
    assert_eq!(near["labels"], json!({"severity": "critical", "product": "jetwright", "team": "storage"}));
    assert_eq!(near["annotations"]["contact"], "storage");
    assert_eq!(near["annotations"]["runbook_url"], "https://runbooks.example.org/StreamNearLimit.md");
    let expression = alerts()["StreamNearLimit"]["expr"].as_str().unwrap().replace("0.9 #", "0.8 #");
    assert_eq!(near["expr"], expression);
    assert_eq!(alert(&object, "ConsumerSaturated"), None);
    let other = alert(&object, "StreamNoLeader").unwrap();
    assert_eq!(other["labels"], json!({"severity": "critical", "product": "jetwright", "team": "events"}));
    assert_eq!(other["expr"], alerts()["StreamNoLeader"]["expr"]);

    let records = chart(&["--set=metrics.rules.alertsEnabled=false"]);
    let names: Vec<_> = rules(&records["spec"]).map(|rule| rule["record"].as_str().unwrap()).collect();
    assert!(names.contains(&"jetwright:consumer_lag_seconds"), "{names:?}");
}

#[test]
fn a_value_for_an_alert_or_a_threshold_that_does_not_exist_is_refused_and_every_alert_can_be_named() {
    let render = |value: &str| {
        let value = format!("--set=metrics.rules.enabled=true,metrics.rules.alerts.{value}");
        render(&[&VALUES[..], &[&value]].concat())
    };
    assert!(render("ConsumerStaled.enabled=false").unwrap_err().contains("ConsumerStaled"));
    let refused = render("StreamNoLeader.threshold=1").unwrap_err();
    assert!(
        refused.contains("metrics.rules.alerts.StreamNoLeader.threshold: this alert has no threshold"),
        "{refused}"
    );
    let all: Vec<_> =
        alerts().keys().map(|name| format!("metrics.rules.alerts.{name}.enabled=false")).collect();
    let object = chart(&[&format!("--set={}", all.join(","))]);
    assert!(rules(&object["spec"]).all(|rule| rule["alert"].is_null()));
}

#[test]
fn each_alert_has_its_runbook_and_each_runbook_its_alert() {
    let pages: BTreeSet<_> =
        files(RUNBOOKS).iter().map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(pages, alerts().into_keys().collect());
    for (name, rule) in alerts() {
        let text = fs::read_to_string(path(&format!("{RUNBOOKS}/{name}.md"))).unwrap();
        let headings: Vec<_> = text.lines().filter(|line| line.starts_with('#')).collect();
        let wanted = [&format!("# {name}"), "## Meaning", "## Impact", "## Diagnosis", "## Mitigation"];
        assert_eq!(headings, wanted, "{name}");
        let diagnosis = text.split("## Diagnosis").nth(1).unwrap().split("## Mitigation").next().unwrap();
        assert!(diagnosis.contains("    $ kubectl "), "{name} shows no command with its output");
        if rule["expr"].as_str().unwrap().contains("# threshold") {
            assert!(text.contains("threshold"), "{name} does not tell of its threshold");
        }
    }
}

#[test]
fn the_table_of_the_documentation_has_every_alert_as_it_is() {
    let document = fs::read_to_string(path("../docs/monitoring.md")).unwrap();
    let rows: Vec<_> = document.lines().filter(|line| line.starts_with("| [")).collect();
    let alerts = alerts();
    assert_eq!(rows.len(), alerts.len());
    for (name, rule) in alerts {
        let threshold = rule["expr"].as_str().unwrap().lines().find_map(|line| {
            let number = line.split(" # threshold").next().filter(|number| *number != line)?;
            Some(number.rsplit(' ').next().unwrap().to_owned())
        });
        let row = format!(
            "| [{name}](runbooks/{name}.md) | {} | {} | {} | {} |",
            rule["labels"]["severity"].as_str().unwrap(),
            rule["annotations"]["summary"].as_str().unwrap(),
            rule["for"].as_str().unwrap_or("–"),
            threshold.as_deref().unwrap_or("–"),
        );
        assert!(rows.contains(&row.as_str()), "docs/monitoring.md has no row\n{row}");
    }
}
