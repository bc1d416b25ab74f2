//! The kind cluster of `make test-e2e`, with what `e2e/demo/on-kind install` has put into it, driven as a user drives it: kubectl, helm and
//! docker from PATH, HTTP to the services through the API server, and NATS through a port that kubectl forwards.

mod command;
mod condition;
mod gateway;
mod image;
mod nats;
mod pods;
mod records;
mod report;
mod shop;

use std::time::Duration;

use k8s_openapi::{
    NamespaceResourceScope,
    api::{core::v1::Pod, events::v1::Event},
    jiff::Timestamp,
};
use kube::{Api, Client, Resource, api::ListParams};
use serde_json::Value;

pub use self::{
    command::Said,
    condition::HasConditions,
    nats::Nats,
    pods::PodWatch,
    records::{Record, Records},
    shop::Shop,
};
use self::{command::run, gateway::Gateway, report::Report};

/// Namespace of the operator and of its NATS servers.
pub const OPERATOR: &str = "jetwright";
/// Namespace of the shop.
pub const SHOP: &str = "shop";
/// How long a test waits for what usually takes some seconds.
pub const SOON: Duration = Duration::from_mins(1);
/// How long a test waits for what a node or a rollout takes part in.
pub const LATER: Duration = Duration::from_mins(4);

/// The cluster.
pub struct Cluster {
    client: Client,
    gateway: Gateway,
    _report: Report,
}

impl Cluster {
    /// The cluster that KUBECONFIG names, if it is the kind cluster that JETWRIGHT_CLUSTER names: nobody's own cluster is touched by
    /// mistake. If the test fails, the state of the world is printed and kept.
    ///
    /// # Panics
    ///
    /// When it is not.
    pub async fn connect() -> Self {
        let name = std::env::var("JETWRIGHT_CLUSTER").unwrap_or_default();
        let context = run("kubectl", &["config", "current-context"], None).await.output;
        assert_eq!(
            context.trim(),
            format!("kind-{name}"),
            "not the cluster that JETWRIGHT_CLUSTER names: `make test-e2e` makes one and runs these tests on it"
        );
        let report = Report::of_this_test();
        let client = Client::try_default().await.unwrap_or_else(|error| panic!("no cluster: {error}"));
        Self { client, gateway: Gateway::open().await, _report: report }
    }

    /// Objects of a kind in a namespace.
    #[must_use]
    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The client, for objects without a namespace.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Runs kubectl, which has to succeed, and returns what it printed.
    pub async fn kubectl(&self, arguments: &str) -> String {
        run("kubectl", &words(arguments), None).await.succeeded()
    }

    /// Runs kubectl, however it ends.
    pub async fn try_kubectl(&self, arguments: &str) -> Said {
        run("kubectl", &words(arguments), None).await
    }

    /// Applies manifests to a namespace, however that ends.
    pub async fn try_apply(&self, namespace: &str, manifests: &str) -> Said {
        // What begins with a brace kubectl takes for JSON.
        let manifests = format!("---\n{manifests}");
        run("kubectl", &["apply", "--namespace", namespace, "--filename", "-"], Some(&manifests)).await
    }

    /// Applies manifests to a namespace, which has to succeed.
    pub async fn apply(&self, namespace: &str, manifests: &str) {
        self.try_apply(namespace, manifests).await.succeeded();
    }

    /// Runs helm, which has to succeed, and returns what it printed.
    pub async fn helm(&self, arguments: &str) -> String {
        self.try_helm(arguments).await.succeeded()
    }

    /// Runs helm, however it ends.
    pub async fn try_helm(&self, arguments: &str) -> Said {
        run("helm", &words(arguments), None).await
    }

    /// Runs docker, which has to succeed, and returns what it printed.
    pub async fn docker(&self, arguments: &str) -> String {
        run("docker", &words(arguments), None).await.succeeded()
    }

