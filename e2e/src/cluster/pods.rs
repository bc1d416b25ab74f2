//! Every pod that a namespace has had since a moment, those too that were gone again soon.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use tokio::task::JoinHandle;

use super::Cluster;

/// What names the program of a pod: the workload of an EventConsumer, else what charts say.
const PROGRAM_LABELS: [&str; 3] =
    ["jetwright.dev/workload", "app.kubernetes.io/component", "app.kubernetes.io/name"];

/// A watch of a namespace's pods. It ends when it is dropped.
pub struct PodWatch {
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
    task: JoinHandle<()>,
}

/// A pod.
#[derive(Clone, Debug)]
struct Seen {
    name: String,
    program: String,
    restarts: i32,
}

impl Cluster {
    /// Watches the pods of a namespace from now on.
    #[must_use]
    pub fn watch_pods(&self, namespace: &str) -> PodWatch {
        let seen = Arc::<Mutex<BTreeMap<String, Seen>>>::default();
        let kept = Arc::clone(&seen);
        let pods = watcher(self.api::<Pod>(namespace), watcher::Config::default());
        // Errors are those of a watch that begins again by itself.
        let pods = pods.default_backoff().touched_objects().filter_map(async |pod| pod.ok());
        let task = tokio::spawn(pods.for_each(move |pod| {
            let uid = pod.uid().unwrap_or_default();
            kept.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, Seen::of(&pod));
            std::future::ready(())
        }));
        PodWatch { seen, task }
    }
}

impl PodWatch {
    /// How often containers of each pod so far were started again, by uid.
    #[must_use]
    pub fn restarts(&self) -> BTreeMap<String, i32> {
        self.all().into_iter().map(|(uid, pod)| (uid, pod.restarts)).collect()
    }

    /// How many pods of each program there were beside these.
    #[must_use]
    pub fn made_since(&self, before: &BTreeMap<String, i32>) -> BTreeMap<String, usize> {
        let mut made = BTreeMap::new();
        for (_, pod) in self.all().into_iter().filter(|(uid, _)| !before.contains_key(uid)) {
            *made.entry(pod.program).or_default() += 1;
        }
        made
    }

    /// The names of pods in which a container was started again more often than before.
    #[must_use]
    pub fn restarted_since(&self, before: &BTreeMap<String, i32>) -> Vec<String> {
        let more = |uid: &String, pod: &Seen| pod.restarts > before.get(uid).copied().unwrap_or_default();
        self.all().into_iter().filter(|(uid, pod)| more(uid, pod)).map(|(_, pod)| pod.name).collect()
    }

    fn all(&self) -> BTreeMap<String, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for PodWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    fn of(pod: &Pod) -> Self {
        let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        let program = PROGRAM_LABELS.iter().find_map(|label| pod.labels().get(*label));
        Self {
            name: pod.name_any(),
            program: program.cloned().unwrap_or_default(),
            restarts: containers.map(|container| container.restart_count).sum(),
        }
    }
}
