//! In: the Deployment as Kubernetes has it, and what is wrong with its pods. Out: what it means for the EventConsumer's status. Pure.

use std::time::Duration;

use jetwright_crds::{
    EventConsumer, EventConsumerSpec,
    conditions::{self, Reason, WORKLOAD_READY},
    labels::WORKLOAD,
};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus};

use super::desired::Desired;
use crate::{kubernetes::status::ConditionSummary, pods::diagnose::Diagnosis};

/// What the pods are doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadStatus {
    /// The pods, where this EventConsumer declares them itself.
    pub own: Option<OwnPods>,
    /// Whether they are as declared.
    pub summary: ConditionSummary,
    /// Which pods are emptied before they are removed, in words.
    pub emptying: Option<String>,
    /// When to reconcile next, where nothing else wakes the object.
    pub requeue_after: Option<Duration>,
}

/// An EventConsumer's own pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnPods {
    /// How many there are.
    pub replicas: i32,
    /// Their label selector, as text.
    pub selector: String,
}

/// The pods are not brought to what is declared: what there is stays as it is.
pub fn held(
    name: &str,
    deployment: Option<&Deployment>,
    summary: ConditionSummary,
    requeue_after: Option<Duration>,
) -> WorkloadStatus {
    let own = deployment.map(|deployment| own_pods(name, deployment));
    WorkloadStatus { own, summary, emptying: None, requeue_after }
}

/// The pods are another EventConsumer's: as ready as they say there.
pub fn shared(spec: &EventConsumerSpec, other: Option<&EventConsumer>) -> WorkloadStatus {
    let name = spec.workload_ref.as_ref().map(|reference| reference.name.as_str()).unwrap_or_default();
    let summary = match other {
        None => ConditionSummary::stalled(
            Reason::NotFound,
            format!("spec.workloadRef: there is no EventConsumer {name}: make it"),
        ),
        // One that an earlier definition took.
        Some(other) if other.spec.workload_ref.as_ref().is_some_and(|own| own.name == name) => {
            ConditionSummary::stalled(
                Reason::Invalid,
                format!(
                    "spec.workloadRef: EventConsumer {name} names itself: declare its pods in spec.workload, or name the EventConsumer that does"
                ),
            )
        }
        Some(other) if other.spec.workload.is_none() => ConditionSummary::stalled(
            Reason::Invalid,
            format!(
                "spec.workloadRef: EventConsumer {name} has no spec.workload: name the one that declares the pods"
            ),
        ),
        Some(other) => match conditions::get(other.conditions(), WORKLOAD_READY) {
            Some(ready) if ready.status == "True" => ConditionSummary::ready(&ready.message),
            Some(ready) => {
                let reason = Reason::named(&ready.reason).unwrap_or(Reason::RollingOut);
                ConditionSummary::reconciling(reason, format!("pods of {name}: {}", ready.message))
            }
            None => {
                ConditionSummary::reconciling(Reason::RollingOut, format!("pods of {name}: not there yet"))
            }
        },
    };
    WorkloadStatus { own: None, summary, emptying: None, requeue_after: None }
}

/// The pods are the EventConsumer's own.
pub fn running(desired: &Desired, deployment: &Deployment, diagnosis: &Diagnosis) -> WorkloadStatus {
    let own = own_pods(&desired.names.workload, deployment);
    let summary = summarize(desired.replicas, deployment, diagnosis);
    WorkloadStatus { own: Some(own), summary, emptying: None, requeue_after: diagnosis.requeue_after }
}

fn own_pods(name: &str, deployment: &Deployment) -> OwnPods {
    let replicas = status(deployment).replicas.unwrap_or_default();
    OwnPods { replicas, selector: format!("{WORKLOAD}={name}") }
}

/// Whether all pods are new and available, and no old one is left.
pub fn is_rolled_out(deployment: &Deployment) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let DeploymentStatus { updated_replicas, available_replicas, replicas, .. } = status(deployment);
    let all =
        [updated_replicas, available_replicas].into_iter().all(|count| count.unwrap_or_default() >= wanted);
    is_seen(deployment) && all && replicas.unwrap_or_default() <= wanted
}

