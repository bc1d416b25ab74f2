//! In: the Deployment as Kubernetes has it. Out: what it means for the EventConsumer's status. Pure.

use jetwright_crds::{
    EventConsumer, EventConsumerSpec,
    conditions::{self, Reason, WORKLOAD_READY},
};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus};

use super::{build::WORKLOAD_LABEL, validate::Desired};
use crate::{
    kubernetes::status::Verdict,
    outcome::{Problem, listed},
};

/// What the pods are doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// The pods, where this EventConsumer declares them itself.
    pub own: Option<Own>,
    /// Whether they are as declared.
    pub verdict: Verdict,
}

/// An EventConsumer's own pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// How many there are.
    pub replicas: i32,
    /// Their label selector, as text.
    pub selector: String,
}

/// The spec's workload cannot be.
pub fn invalid(problems: &[Problem]) -> Running {
    Running { own: None, verdict: Verdict::stalled(Reason::Invalid, listed(problems)) }
}

/// The pods are another EventConsumer's: as ready as they say there.
pub fn elsewhere(spec: &EventConsumerSpec, other: Option<&EventConsumer>) -> Running {
    let name = spec.workload_ref.as_ref().map(|reference| reference.name.as_str()).unwrap_or_default();
    let verdict = match other {
        None => Verdict::stalled(
            Reason::NotFound,
            format!("spec.workloadRef: there is no EventConsumer {name}: make it"),
        ),
        Some(other) if other.spec.workload.is_none() => Verdict::stalled(
            Reason::Invalid,
            format!(
                "spec.workloadRef: EventConsumer {name} has no spec.workload: name the one that declares the pods"
            ),
        ),
        Some(other) => {
            let known = other.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
            match conditions::get(known, WORKLOAD_READY) {
                Some(ready) if ready.status == "True" => Verdict::ready(&ready.message),
                Some(ready) => {
                    Verdict::reconciling(Reason::RollingOut, format!("pods of {name}: {}", ready.message))
                }
                None => Verdict::reconciling(Reason::RollingOut, format!("pods of {name}: not there yet")),
            }
        }
    };
    Running { own: None, verdict }
}

/// The pods are the EventConsumer's own.
pub fn running(desired: &Desired, deployment: &Deployment) -> Running {
    let status = deployment.status.clone().unwrap_or_default();
    let own = Own {
        replicas: status.replicas.unwrap_or_default(),
        selector: format!("{WORKLOAD_LABEL}={}", desired.name),
    };
    Running { own: Some(own), verdict: verdict(desired.replicas, deployment.metadata.generation, &status) }
}

fn verdict(wanted: i32, generation: Option<i64>, status: &DeploymentStatus) -> Verdict {
    let seen = status.observed_generation >= generation;
    let updated = status.updated_replicas.unwrap_or_default();
    let available = status.available_replicas.unwrap_or_default();
    let total = status.replicas.unwrap_or_default();
    if seen && wanted == 0 && total == 0 {
        return Verdict { reason: Reason::ScaledToZero, ..Verdict::ready("there are no pods on purpose") };
    }
    if seen && updated >= wanted && available >= wanted && total <= wanted {
        return Verdict::ready(format!("{available} of {wanted} pods are ready"));
    }
    let message = format!("{available} of {wanted} pods are ready, {updated} of them new");
    let mut conditions = status.conditions.iter().flatten();
    let stuck = conditions.find(|condition| condition.reason.as_deref() == Some("ProgressDeadlineExceeded"));
    match stuck {
        Some(condition) if seen => {
            let why = condition.message.as_deref().unwrap_or_default();
            Verdict::reconciling(Reason::RolloutStuck, format!("{message}: {why}"))
        }
        _ => Verdict::reconciling(Reason::RollingOut, message),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::DeploymentCondition;

    use super::*;

    fn status(replicas: i32, updated: i32, available: i32) -> DeploymentStatus {
        DeploymentStatus {
            observed_generation: Some(3),
            replicas: Some(replicas),
            updated_replicas: Some(updated),
            available_replicas: Some(available),
            ..DeploymentStatus::default()
        }
    }

    fn reason(wanted: i32, status: &DeploymentStatus) -> (Option<bool>, Reason) {
        let verdict = verdict(wanted, Some(3), status);
        (verdict.ready, verdict.reason)
    }

    #[test]
    fn pods_are_ready_once_all_are_new_and_available_and_no_old_one_is_left() {
        assert_eq!(reason(2, &status(2, 2, 2)), (Some(true), Reason::Reconciled));
        assert_eq!(reason(2, &status(3, 2, 2)), (Some(false), Reason::RollingOut));
        assert_eq!(reason(2, &status(2, 1, 2)), (Some(false), Reason::RollingOut));
        assert_eq!(reason(2, &status(2, 2, 1)), (Some(false), Reason::RollingOut));
    }

    #[test]
    fn a_status_of_an_older_generation_says_nothing() {
        let stale = DeploymentStatus { observed_generation: Some(2), ..status(2, 2, 2) };
        assert_eq!(reason(2, &stale), (Some(false), Reason::RollingOut));
        assert_eq!(reason(2, &DeploymentStatus::default()), (Some(false), Reason::RollingOut));
    }

    #[test]
    fn no_pods_on_purpose_are_ready() {
        assert_eq!(reason(0, &status(0, 0, 0)), (Some(true), Reason::ScaledToZero));
        assert_eq!(reason(0, &status(1, 0, 1)), (Some(false), Reason::RollingOut));
    }

    #[test]
    fn a_rollout_that_makes_no_progress_says_so() {
        let stuck = DeploymentCondition {
            reason: Some("ProgressDeadlineExceeded".into()),
            message: Some("timed out".into()),
            ..DeploymentCondition::default()
        };
        let status = DeploymentStatus { conditions: Some(vec![stuck]), ..status(1, 1, 0) };
        assert_eq!(reason(1, &status), (Some(false), Reason::RolloutStuck));
    }
}
