//! What is known of the workloads' pods: a watch tells, reconciles ask. Reads from Kubernetes.
//!
//! Only pods with the workload's label are watched, and of each only a few words are kept, so that thousands of them cost little.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use tokio::time::{Instant, sleep_until};

use super::{
    build::WORKLOAD_LABEL,
    sighting::{Sighting, State, Trouble, sight},
};
use crate::outcome::chain;

/// Least time between two times that pods wake reconciles.
const GATHER: Duration = Duration::from_millis(500);

/// Namespace and name of a workload.
pub type Workload = (String, String);

/// The pods of every workload.
#[derive(Clone, Default)]
pub struct Pods(Arc<Mutex<HashMap<Workload, BTreeMap<String, Known>>>>);

/// A pod, and since when it is in its state.
#[derive(Clone, Debug)]
struct Known {
    sighting: Sighting,
    since: Instant,
}

/// What is wrong with the newest pods of a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Why one does not come up.
    pub trouble: Option<Trouble>,
    /// The one that its node has been preparing for longest.
    pub setting_up: Option<SettingUp>,
}

/// A pod that its node prepares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingUp {
    /// Its name.
    pub name: String,
    /// Which pod of the name it is.
    pub uid: String,
    /// Since when it is seen to be so.
    pub since: Instant,
}

impl Pods {
    /// What is wrong with the newest pods of a workload.
    pub fn summary(&self, workload: &Workload) -> Summary {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(workload).map(summary).unwrap_or_default()
    }

    /// Watches pods, of one namespace or all, and tells which workloads' pods have other troubles than before, those of half a second
    /// together: a pod that crashes changes many times a minute.
    pub fn watch(
        &self,
        api: Api<Pod>,
        namespace: Option<String>,
    ) -> impl Stream<Item = Workload> + Send + 'static {
        let config = watcher::Config::default().labels(WORKLOAD_LABEL);
        let mut scope = Scope { pods: self.clone(), namespace, listed: HashSet::new() };
        let changes = watcher(api, config).default_backoff().flat_map(move |event| {
            let changed = match event {
                Ok(event) => scope.learn(event),
                Err(error) => {
                    tracing::warn!(error = chain(&error), "the watch of pods failed; it is begun anew");
                    Vec::new()
                }
            };
            stream::iter(changed)
        });
        gathered(changes.boxed()).flat_map(stream::iter)
    }

    /// Takes over what is known of a pod now; true if it changes what is wrong with the workload.
    fn put(&self, workload: &Workload, name: String, sighting: Option<Sighting>) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pods = all.entry(workload.clone()).or_default();
        let before = summary(pods);
        match sighting {
            None => drop(pods.remove(&name)),
            Some(sighting) => {
                let same = pods.get(&name).filter(|known| known.sighting == sighting);
                let since = same.map_or_else(Instant::now, |known| known.since);
                pods.insert(name, Known { sighting, since });
            }
        }
        let changed = summary(pods) != before;
        if pods.is_empty() {
            all.remove(workload);
        }
        changed
    }

    /// The pods that are known in a namespace, or in all.
    fn known(&self, namespace: Option<&str>) -> Vec<(Workload, String)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let within =
            all.iter().filter(|((known, _), _)| namespace.is_none_or(|namespace| namespace == known));
        within.flat_map(|(workload, pods)| pods.keys().map(|name| (workload.clone(), name.clone()))).collect()
    }
}

/// What is wrong with the pods of the newest template.
fn summary(pods: &BTreeMap<String, Known>) -> Summary {
    let newest = pods.values().max_by_key(|known| known.sighting.created);
    let revision = newest.map(|known| known.sighting.revision.as_str()).unwrap_or_default();
    let newest = pods.iter().filter(|(_, known)| known.sighting.revision == revision);
    let mut summary = Summary::default();
    for (name, Known { sighting, since }) in newest {
        match &sighting.state {
            State::Well => {}
            State::Troubled(trouble) => {
                summary.trouble.get_or_insert_with(|| trouble.clone());
            }
            State::SettingUp => {
                if summary.setting_up.as_ref().is_none_or(|longest| *since < longest.since) {
                    let uid = sighting.uid.clone();
                    summary.setting_up = Some(SettingUp { name: name.clone(), uid, since: *since });
                }
            }
        }
    }
    summary
}

/// One watch's part of the pods.
struct Scope {
    pods: Pods,
    /// None for all namespaces.
    namespace: Option<String>,
    /// What a list that is under way has told of.
    listed: HashSet<(Workload, String)>,
}

impl Scope {
    /// The workloads whose troubles are others now.
    fn learn(&mut self, event: Event<Pod>) -> Vec<Workload> {
        match event {
            Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            Event::InitApply(pod) => {
                self.listed.extend(key(&pod));
                self.put(&pod, sight(&pod))
            }
            Event::Apply(pod) => self.put(&pod, sight(&pod)),
            Event::Delete(pod) => self.put(&pod, None),
            // What was not listed is gone.
            Event::InitDone => {
                let known = self.pods.known(self.namespace.as_deref());
                let gone: Vec<_> = known.into_iter().filter(|key| !self.listed.contains(key)).collect();
                self.listed = HashSet::new();
                gone.into_iter()
                    .filter_map(|(workload, name)| self.pods.put(&workload, name, None).then_some(workload))
                    .collect()
            }
        }
    }

