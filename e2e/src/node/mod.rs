//! A node of a Kubernetes cluster without containers: scheduler and kubelet in one. It takes every pod that is on no node yet, runs the programs
//! of its images as processes, and writes the pod's status. All else (Deployments, rollouts, garbage collection) is Kubernetes' own.
//!
//! In: pods of the API server. Out: processes, files and pod statuses.

mod container;
mod environment;
mod kubelet;
mod pod;
mod probe;
mod service;
mod status;
mod volumes;

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use futures::StreamExt;
use jetwright_testing::Process;
use k8s_openapi::{
    api::core::v1::{Node as KubernetesNode, Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use serde_json::{Value, json};
use tokio::sync::{mpsc::UnboundedSender, watch};

use self::service::Endpoint;

/// Its name.
const NAME: &str = "demo";
/// Who writes.
const MANAGER: &str = "demo-node";

/// What a node is made of.
#[derive(Debug)]
pub struct Settings {
    /// Image, without its tag, to program.
    pub programs: BTreeMap<String, PathBuf>,
    /// Folder with a link to the log of each container: `<namespace>_<pod>_<container>.log`.
    pub logs: PathBuf,
    /// Its pods have addresses of 127.77.N.0/24. Nodes of one machine should differ in it.
    pub network: u8,
    /// Who is told of each process that is started.
    pub started: Option<UnboundedSender<Started>>,
}

/// A container's process that was started.
#[derive(Debug)]
pub struct Started {
    /// UID of the pod.
    pub uid: String,
    /// Where the pod listens.
    pub address: Ipv4Addr,
    /// Its log is that of all processes of the container.
    pub process: Arc<Process>,
}

/// The node.
pub struct Node {
    client: Client,
    settings: Settings,
    /// Pods that are ready, by uid.
    endpoints: Mutex<BTreeMap<String, Endpoint>>,
    addresses: Mutex<BTreeMap<Ipv4Addr, String>>,
}

impl fmt::Debug for Node {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Node").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// A pod's newest state, or None once it is deleted.
type Change = Option<Pod>;

impl Node {
    /// A node, of which the API server knows nothing yet.
    #[must_use]
    pub fn new(client: Client, settings: Settings) -> Arc<Self> {
        Arc::new(Self { client, settings, endpoints: Mutex::default(), addresses: Mutex::default() })
    }

    /// Makes the Node object, whose logs are asked for at a port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// When the API server refuses it.
    pub async fn register(&self, port: u16) -> Result<()> {
        let nodes: Api<KubernetesNode> = Api::all(self.client.clone());
        let params = PatchParams::apply(MANAGER).force();
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {
            "name": NAME, "labels": {"kubernetes.io/hostname": NAME, "kubernetes.io/os": "linux"},
        }});
        nodes.patch(NAME, &params, &Patch::Apply(node)).await.context("the Node object")?;
        let resources = json!({"cpu": "64", "memory": "64Gi", "pods": "250"});
        let now = Timestamp::now().to_string();
        let status = json!({"status": {
            "capacity": resources, "allocatable": resources,
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Started", "message": "processes of this machine",
                "lastHeartbeatTime": now, "lastTransitionTime": now,
            }],
        }});
        nodes.patch_status(NAME, &PatchParams::default(), &Patch::Strategic(status)).await?;
        let untainted = json!({"spec": {"taints": null}});
        nodes.patch(NAME, &PatchParams::default(), &Patch::Merge(untainted)).await?;
        Ok(())
    }

    /// Runs pods, for as long as it is polled.
    pub async fn run(self: Arc<Self>) {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let mut events = pin!(watcher::watcher(pods, watcher::Config::default()).default_backoff());
        let mut known: BTreeMap<String, watch::Sender<Change>> = BTreeMap::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Apply(pod) | Event::InitApply(pod)) => self.follow(pod, &mut known),
                Ok(Event::Delete(pod)) => {
                    if let Some(changes) = known.remove(&pod.uid().unwrap_or_default()) {
                        changes.send_replace(None);
                    }
                }
                Ok(Event::Init | Event::InitDone) => {}
                Err(error) => eprintln!("node: watching pods: {error}"),
            }
        }
    }

    fn follow(self: &Arc<Self>, pod: Pod, known: &mut BTreeMap<String, watch::Sender<Change>>) {
        let uid = pod.uid().unwrap_or_default();
        let on_node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        match on_node.as_deref() {
            None if pod.metadata.deletion_timestamp.is_none() => {
                tokio::spawn(Arc::clone(self).bind(pod));
            }
            Some(NAME) => {
                if let Some(changes) = known.get(&uid) {
                    changes.send_replace(Some(pod));
                } else if !status::has_ended(&pod) {
                    let (changes, newest) = watch::channel(Some(pod.clone()));
                    known.insert(uid, changes);
                    tokio::spawn(pod::run(Arc::clone(self), pod, newest));
                }
            }
            _ => {}
        }
    }

    /// What a scheduler does, where there is one node.
    async fn bind(self: Arc<Self>, pod: Pod) {
        let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name, "uid": pod.uid()},
            "target": {"apiVersion": "v1", "kind": "Node", "name": NAME},
        });
        let bound: Result<Value, _> =
            pods.create_subresource("binding", &name, &PostParams::default(), &binding).await;
        if let Err(error) = bound {
            // Its events come again: an earlier one may have bound it already.
            eprintln!("node: binding {namespace}/{name}: {error}");
        }
    }

    /// An address of the loopback network for a pod, where these ports are free.
    fn address(&self, pod: &str, ports: &[u16]) -> Result<Ipv4Addr> {
        let mut addresses = lock(&self.addresses);
        let network = self.settings.network;
        let candidates = (1..=254).map(|last| Ipv4Addr::new(127, 77, network, last));
        // Other demos of this machine have addresses there, too.
        let is_free =
            |address: &Ipv4Addr| ports.iter().all(|port| TcpListener::bind((*address, *port)).is_ok());
        let address = candidates
            .filter(|address| !addresses.contains_key(address))
            .find(is_free)
            .with_context(|| {
                format!(
                    "no address of 127.77.{network}.0/24 has the ports {ports:?} free: end what listens there"
                )
            })?;
        addresses.insert(address, pod.to_owned());
        Ok(address)
    }

    fn release(&self, address: Ipv4Addr) {
        lock(&self.addresses).remove(&address);
    }

    fn report_started(&self, uid: String, address: Ipv4Addr, process: &Arc<Process>) {
        if let Some(started) = &self.settings.started {
            // Who does not listen any more misses nothing.
            drop(started.send(Started { uid, address, process: Arc::clone(process) }));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