    /// Kills the first container of a pod as the kernel would, without a word to it; the kubelet starts it again.
    pub async fn kill(&self, namespace: &str, pod: &str) {
        let found = self
            .api::<Pod>(namespace)
            .get(pod)
            .await
            .unwrap_or_else(|error| panic!("{namespace}/{pod}: {error}"));
        let status = found.status.and_then(|status| status.container_statuses).unwrap_or_default();
        let id = status.first().and_then(|status| status.container_id.as_deref()).unwrap_or_default();
        let id = id.trim_start_matches("containerd://");
        let node = found.spec.and_then(|spec| spec.node_name).unwrap_or_default();
        self.docker(&format!("exec {node} ctr --namespace k8s.io task kill --signal SIGKILL {id}")).await;
    }

    /// A namespace of this test's own, with Pod Security "restricted". It is deleted with what is in it when the value is dropped.
    pub async fn namespace(&self, purpose: &str) -> OwnNamespace {
        let name = format!("{purpose}-{:06x}", std::process::id() ^ seconds());
        self.kubectl(&format!("create namespace {name}")).await;
        self.kubectl(&format!("label namespace {name} pod-security.kubernetes.io/enforce=restricted")).await;
        OwnNamespace(name)
    }

    /// A metric without labels that a pod shows, which is named as `namespace/name:port`.
    ///
    /// # Errors
    ///
    /// What the pod said instead.
    pub async fn metric(&self, pod: &str, name: &str) -> Result<f64, String> {
        let text = self.metrics(pod).await?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.ok_or(text)
    }

    /// All metrics that a pod shows, which is named as `namespace/name:port`.
    ///
    /// # Errors
    ///
    /// What the pod said instead.
    pub async fn metrics(&self, pod: &str) -> Result<String, String> {
        let answer = self.gateway.get_of_pod(pod, "/metrics").await?;
        let Value::String(text) = answer.body else { return Err(format!("{answer:?}")) };
        Ok(text)
    }

    /// Warnings about objects of a namespace that are no older than this, as `reason kind/name: note`.
    pub async fn warnings(&self, namespace: &str, since: Timestamp) -> Vec<String> {
        let events = self.api::<Event>(namespace).list(&ListParams::default()).await;
        let events = events.unwrap_or_else(|error| panic!("events of {namespace}: {error}")).items;
        let warnings = events
            .into_iter()
            .filter(|event| event.type_.as_deref() == Some("Warning") && last_seen(event) >= Some(since));
        let told = warnings.map(|event| {
            let about = event.regarding.unwrap_or_default();
            let (kind, name) = (about.kind.unwrap_or_default(), about.name.unwrap_or_default());
            let (reason, note) = (event.reason.unwrap_or_default(), event.note.unwrap_or_default());
            format!("{reason} {kind}/{name}: {note}")
        });
        told.collect()
    }

    /// The shop that is installed.
    #[must_use]
    pub fn shop(&self) -> Shop<'_> {
        Shop::new(&self.gateway)
    }
}

/// A namespace of one test.
pub struct OwnNamespace(String);

impl OwnNamespace {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Drop for OwnNamespace {
    fn drop(&mut self) {
        // What a failed test leaves is what one wants to see.
        if std::thread::panicking() {
            return;
        }
        let _ = std::process::Command::new("kubectl")
            .args(["delete", "namespace", &self.0, "--wait=false", "--ignore-not-found"])
            .output();
    }
}

/// When an event happened last: those that happen again are counted in their first one.
fn last_seen(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().map(|series| series.last_observed_time.0);
    let counted = event.deprecated_last_timestamp.as_ref().map(|time| time.0);
    series.max(counted).max(event.event_time.as_ref().map(|time| time.0))
}

/// The manifest of an EventStream with subjects of its own, and with these further fields.
#[must_use]
pub fn stream(name: &str, more: &str) -> String {
    format!(
        "{{apiVersion: jetwright.dev/v1alpha1, kind: EventStream, metadata: {{name: {name}}}, \
         spec: {{subjects: [\"{name}.*\"], {more}}}}}"
    )
}

/// A path of the checkout, such as `charts/shop`.
#[must_use]
pub fn checkout(relative: &str) -> String {
    crate::path(&format!("../{relative}"))
}

fn words(arguments: &str) -> Vec<&str> {
    arguments.split_whitespace().collect()
}

fn seconds() -> u32 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map(|now| u32::try_from(now.as_secs() & 0x00ff_ffff).unwrap_or_default()).unwrap_or_default()
}