    fn put(&self, pod: &Pod, sighting: Option<Sighting>) -> Vec<Workload> {
        let changed = key(pod).filter(|(workload, name)| self.pods.put(workload, name.clone(), sighting));
        changed.map(|(workload, _)| workload).into_iter().collect()
    }
}

fn key(pod: &Pod) -> Option<(Workload, String)> {
    let workload = pod.labels().get(WORKLOAD_LABEL)?.clone();
    Some(((pod.namespace()?, workload), pod.name_any()))
}

/// The items of a stream, each once in [`GATHER`]: the first at once, and what comes until that time is over together at its end.
fn gathered<T: Eq + std::hash::Hash + Send>(
    items: impl Stream<Item = T> + Unpin + Send,
) -> impl Stream<Item = HashSet<T>> + Send {
    let start = (items.fuse(), Instant::now());
    stream::unfold(start, |(mut items, next)| async move {
        let mut gathered = HashSet::new();
        loop {
            tokio::select! {
                biased;
                () = sleep_until(next), if !gathered.is_empty() => break,
                item = items.next() => match item {
                    Some(item) => drop(gathered.insert(item)),
                    None if gathered.is_empty() => return None,
                    None => break,
                },
            }
        }
        Some((gathered, (items, Instant::now() + GATHER)))
    })
}

#[cfg(test)]
mod tests {
    use jetwright_crds::conditions::Reason;

    use super::*;

    fn workload() -> Workload {
        ("shop".into(), "fulfilment".into())
    }

    fn pod(revision: &str, created: i64, state: State) -> Sighting {
        Sighting { uid: "u".into(), created, revision: revision.into(), state }
    }

    fn troubled(message: &str) -> State {
        State::Troubled(Trouble { reason: Reason::CrashLoop, message: message.into() })
    }

    fn told(pods: &Pods) -> Option<String> {
        pods.summary(&workload()).trouble.map(|trouble| trouble.message)
    }

    #[test]
    fn only_other_troubles_are_news() {
        let pods = Pods::default();
        let put = |name: &str, sighting: Option<Sighting>| pods.put(&workload(), name.to_owned(), sighting);
        assert!(!put("a", Some(pod("r1", 1, State::Well))));
        assert!(put("b", Some(pod("r1", 1, troubled("b ends")))));
        assert!(!put("b", Some(pod("r1", 1, troubled("b ends")))));
        assert!(!put("c", Some(pod("r1", 1, troubled("c ends")))));
        assert_eq!(told(&pods).as_deref(), Some("b ends"));
        assert!(put("b", None));
        assert_eq!(told(&pods).as_deref(), Some("c ends"));
    }

    #[test]
    fn pods_of_an_older_template_are_nobodys_trouble() {
        let pods = Pods::default();
        pods.put(&workload(), "a".into(), Some(pod("r1", 1, troubled("old"))));
        assert_eq!(told(&pods).as_deref(), Some("old"));
        pods.put(&workload(), "b".into(), Some(pod("r2", 2, State::Well)));
        assert_eq!(told(&pods), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_seen_again_is_in_its_state_for_as_long_as_before() {
        let pods = Pods::default();
        let since = Instant::now();
        for _ in 0..2 {
            pods.put(&workload(), "a".into(), Some(pod("r1", 1, State::SettingUp)));
            tokio::time::advance(Duration::from_secs(5)).await;
        }
        let setting_up = SettingUp { name: "a".into(), uid: "u".into(), since };
        assert_eq!(pods.summary(&workload()).setting_up, Some(setting_up));
    }

    #[test]
    fn what_a_list_does_not_name_is_gone_and_nothing_is_kept_of_it() {
        let pods = Pods::default();
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
        let mut scopes = ["shop", "bank"].map(|namespace| Scope {
            pods: pods.clone(),
            namespace: Some(namespace.to_owned()),
            listed: HashSet::new(),
        });
        for (scope, namespace) in scopes.iter_mut().zip(["shop", "bank"]) {
            scope.learn(Event::Init);
            let changed = scope.learn(Event::InitApply(object(namespace)));
            assert_eq!(changed, [(namespace.to_owned(), "fulfilment".to_owned())]);
            assert_eq!(scope.learn(Event::InitDone), []);
        }
        // The watch of one namespace begins anew, and the pod went meanwhile.
        scopes[0].learn(Event::Init);
        assert_eq!(scopes[0].learn(Event::InitDone), [workload()]);
        assert_eq!(pods.known(None), [(("bank".to_owned(), "fulfilment".to_owned()), "a".to_owned())]);
        assert_eq!(pods.0.lock().unwrap().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_often_wakes_seldom_and_what_changes_once_at_once() {
        let begun = Instant::now();
        let items = stream::unfold(0_u32, |count| async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            (count < 200).then_some((count % 2, count + 1))
        });
        let gathered: Vec<_> =
            gathered(items.boxed()).map(|items| (begun.elapsed(), items.len())).collect().await;
        assert_eq!(gathered[0].0.as_millis() / 20, 0, "{gathered:?}");
        // Two seconds of changes.
        assert!(gathered.len() <= 6, "{gathered:?}");
        assert!(gathered[1..4].iter().all(|(_, count)| *count == 2), "{gathered:?}");
    }
}
