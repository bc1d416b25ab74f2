//! The pods of workloads as processes that may share partitions: in which template each is, what decides whether Kubernetes removes it before
//! others, and when its program's container ended. Filled by the watch of pods.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use jetwright_crds::environment::JETWRIGHT_BINDINGS;
use k8s_openapi::{
    api::core::v1::{Container, ContainerStatus, Pod, PodCondition},
    apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry,
};
use kube::ResourceExt;
use tokio::time::Instant;

use super::state::revision;
use crate::kubernetes::{field_manager::is_own_apply, stores::Name};

/// Of two pods, a ReplicaSet removes the one first that has less of it.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// How long the end of a container is known after its pod is gone.
const MEMORY: Duration = Duration::from_mins(5);

/// A pod that has not gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessPod {
    pub name: String,
    pub uid: String,
    /// Tells the pods of one template from those of another.
    pub revision: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Whether it is told to stop, or has stopped.
    pub is_ending: bool,
    pub is_ready: bool,
    pub removal: Removal,
}

/// What else decides whether a ReplicaSet removes a pod before others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// Its node, once it has one.
    pub node: Option<String>,
    pub phase: Phase,
    /// The value of [`DELETION_COST`], 0 where it has none.
    pub cost: i32,
    /// Whether that is this operator's.
    pub is_marked: bool,
    /// Since when it is ready, in seconds since 1970.
    pub ready_since: Option<i64>,
    /// How often its containers were started again.
    pub restarts: i32,
}

/// The phase of a pod that has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    #[default]
    Pending,
    Unknown,
    Running,
}

/// A container that ended.
#[derive(Clone, Copy, Debug)]
struct End {
    /// In seconds since 1970, by the clock of its node.
    at: u64,
    /// When its pod was seen to be gone.
    gone: Option<Instant>,
}

/// All of them, by workload and name.
#[derive(Debug, Default)]
pub struct Processes {
    pods: HashMap<Name, BTreeMap<String, ProcessPod>>,
    /// By the UID of the pod.
    ends: HashMap<String, End>,
}

impl Processes {
    /// A pod is like this now.
    pub fn upsert(&mut self, workload: &Name, pod: &Pod) {
        self.note_end(pod, None);
        let Some(process) = process(pod) else { return };
        self.pods.entry(workload.clone()).or_default().insert(process.name.clone(), process);
    }

    /// A pod is gone; `pod` is how it was last, where the watch tells.
    pub fn remove(&mut self, workload: &Name, name: &str, pod: Option<&Pod>) {
        let now = Instant::now();
        self.ends.retain(|_, end| end.gone.is_none_or(|gone| now.duration_since(gone) < MEMORY));
        if let Some(pod) = pod {
            self.note_end(pod, Some(now));
        }
        let Some(pods) = self.pods.get_mut(workload) else { return };
        let gone = pods.remove(name);
        if pods.is_empty() {
            self.pods.remove(workload);
        }
        if let Some(end) = gone.and_then(|gone| self.ends.get_mut(&gone.uid)) {
            end.gone = Some(now);
        }
    }

    /// All pods, by workload and name.
    #[must_use]
    pub fn all(&self) -> &HashMap<Name, BTreeMap<String, ProcessPod>> {
        &self.pods
    }

    /// The pods of a workload.
    #[must_use]
    pub fn of(&self, workload: &Name) -> Vec<ProcessPod> {
        self.pods.get(workload).into_iter().flat_map(BTreeMap::values).cloned().collect()
    }

    /// When the programs of pods ended last, by the UIDs of the pods.
    #[must_use]
    pub fn ends(&self) -> Vec<(String, u64)> {
        self.ends.iter().map(|(uid, end)| (uid.clone(), end.at)).collect()
    }

    fn note_end(&mut self, pod: &Pod, gone: Option<Instant>) {
        if let (Some(uid), Some(at)) = (pod.uid(), ended_at(pod)) {
            self.ends.insert(uid, End { at, gone });
        }
    }
}

