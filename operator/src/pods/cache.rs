//! The pods of workloads: their watch fills this cache, reconciles read it.
//!
//! Only pods with the workload's label are watched, and of each only a few words are kept, so that thousands of them cost little.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt};
use jetwright_crds::labels::WORKLOAD;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    drain::{Lifetime, RunningPod, lifetime},
    processes::{ProcessPod, Processes},
    state::{Condition, PodFailure, PodState, observe},
};
use crate::kubernetes::{
    stores::Name,
    updates::{Update, debounce, watch_config},
};

/// Least time between two times that pods wake reconciles: a pod that crashes changes many times a minute.
const DEBOUNCE: Duration = Duration::from_millis(500);

/// The pods of every workload, by the namespace and name of its EventConsumer. Clones share them.
#[derive(Clone, Default)]
pub struct PodCache {
    /// Those that are to come up or stay up.
    declared: Arc<Mutex<HashMap<Name, BTreeMap<String, Known>>>>,
    /// All that have not ended, those that are told to stop included.
    running: Arc<Mutex<HashMap<Name, BTreeMap<String, Lifetime>>>>,
    /// All that are there, as processes that may share partitions.
    processes: Arc<Mutex<Processes>>,
}

/// A pod, and since when it is in its condition.
#[derive(Clone, Debug)]
struct Known {
    state: PodState,
    since: Instant,
}

/// What is wrong with the newest pods of a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Why one does not come up.
    pub failure: Option<PodFailure>,
    /// The one that its node has been preparing for longest.
    pub initializing: Option<InitializingPod>,
}

/// A pod that its node prepares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitializingPod {
    pub name: String,
    pub uid: String,
    pub since: Instant,
}

impl PodCache {
    /// What is wrong with the newest pods of a workload.
    #[must_use]
    pub fn summary(&self, workload: &Name) -> Summary {
        self.declared.lock().get(workload).map(summary).unwrap_or_default()
    }

    /// The pods of a workload that have not ended.
    #[must_use]
    pub fn running(&self, workload: &Name) -> Vec<RunningPod> {
        let all = self.running.lock();
        let pods = all.get(workload).into_iter().flatten();
        pods.map(|(name, lifetime)| RunningPod { name: name.clone(), lifetime: *lifetime }).collect()
    }

    /// The pods of a workload, those that are told to stop included.
    #[must_use]
    pub fn processes(&self, workload: &Name) -> Vec<ProcessPod> {
        self.processes.lock().of(workload)
    }

    /// When the programs of pods ended last, in seconds since 1970, by the UIDs of the pods.
    #[must_use]
    pub fn ends(&self) -> Vec<(String, u64)> {
        self.processes.lock().ends()
    }

    /// Follows pods for ever, in one namespace or all. What is touched are the workloads whose pods fail otherwise than before,
    /// or have all ended.
    pub fn watch(&self, api: Api<Pod>, namespace: Option<String>) -> impl Stream<Item = Update<Name>> + Send {
        let config = watch_config().labels(WORKLOAD);
        let mut follower = Follower { pods: self.clone(), namespace, listed: HashSet::new() };
        let updates = watcher(api, config).default_backoff().map(move |event| match event {
            Ok(event) => {
                let synced = matches!(event, Event::InitDone);
                Update::touching(follower.handle_event(event), synced)
            }
            Err(error) => Update::failed("Pod", &error),
        });
        debounce(updates.boxed(), DEBOUNCE)
    }

    /// Takes over what is known of a pod now; true if it changes what is wrong with the workload.
    fn upsert(&self, workload: &Name, name: String, state: Option<PodState>) -> bool {
        let mut all = self.declared.lock();
        let pods = all.entry(workload.clone()).or_default();
        let before = summary(pods);
        match state {
            None => drop(pods.remove(&name)),
            Some(state) => {
                let same = pods.get(&name).filter(|known| known.state == state);
                let since = same.map_or_else(Instant::now, |known| known.since);
                pods.insert(name, Known { state, since });
            }
        }
        let changed = summary(pods) != before;
        if pods.is_empty() {
            all.remove(workload);
        }
        changed
    }

    /// Takes over how long a pod may run yet, None of one that has ended; true if it was the last of its workload.
    fn set_lifetime(&self, workload: &Name, name: &str, lifetime: Option<Lifetime>) -> bool {
        let mut all = self.running.lock();
        if let Some(lifetime) = lifetime {
            let pods = all.entry(workload.clone()).or_default();
            let lifetime = pods.get(name).map_or(lifetime, |before| lifetime.seen_before(before));
            pods.insert(name.to_owned(), lifetime);
            return false;
        }
        let Some(pods) = all.get_mut(workload) else { return false };
        pods.remove(name);
        let ended = pods.is_empty();
        if ended {
            all.remove(workload);
        }
        ended
    }

