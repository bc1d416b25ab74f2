//! A real Prometheus with the rules of the chart, which scrapes the operator and the pods of services as docs/monitoring.md says. What takes
//! minutes there takes seconds here ([`DIVISOR`]).

mod client;
mod discovery;
pub mod rules;

use std::{fs, time::Duration};

use anyhow::Result;
pub use client::{Client, Labels, Sample, Target};
use jetwright_testing::{Folder, Process, Program, start_server};
use kube::Client as Kubernetes;
use serde_json::{Value, json};
use tokio::task::AbortHandle;

/// By which every duration of the rules is divided, and every interval of what Prometheus asks, so that an hour is a minute.
pub const DIVISOR: u64 = 60;
/// Between two scrapes, and two evaluations: a minute, divided.
const INTERVAL: &str = "1s";
/// It usually answers within a second; a machine that builds something meanwhile takes longer.
const START: Duration = Duration::from_mins(1);
/// Folder of its pages for a browser, beside a program that was taken out of Debian's package.
const PAGES: &str = "prometheus-pages";
/// File of the configuration, and beside it that of the pods that are scraped, and the folder of rules. It runs in their folder.
const CONFIGURATION: &str = "prometheus.json";
const PODS: &str = "pods.json";
const RULES: &str = "rules";

/// A running Prometheus.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    url: String,
    discovery: AbortHandle,
}

/// What it scrapes.
#[derive(Clone, Copy)]
pub struct Scraped<'a> {
    /// The cluster whose pods it finds.
    pub cluster: &'a Kubernetes,
    /// URL of the operator's admin address, where that is no pod.
    pub operator: &'a str,
}

impl Prometheus {
    /// Starts one, and returns when it is ready.
    ///
    /// # Errors
    ///
    /// When there is none, or it does not start.
    pub async fn try_start(scraped: Scraped<'_>) -> Result<Self> {
        let program = Program::Prometheus.try_path()?;
        let folder = Folder::new("prometheus");
        let rules = folder.path().join(RULES);
        fs::create_dir(&rules)?;
        for (name, file) in rules::of_chart()? {
            fs::write(rules.join(name), rules::divided(&file, DIVISOR)?.to_string())?;
        }
        let how = |[port]: [u16; 1]| {
            let address = format!("127.0.0.1:{port}");
            let configuration = configuration(scraped.operator, &address).to_string();
            fs::write(folder.path().join(CONFIGURATION), configuration)?;
            let mut start = Process::builder(&program)
                .name("prometheus")
                .folder(&folder)
                .arg(format!("--config.file={CONFIGURATION}"))
                .arg("--storage.tsdb.path=data")
                .arg(format!("--web.listen-address={address}"))
                .arg("--enable-feature=exemplar-storage");
            // An installed Prometheus finds its pages by itself.
            if let Some(pages) = program.parent().map(|bin| bin.join(PAGES)).filter(|pages| pages.is_dir()) {
                start = start.arg(format!("--web.local-assets={}", pages.display()));
            }
            Ok((start, format!("http://{address}/-/ready")))
        };
        let (process, [port]) = start_server(START, how).await?;
        let discovery = tokio::spawn(discovery::follow(scraped.cluster.clone(), folder.path().join(PODS)));
        Ok(Self { process, url: format!("http://127.0.0.1:{port}"), discovery: discovery.abort_handle() })
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.discovery.abort();
    }
}

/// The configuration, in JSON, which is YAML as well. Pure.
fn configuration(operator: &str, own: &str) -> Value {
    let operator = operator.trim_start_matches("http://");
    json!({
        "global": {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL},
        "rule_files": [format!("{RULES}/*")],
        "scrape_configs": [
            {
                "job_name": "jetwright-operator",
                "honor_labels": true,
                "static_configs": [{"targets": [operator], "labels": {"namespace": "jetwright", "pod": "operator"}}],
            },
            {
                "job_name": "jetwright-services",
                "file_sd_configs": [{"files": [PODS]}],
                "relabel_configs": [
                    {"source_labels": ["__meta_kubernetes_pod_labelpresent_jetwright_dev_workload"], "regex": "true", "action": "keep"},
                    {"source_labels": ["__meta_kubernetes_pod_container_port_name"], "regex": "admin", "action": "keep"},
                    {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
                    {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
                ],
            },
            // Prometheus' own metrics count the samples that it rejected.
            {"job_name": "prometheus", "static_configs": [{"targets": [own]}]},
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pods_of_services_are_scraped_as_the_page_of_monitoring_says() {
        let page = fs::read_to_string(crate::path("../docs/monitoring.md")).unwrap();
        let block = page.split("```yaml\nscrape_configs:").nth(1).unwrap().split("```").next().unwrap();
        let told: Value = serde_saphyr::from_str(&format!("scrape_configs:{block}")).unwrap();
        let own = configuration("http://127.0.0.1:8080", "127.0.0.1:9090");
        for (index, job) in ["jetwright-operator", "jetwright-services"].into_iter().enumerate() {
            let (told, own) = (&told["scrape_configs"][index], &own["scrape_configs"][index]);
            assert_eq!((&told["job_name"], &own["job_name"]), (&json!(job), &json!(job)));
            assert_eq!(told["honor_labels"], own["honor_labels"]);
        }
        let relabelled =
            |configuration: &Value| configuration["scrape_configs"][1]["relabel_configs"].clone();
        assert_eq!(relabelled(&own), relabelled(&told));
    }
}