/// The template of a workload, of which `declared` is the one that its Deployment has. Where that is not known, or has no pod yet, the newest
/// pod has the workload's template: also after a rollback, whose pods are new ones of an old template.
#[must_use]
pub fn current_template<'p>(pods: &'p [ProcessPod], declared: Option<&'p str>) -> Option<&'p str> {
    let staying = || pods.iter().filter(|pod| !pod.is_ending);
    let has_pods = |template: &&str| staying().any(|pod| pod.revision == **template);
    let newest = || staying().max_by_key(|pod| pod.created).map(|pod| pod.revision.as_str());
    declared.filter(has_pods).or_else(newest)
}

fn process(pod: &Pod) -> Option<ProcessPod> {
    let status = pod.status.as_ref();
    let has_ended = matches!(status.and_then(|status| status.phase.as_deref()), Some("Failed" | "Succeeded"));
    Some(ProcessPod {
        name: pod.name_any(),
        uid: pod.uid()?,
        revision: revision(pod),
        created: pod.creation_timestamp().map(|time| time.0.as_second()).unwrap_or_default(),
        is_ending: has_ended || pod.metadata.deletion_timestamp.is_some(),
        is_ready: ready(pod).is_some(),
        removal: removal(pod),
    })
}

/// The condition that says that a pod is ready, where it is.
fn ready(pod: &Pod) -> Option<&PodCondition> {
    let mut conditions = pod.status.as_ref()?.conditions.as_ref()?.iter();
    conditions.find(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn removal(pod: &Pod) -> Removal {
    let status = pod.status.as_ref();
    let phase = match status.and_then(|status| status.phase.as_deref()) {
        Some("Running") => Phase::Running,
        Some("Unknown") => Phase::Unknown,
        _ => Phase::Pending,
    };
    let cost = pod.annotations().get(DELETION_COST);
    // Another writer may have set it, also where we set something once.
    let is_ours = |entry: &ManagedFieldsEntry| {
        let fields = entry.fields_v1.as_ref().map(|fields| &fields.0["f:metadata"]["f:annotations"]);
        is_own_apply(entry) && fields.is_some_and(|fields| fields.get(format!("f:{DELETION_COST}")).is_some())
    };
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    Removal {
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        phase,
        cost: cost.and_then(|cost| cost.parse().ok()).unwrap_or_default(),
        is_marked: cost.is_some() && pod.metadata.managed_fields.iter().flatten().any(is_ours),
        ready_since: ready(pod).and_then(|ready| Some(ready.last_transition_time.as_ref()?.0.as_second())),
        restarts: containers.into_iter().flatten().map(|status| status.restart_count).sum(),
    }
}

/// When the container of a pod's program ended last, as its kubelet says: the first of its spec is the program.
fn ended_at(pod: &Pod) -> Option<u64> {
    let containers = &pod.spec.as_ref()?.containers;
    // What is added to pods as they are made may stand before it.
    let is_program = |container: &&Container| {
        container.env.iter().flatten().any(|variable| variable.name == JETWRIGHT_BINDINGS)
    };
    let program = &containers.iter().find(is_program).or(containers.first())?.name;
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let program: &ContainerStatus = statuses.iter().find(|status| status.name == *program)?;
    let states = [program.state.as_ref(), program.last_state.as_ref()].into_iter().flatten();
    let ends = states.filter_map(|state| state.terminated.as_ref()?.finished_at.as_ref());
    // Where the node's clock was set back since, the end seems to be later than what runs now began, and what joined from there.
    let began = program.state.as_ref().and_then(|state| state.running.as_ref()?.started_at.as_ref());
    let end = ends.max()?.0.min(began.map_or(jiff::Timestamp::MAX, |began| began.0));
    u64::try_from(end.as_second()).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn workload() -> Name {
        ("shop".into(), "fulfilment".into())
    }

    fn pod(statuses: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "shop", "uid": "u", "labels": {"pod-template-hash": "r1"},
                "creationTimestamp": "1970-01-01T00:00:09Z"},
            "spec": {"containers": [{"name": "app"}, {"name": "helper"}]},
            "status": {"containerStatuses": statuses, "conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .unwrap()
    }

    fn container(name: &str, states: &Value) -> Value {
        let mut object =
            json!({"name": name, "image": "i", "imageID": "", "ready": false, "restartCount": 0});
        object.as_object_mut().unwrap().extend(states.as_object().unwrap().clone());
        object
    }

    fn terminated(second: i64) -> Value {
        let at = jiff::Timestamp::from_second(second).unwrap().to_string();
        json!({"terminated": {"exitCode": 1, "finishedAt": at}})
    }

    #[test]
    fn a_pod_is_there_from_when_it_is_seen_until_it_is_gone() {
        let mut processes = Processes::default();
        processes.upsert(&workload(), &pod(&json!([])));
        let expected = ProcessPod {
            name: "a".into(),
            uid: "u".into(),
            revision: "r1".into(),
            created: 9,
            is_ending: false,
            is_ready: true,
            removal: Removal::default(),
        };
        assert_eq!(processes.of(&workload()), [expected]);
        processes.remove(&workload(), "a", None);
        assert_eq!(processes.of(&workload()), []);
    }

    #[test]
    fn what_a_replica_set_goes_by_is_read_and_a_cost_is_ours_only_where_we_applied_it() {
        let read = |manager: &str, annotation: &str| {
            let fields = json!({"f:metadata": {"f:annotations": {annotation: {}}}});
            let pod = json!({
                "metadata": {
                    "uid": "u", "annotations": {DELETION_COST: "-7"},
                    "managedFields": [{"manager": manager, "operation": "Apply", "fieldsV1": fields}],
                },
                "spec": {"containers": [], "nodeName": "n1"},
                "status": {
                    "phase": "Running",
                    "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:30Z"}],
                    "containerStatuses": [container("app", &json!({"restartCount": 2})), container("b", &json!({"restartCount": 1}))],
                },
            });
            process(&serde_json::from_value(pod).unwrap()).unwrap().removal
        };
        let expected = Removal {
            node: Some("n1".into()),
            phase: Phase::Running,
            cost: -7,
            is_marked: true,
            ready_since: Some(30),
            restarts: 3,
        };
        let cost = &format!("f:{DELETION_COST}");
        assert_eq!(read("jetwright", cost), expected);
        assert!(!read("karpenter", cost).is_marked);
        assert!(!read("jetwright", "f:another").is_marked);
    }

    #[test]
    fn where_the_clock_was_set_back_a_container_ended_before_the_next_one_began() {
        let running = json!({"startedAt": jiff::Timestamp::from_second(30).unwrap().to_string()});
        let restarted =
            container("app", &json!({"state": {"running": running}, "lastState": terminated(7_200)}));
        assert_eq!(ended_at(&pod(&json!([restarted]))), Some(30));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_programs_container_is_known_for_a_while_and_that_of_a_helper_never() {
        let mut processes = Processes::default();
        let helper = container("helper", &json!({"state": terminated(50)}));
        processes.upsert(&workload(), &pod(&json!([helper])));
        assert_eq!(processes.ends(), []);
        let restarted = container("app", &json!({"state": {"running": {}}, "lastState": terminated(40)}));
        processes.upsert(&workload(), &pod(&json!([restarted, helper])));
        assert_eq!(processes.ends(), [("u".to_owned(), 40)]);
        let ended = pod(&json!([container("app", &json!({"state": terminated(60)}))]));
        processes.remove(&workload(), "a", Some(&ended));
        assert_eq!(processes.ends(), [("u".to_owned(), 60)]);
        tokio::time::advance(MEMORY).await;
        processes.remove(&workload(), "b", None);
        assert_eq!(processes.ends(), []);
    }
}