    /// The pods that are known in a namespace, or in all.
    fn known(&self, namespace: Option<&str>) -> Vec<(Name, String)> {
        let mut known = names_of(&self.declared.lock(), namespace);
        known.extend(names_of(&self.running.lock(), namespace));
        known.extend(names_of(self.processes.lock().all(), namespace));
        known.sort();
        known.dedup();
        known
    }
}

/// The pods in a namespace, or in all.
fn names_of<T>(all: &HashMap<Name, BTreeMap<String, T>>, namespace: Option<&str>) -> Vec<(Name, String)> {
    let within = all.iter().filter(|((known, _), _)| namespace.is_none_or(|namespace| namespace == known));
    within.flat_map(|(workload, pods)| pods.keys().map(|name| (workload.clone(), name.clone()))).collect()
}

/// What is wrong with the pods of the newest template.
fn summary(pods: &BTreeMap<String, Known>) -> Summary {
    let newest = pods.values().max_by_key(|known| known.state.created);
    let revision = newest.map(|known| known.state.revision.as_str()).unwrap_or_default();
    let newest = pods.iter().filter(|(_, known)| known.state.revision == revision);
    let mut summary = Summary::default();
    for (name, Known { state, since }) in newest {
        match &state.condition {
            Condition::Healthy => {}
            Condition::Failing(failure) => {
                summary.failure.get_or_insert_with(|| failure.clone());
            }
            Condition::Initializing => {
                if summary.initializing.as_ref().is_none_or(|longest| *since < longest.since) {
                    let uid = state.uid.clone();
                    summary.initializing = Some(InitializingPod { name: name.clone(), uid, since: *since });
                }
            }
        }
    }
    summary
}

/// One watch's part of the pods.
struct Follower {
    pods: PodCache,
    /// None for all namespaces.
    namespace: Option<String>,
    /// What a list that is under way has named.
    listed: HashSet<(Name, String)>,
}

impl Follower {
    /// The workloads whose pods fail otherwise now, or have all ended.
    fn handle_event(&mut self, event: Event<Pod>) -> Vec<Name> {
        match event {
            Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            Event::InitApply(pod) => {
                self.listed.extend(key(&pod));
                self.upsert(&pod)
            }
            Event::Apply(pod) => self.upsert(&pod),
            Event::Delete(pod) => {
                if let Some((workload, name)) = key(&pod) {
                    self.pods.processes.lock().remove(&workload, &name, Some(&pod));
                }
                self.set_of(&pod, None, None)
            }
            // What was not listed is gone.
            Event::InitDone => {
                let known = self.pods.known(self.namespace.as_deref());
                let gone: Vec<_> = known.into_iter().filter(|key| !self.listed.contains(key)).collect();
                self.listed = HashSet::new();
                gone.into_iter()
                    .filter_map(|(workload, name)| {
                        self.pods.processes.lock().remove(&workload, &name, None);
                        self.set(workload, name, None, None)
                    })
                    .collect()
            }
        }
    }

    fn upsert(&self, pod: &Pod) -> Vec<Name> {
        if let Some((workload, _)) = key(pod) {
            self.pods.processes.lock().upsert(&workload, pod);
        }
        self.set_of(pod, observe(pod), lifetime(pod, Instant::now()))
    }

    fn set_of(&self, pod: &Pod, state: Option<PodState>, lifetime: Option<Lifetime>) -> Vec<Name> {
        key(pod).and_then(|(workload, name)| self.set(workload, name, state, lifetime)).into_iter().collect()
    }

    /// The workload, where something changed for it.
    fn set(
        &self,
        workload: Name,
        name: String,
        state: Option<PodState>,
        lifetime: Option<Lifetime>,
    ) -> Option<Name> {
        let ended = self.pods.set_lifetime(&workload, &name, lifetime);
        (self.pods.upsert(&workload, name, state) || ended).then_some(workload)
    }
}

fn key(pod: &Pod) -> Option<(Name, String)> {
    let workload = pod.labels().get(WORKLOAD)?.clone();
    Some(((pod.namespace()?, workload), pod.name_any()))
}

#[cfg(test)]
mod tests {
    use jetwright_crds::conditions::Reason;

    use super::*;

    fn workload() -> Name {
        ("shop".into(), "fulfilment".into())
    }

    fn pod(revision: &str, created: i64, condition: Condition) -> PodState {
        PodState { uid: "u".into(), created, revision: revision.into(), condition }
    }

    fn failing(message: &str) -> Condition {
        Condition::Failing(PodFailure { reason: Reason::CrashLoop, message: message.into() })
    }

    fn failure(pods: &PodCache) -> Option<String> {
        pods.summary(&workload()).failure.map(|failure| failure.message)
    }

