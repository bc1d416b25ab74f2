//! The life of one pod: its folder and address, its containers, and its end.

use std::{net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use jetwright_testing::Folder;
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{Change, Node, container::Container, lock, service::Endpoint, status};

/// How often processes and probes are looked at.
const TICK: Duration = Duration::from_millis(100);
/// The grace that Kubernetes gives by default.
const GRACE: Duration = Duration::from_secs(30);

/// What the containers of a pod share.
pub struct Place {
    pub pod: Pod,
    pub address: Ipv4Addr,
    pub folder: Arc<Folder>,
    pub started: Timestamp,
}

impl Place {
    /// What becomes of a container that ended.
    pub fn restart_policy(&self) -> &str {
        self.pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always")
    }
}

struct Worker {
    node: Arc<Node>,
    pods: Api<Pod>,
    place: Place,
    containers: Vec<Container>,
    written: Option<Value>,
}

/// Runs a pod until it is deleted.
pub async fn run(node: Arc<Node>, pod: Pod, changes: watch::Receiver<Change>) {
    let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    let ports: Vec<_> = status::ports(&pod).collect();
    let mut said = String::new();
    let address = loop {
        match node.address(&name, &ports) {
            Ok(address) => break address,
            Err(error) => {
                if said != error.to_string() {
                    said = error.to_string();
                    eprintln!("node: {name}: {said}");
                }
                sleep(GRACE / 10).await;
            }
        }
    };
    let spec = pod.spec.clone().unwrap_or_default();
    let containers = spec.containers.into_iter().map(Container::new).collect();
    let pods = Api::namespaced(node.client.clone(), &pod.namespace().unwrap_or_default());
    let place = Place { address, folder: Folder::new(&pod.name_any()), started: Timestamp::now(), pod };
    let mut worker = Worker { node, pods, place, containers, written: None };
    worker.live(changes).await;
    worker.clear();
}

impl Worker {
    async fn live(&mut self, mut changes: watch::Receiver<Change>) {
        loop {
            for container in &mut self.containers {
                container.step(&self.node, &self.place).await;
            }
            self.publish_endpoint();
            self.report().await;
            tokio::select! {
                next = changes.changed() => {
                    if next.is_err() {
                        return;
                    }
                    let newest = changes.borrow_and_update().clone();
                    let Some(pod) = newest else { return };
                    self.place.pod = pod;
                }
                () = sleep(TICK) => {}
            }
            if self.place.pod.metadata.deletion_timestamp.is_some() {
                self.terminate(&changes).await;
                return;
            }
        }
    }

    /// SIGTERM after what `preStop` sleeps, and SIGKILL once the grace period is over; then the object goes.
    async fn terminate(&mut self, changes: &watch::Receiver<Change>) {
        lock(&self.node.endpoints).remove(&self.place.pod.uid().unwrap_or_default());
        let grace = self.place.pod.metadata.deletion_grace_period_seconds;
        let grace = grace.and_then(|seconds| u64::try_from(seconds).ok()).map_or(GRACE, Duration::from_secs);
        let begun = Instant::now();
        let mut told = vec![false; self.containers.len()];
        while begun.elapsed() < grace && self.containers.iter().any(Container::runs) {
            for (container, told) in self.containers.iter().zip(&mut told) {
                if !*told && begun.elapsed() >= container.pre_stop() {
                    container.signal("TERM");
                    *told = true;
                }
            }
            // Who deletes it by force does not wait for the grace period.
            if changes.has_changed().is_err() || changes.borrow().is_none() {
                return;
            }
            sleep(TICK).await;
        }
        for container in &mut self.containers {
            container.end();
        }
        self.report().await;
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: self.place.pod.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        if let Err(error) = self.pods.delete(&self.place.pod.name_any(), &now).await
            && !is_gone(&error)
        {
            eprintln!("node: deleting {}: {error}", self.place.pod.name_any());
        }
    }

    /// Writes the status where it is another than the one that was written last.
    async fn report(&mut self) {
        let status = status::of(&self.place, &self.containers, self.written.as_ref());
        if self.written.as_ref() == Some(&status) {
            return;
        }
        let patch = Patch::Strategic(json!({"metadata": {"uid": self.place.pod.uid()}, "status": status}));
        match self.pods.patch_status(&self.place.pod.name_any(), &PatchParams::default(), &patch).await {
            Ok(_) => self.written = Some(status),
            Err(error) if is_gone(&error) => {}
            // It comes again with the next tick.
            Err(error) => eprintln!("node: the status of {}: {error}", self.place.pod.name_any()),
        }
    }

    /// Services send to the pod while it is ready.
    fn publish_endpoint(&self) {
        let uid = self.place.pod.uid().unwrap_or_default();
        let mut endpoints = lock(&self.node.endpoints);
        if self.containers.iter().all(Container::is_ready) {
            endpoints.entry(uid).or_insert_with(|| Endpoint::of(&self.place));
        } else {
            endpoints.remove(&uid);
        }
    }

    /// Ends what is left, which the folders and addresses of others must not meet.
    fn clear(&mut self) {
        lock(&self.node.endpoints).remove(&self.place.pod.uid().unwrap_or_default());
        for container in &mut self.containers {
            container.end();
            let _ = std::fs::remove_file(log_link(&self.node, &self.place.pod, container.name()));
        }
        self.node.release(self.place.address);
    }
}

/// Whether the object went first, as where it was deleted by force, or another has its name.
fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
}

/// The link to the log of a container.
pub fn log_link(node: &Node, pod: &Pod, container: &str) -> PathBuf {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    node.settings.logs.join(format!("{namespace}_{name}_{container}.log"))
}