/// Whether the status is about the Deployment as it is now.
fn is_seen(deployment: &Deployment) -> bool {
    status(deployment).observed_generation >= deployment.metadata.generation
}

fn status(deployment: &Deployment) -> DeploymentStatus {
    deployment.status.clone().unwrap_or_default()
}

fn summarize(wanted: i32, deployment: &Deployment, diagnosis: &Diagnosis) -> ConditionSummary {
    let status = status(deployment);
    let updated = status.updated_replicas.unwrap_or_default();
    let available = status.available_replicas.unwrap_or_default();
    if is_rolled_out(deployment) {
        return match wanted {
            0 => ConditionSummary {
                reason: Reason::ScaledToZero,
                ..ConditionSummary::ready("there are no pods on purpose")
            },
            _ => ConditionSummary::ready(format!("{available} of {wanted} pods are ready")),
        };
    }
    let message = format!("{available} of {wanted} pods are ready, {updated} of them new");
    if !is_seen(deployment) {
        return ConditionSummary::reconciling(Reason::RollingOut, message);
    }
    let because = |reason, why: &str| ConditionSummary::reconciling(reason, format!("{message}: {why}"));
    let mut conditions = status.conditions.iter().flatten();
    if let Some(refused) =
        conditions.clone().find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")
    {
        let words = refused.message.as_deref().unwrap_or_default();
        let why = format!(
            "Kubernetes refuses its pods: {words}. Correct spec.workload.template, or change the quota or policy that it names"
        );
        return because(Reason::PodsRefused, &why);
    }
    // Failures of pods of an old template say nothing of the newest ones.
    if let Some(failure) = diagnosis.failure.as_ref().filter(|_| updated > 0) {
        return because(failure.reason, &failure.message);
    }
    match conditions.find(|condition| condition.reason.as_deref() == Some("ProgressDeadlineExceeded")) {
        Some(stuck) => because(Reason::RolloutStuck, stuck.message.as_deref().unwrap_or_default()),
        None => ConditionSummary::reconciling(Reason::RollingOut, message),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::apps::v1::DeploymentSpec, apimachinery::pkg::apis::meta::v1::ObjectMeta};
    use serde_json::json;

    use super::*;
    use crate::pods::state::PodFailure;

    /// A Deployment of generation 3 that wants two pods.
    fn deployment(wanted: i32, status: DeploymentStatus) -> Deployment {
        Deployment {
            metadata: ObjectMeta { generation: Some(3), ..ObjectMeta::default() },
            spec: Some(DeploymentSpec { replicas: Some(wanted), ..DeploymentSpec::default() }),
            status: Some(status),
        }
    }

    fn status(replicas: i32, updated: i32, available: i32) -> DeploymentStatus {
        DeploymentStatus {
            observed_generation: Some(3),
            replicas: Some(replicas),
            updated_replicas: Some(updated),
            available_replicas: Some(available),
            ..DeploymentStatus::default()
        }
    }

    fn with_condition(status: &DeploymentStatus, condition: &serde_json::Value) -> DeploymentStatus {
        let condition = serde_json::from_value(condition.clone()).unwrap();
        DeploymentStatus { conditions: Some(vec![condition]), ..status.clone() }
    }

    fn crash() -> Diagnosis {
        let failure = PodFailure { reason: Reason::CrashLoop, message: "it ends".to_owned() };
        Diagnosis { failure: Some(failure), requeue_after: None }
    }

    fn summary_of(
        wanted: i32,
        status: DeploymentStatus,
        diagnosis: &Diagnosis,
    ) -> (Option<bool>, Reason, String) {
        let ConditionSummary { ready, reason, message, .. } =
            summarize(wanted, &deployment(wanted, status), diagnosis);
        (ready, reason, message)
    }

    fn reason(wanted: i32, status: DeploymentStatus) -> (Option<bool>, Reason) {
        let (ready, reason, _) = summary_of(wanted, status, &Diagnosis::default());
        (ready, reason)
    }

    #[test]
    fn pods_are_ready_once_all_are_new_and_available_and_no_old_one_is_left() {
        assert_eq!(reason(2, status(2, 2, 2)), (Some(true), Reason::Reconciled));
        assert_eq!(reason(2, status(3, 2, 2)), (Some(false), Reason::RollingOut));
        assert_eq!(reason(2, status(2, 1, 2)), (Some(false), Reason::RollingOut));
        assert_eq!(reason(2, status(2, 2, 1)), (Some(false), Reason::RollingOut));
    }

    #[test]
    fn a_status_of_an_older_generation_says_nothing() {
        let stale = DeploymentStatus { observed_generation: Some(2), ..status(2, 2, 2) };
        assert_eq!(reason(2, stale.clone()), (Some(false), Reason::RollingOut));
        assert_eq!(reason(2, DeploymentStatus::default()), (Some(false), Reason::RollingOut));
        assert_eq!(summary_of(2, stale, &crash()).1, Reason::RollingOut);
    }

    #[test]
    fn no_pods_on_purpose_are_ready() {
        assert_eq!(reason(0, status(0, 0, 0)), (Some(true), Reason::ScaledToZero));
        assert_eq!(reason(0, status(1, 0, 1)), (Some(false), Reason::RollingOut));
    }

    #[test]
    fn a_rollout_that_makes_no_progress_says_so() {
        let stuck = json!({"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "timed out"});
        assert_eq!(
            summary_of(1, with_condition(&status(1, 1, 0), &stuck), &Diagnosis::default()),
            (Some(false), Reason::RolloutStuck, "0 of 1 pods are ready, 1 of them new: timed out".to_owned())
        );
        // Why is more than that.
        assert_eq!(summary_of(1, with_condition(&status(1, 1, 0), &stuck), &crash()).1, Reason::CrashLoop);
    }

    #[test]
    fn what_is_wrong_with_the_new_pods_is_told_until_all_are_ready() {
        let crashing = "1 of 2 pods are ready, 2 of them new: it ends".to_owned();
        assert_eq!(summary_of(2, status(2, 2, 1), &crash()), (Some(false), Reason::CrashLoop, crashing));
        assert_eq!(summary_of(2, status(2, 0, 1), &crash()).1, Reason::RollingOut);
        assert_eq!(summary_of(2, status(2, 2, 2), &crash()).1, Reason::Reconciled);
    }

    #[test]
    fn pods_that_kubernetes_refuses_are_told_in_its_words() {
        let refused = json!({"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota: q"});
        let (ready, reason, message) =
            summary_of(2, with_condition(&status(0, 0, 0), &refused), &Diagnosis::default());
        assert_eq!((ready, reason), (Some(false), Reason::PodsRefused));
        assert!(message.contains("exceeded quota: q. Correct spec.workload.template"), "{message}");
    }

    #[test]
    fn pods_of_another_are_as_ready_as_they_are_told_there() {
        let spec = serde_saphyr::from_str("{streamRef: {name: users}, workloadRef: {name: host}}").unwrap();
        let host = |status: &str, reason: &str| -> EventConsumer {
            let condition = json!({
                "type": "WorkloadReady", "status": status, "reason": reason, "message": "words",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            });
            let template = json!({"spec": {"containers": [{"name": "app"}]}});
            serde_json::from_value(json!({
                "metadata": {"name": "host"},
                "spec": {"streamRef": {"name": "orders"}, "workload": {"template": template}},
                "status": {"conditions": [condition]},
            }))
            .unwrap()
        };
        let told = |status, reason| shared(&spec, Some(&host(status, reason))).summary;
        assert_eq!(told("True", "Reconciled"), ConditionSummary::ready("words"));
        assert_eq!(
            told("False", "CrashLoop"),
            ConditionSummary::reconciling(Reason::CrashLoop, "pods of host: words")
        );
        assert_eq!(told("False", "FromTheFuture").reason, Reason::RollingOut);
        let itself = EventConsumer::new("host", spec.clone());
        let refused = shared(&spec, Some(&itself)).summary;
        assert!(refused.reason == Reason::Invalid && refused.message.contains("names itself"), "{refused:?}");
    }
}