    #[test]
    fn only_other_failures_are_news() {
        let pods = PodCache::default();
        let put = |name: &str, state: Option<PodState>| pods.upsert(&workload(), name.to_owned(), state);
        assert!(!put("a", Some(pod("r1", 1, Condition::Healthy))));
        assert!(put("b", Some(pod("r1", 1, failing("b ends")))));
        assert!(!put("b", Some(pod("r1", 1, failing("b ends")))));
        assert!(!put("c", Some(pod("r1", 1, failing("c ends")))));
        assert_eq!(failure(&pods).as_deref(), Some("b ends"));
        assert!(put("b", None));
        assert_eq!(failure(&pods).as_deref(), Some("c ends"));
    }

    #[test]
    fn pods_of_an_older_template_are_nobodys_failure() {
        let pods = PodCache::default();
        pods.upsert(&workload(), "a".into(), Some(pod("r1", 1, failing("old"))));
        assert_eq!(failure(&pods).as_deref(), Some("old"));
        pods.upsert(&workload(), "b".into(), Some(pod("r2", 2, Condition::Healthy)));
        assert_eq!(failure(&pods), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_seen_again_is_in_its_state_for_as_long_as_before() {
        let pods = PodCache::default();
        let since = Instant::now();
        for _ in 0..2 {
            pods.upsert(&workload(), "a".into(), Some(pod("r1", 1, Condition::Initializing)));
            tokio::time::advance(Duration::from_secs(5)).await;
        }
        let initializing = InitializingPod { name: "a".into(), uid: "u".into(), since };
        assert_eq!(pods.summary(&workload()).initializing, Some(initializing));
    }

    #[test]
    fn a_pod_that_is_told_to_stop_runs_until_it_is_gone_and_the_last_one_is_news() {
        let pods = PodCache::default();
        let mut scope = Follower { pods: pods.clone(), namespace: None, listed: HashSet::new() };
        let object = |name: &str, deleted: Option<&str>, phase: &str| -> Pod {
            let metadata = serde_json::json!({
                "name": name, "namespace": "shop", "uid": name, "deletionTimestamp": deleted,
                "deletionGracePeriodSeconds": deleted.map(|_| 60), "labels": {"jetwright.dev/workload": "fulfilment"},
            });
            let spec = serde_json::json!({"terminationGracePeriodSeconds": 45, "containers": []});
            let status = serde_json::json!({"phase": phase});
            serde_json::from_value(serde_json::json!({"metadata": metadata, "spec": spec, "status": status}))
                .unwrap()
        };
        let running = |pods: &PodCache| -> Vec<_> {
            let running = pods.running(&workload()).into_iter();
            running.map(|pod| (pod.name, pod.lifetime.grace.as_secs(), pod.lifetime.ends.is_some())).collect()
        };
        let end = Some("2026-01-01T00:01:00Z");
        for (name, deleted, phase) in
            [("a", None, "Running"), ("b", end, "Running"), ("c", None, "Succeeded"), ("d", end, "Failed")]
        {
            assert_eq!(scope.handle_event(Event::Apply(object(name, deleted, phase))), []);
        }
        assert_eq!(running(&pods), [("a".to_owned(), 45, false), ("b".to_owned(), 60, true)]);
        assert_eq!(scope.handle_event(Event::Delete(object("a", None, "Running"))), []);
        assert_eq!(scope.handle_event(Event::Delete(object("b", end, "Running"))), [workload()]);
        assert_eq!(running(&pods), []);
    }

    #[test]
    fn what_a_list_does_not_name_is_gone_and_nothing_is_kept_of_it() {
        let pods = PodCache::default();
        let object = |namespace: &str| -> Pod {
            let status = serde_json::json!({"containerStatuses": [{
                "name": "app", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ErrImagePull"}},
            }]});
            let labels = serde_json::json!({"jetwright.dev/workload": "fulfilment"});
            let metadata =
                serde_json::json!({"name": "a", "namespace": namespace, "uid": "u", "labels": labels});
            serde_json::from_value(serde_json::json!({"metadata": metadata, "status": status})).unwrap()
        };
        let mut scopes = ["shop", "bank"].map(|namespace| Follower {
            pods: pods.clone(),
            namespace: Some(namespace.to_owned()),
            listed: HashSet::new(),
        });
        for (scope, namespace) in scopes.iter_mut().zip(["shop", "bank"]) {
            scope.handle_event(Event::Init);
            let changed = scope.handle_event(Event::InitApply(object(namespace)));
            assert_eq!(changed, [(namespace.to_owned(), "fulfilment".to_owned())]);
            assert_eq!(scope.handle_event(Event::InitDone), []);
        }
        // The watch of one namespace starts again, and the pod went meanwhile.
        scopes[0].handle_event(Event::Init);
        assert_eq!(scopes[0].handle_event(Event::InitDone), [workload()]);
        assert_eq!(pods.known(None), [(("bank".to_owned(), "fulfilment".to_owned()), "a".to_owned())]);
        assert_eq!((pods.declared.lock().len(), pods.running.lock().len()), (1, 1));
    }
}
