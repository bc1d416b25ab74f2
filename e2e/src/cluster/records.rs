//! What the containers of a namespace wrote to standard output, also those that are gone: the kubelet removes the log of a pod with the pod. So
//! each node keeps a second name of every log, until the value is dropped.

use std::{collections::BTreeMap, process::Command};

use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt, api::ListParams};

use super::{Cluster, command::run};

/// Keeps the logs of a namespace.
pub struct Records {
    nodes: Vec<String>,
    namespace: String,
}

/// What a container wrote, from its start to its end.
#[derive(Clone, Debug)]
pub struct Record {
    /// The pod.
    pub pod: String,
    /// How often the container was started before.
    pub restart: u32,
    /// The lines.
    pub log: String,
}

impl Cluster {
    /// Keeps what all pods of a namespace write from now on, whose only container is named `app`.
    pub async fn keep_records(&self, namespace: &str) -> Records {
        let nodes = Api::<Node>::all(self.client()).list(&ListParams::default()).await;
        let nodes = nodes.unwrap_or_else(|error| panic!("the nodes: {error}"));
        let nodes = nodes.items.iter().map(ResourceExt::name_any).collect();
        let records = Records { nodes, namespace: namespace.to_owned() };
        let folder = records.folder();
        // The kubelet begins another file where one is long, so files are told apart by inode.
        let script = format!(
            "mkdir -p {folder}; while [ -d {folder} ]; do \
             find /var/log/pods -path '/var/log/pods/{namespace}_*/app/*.log' -printf '%i %p\\n' | while read -r inode log; do \
             to=${{log#/var/log/pods/}}; to={folder}/$(echo \"$to\" | tr / _)_$inode; [ -e \"$to\" ] || ln \"$log\" \"$to\"; done; \
             sleep 0.2; done"
        );
        for node in &records.nodes {
            run("docker", &["exec", "--detach", node, "sh", "-c", &script], None).await.succeeded();
        }
        records
    }
}

impl Records {
    fn folder(&self) -> String {
        format!("/var/log/records-{}", self.namespace)
    }

    /// Everything that was written so far, by container.
    pub async fn read(&self) -> Vec<Record> {
        let mut found: BTreeMap<(String, u32), String> = BTreeMap::new();
        let script = format!(
            "cd {} && for log in *; do if [ -f \"$log\" ]; then echo \"FILE $log\"; cat \"$log\"; fi; done",
            self.folder()
        );
        for node in &self.nodes {
            let text = run("docker", &["exec", node, "sh", "-c", &script], None).await.succeeded();
            let mut log = None;
            for line in text.lines() {
                if let Some(file) = line.strip_prefix("FILE ") {
                    log = container(file).map(|container| found.entry(container).or_default());
                } else if let Some(log) = &mut log {
                    log.push_str(written(line));
                    log.push('\n');
                }
            }
        }
        found.into_iter().map(|((pod, restart), log)| Record { pod, restart, log }).collect()
    }
}

/// The pod, and how often its container was started before, of `<namespace>_<pod>_<uid>_app_<number>.log_<inode>`.
fn container(file: &str) -> Option<(String, u32)> {
    let parts: Vec<_> = file.split('_').collect();
    let [_, pod, _, _, number, _] = parts[..] else { return None };
    Some((pod.to_owned(), number.strip_suffix(".log")?.parse().ok()?))
}

/// What the container wrote, of `<time> stdout F <text>`.
fn written(line: &str) -> &str {
    line.splitn(4, ' ').nth(3).unwrap_or_default()
}

impl Drop for Records {
    fn drop(&mut self) {
        for node in &self.nodes {
            let _ = Command::new("docker").args(["exec", node, "rm", "-rf", &self.folder()]).output();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_tells_its_container_and_what_it_wrote() {
        let file = "order-1_fulfilment-7d-x2_5f0a-11_app_3.log_991";
        assert_eq!(container(file), Some(("fulfilment-7d-x2".to_owned(), 3)));
        assert_eq!(container("*"), None);
        assert_eq!(written("2026-11-26T23:00:00.1Z stdout F 7 begin a.k.b.1 2 3 4"), "7 begin a.k.b.1 2 3 4");
    }
}
