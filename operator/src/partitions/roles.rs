//! In: the pods of a workload, its Deployment, and the pods that a scale-down empties. Out: what each pod is to the workload. Pure.

use std::collections::{BTreeMap, BTreeSet};

use jetwright_partitions::coordinator::PodRole;
use k8s_openapi::api::apps::v1::Deployment;

use crate::pods::processes::{ProcessPod, current_template};

/// What each pod is to its workload, by UID. `template` is the one that its Deployment has, as [`template_of`] says; `retiring` are the pods
/// that a scale-down empties.
#[must_use]
pub fn roles(
    pods: &[ProcessPod],
    template: Option<&str>,
    retiring: &BTreeSet<String>,
) -> BTreeMap<String, PodRole> {
    let current = current_template(pods, template);
    let role = |pod: &ProcessPod| match current {
        _ if pod.is_ending || retiring.contains(&pod.uid) => PodRole::Retiring,
        Some(current) if pod.revision != current => PodRole::Earlier,
        _ => PodRole::Current,
    };
    pods.iter().map(|pod| (pod.uid.clone(), role(pod))).collect()
}

/// The template that a Deployment rolls out or has rolled out, by the label of its pods (`pod-template-hash`). Only its condition Progressing names
/// it, with the ReplicaSet's name (pkg/controller/deployment/progress.go and sync.go of Kubernetes): a Deployment that is scaled meanwhile gets
/// new pods of earlier templates, too.
#[must_use]
pub fn template_of<'a>(name: &str, deployment: &'a Deployment) -> Option<&'a str> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let progressing = conditions.iter().find(|condition| condition.type_ == "Progressing")?;
    let replica_set = progressing.message.as_deref()?.split('"').nth(1)?;
    replica_set.strip_prefix(name)?.strip_prefix('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, revision: &str, created: i64) -> ProcessPod {
        ProcessPod { uid: uid.into(), revision: revision.into(), created, ..ProcessPod::default() }
    }

    fn told(pods: &[ProcessPod]) -> Vec<(String, PodRole)> {
        roles(pods, None, &BTreeSet::new()).into_iter().collect()
    }

    fn progressing(message: &str) -> Deployment {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "shop"},
            "status": {"conditions": [
                {"type": "Available", "status": "True", "message": "Deployment has \"shop-r0\""},
                {"type": "Progressing", "status": "True", "message": message},
            ]},
        }))
        .unwrap()
    }

    #[test]
    fn in_a_rollout_the_pods_of_the_newest_template_are_current_also_in_one_back() {
        use PodRole::{Current, Earlier};
        let there = [pod("a", "r1", 1), pod("b", "r2", 2)];
        assert_eq!(told(&there), [("a".into(), Earlier), ("b".into(), Current)]);
        let back = [pod("b", "r2", 2), pod("c", "r1", 3)];
        assert_eq!(told(&back), [("b".into(), Earlier), ("c".into(), Current)]);
        assert_eq!(told(&[pod("a", "r1", 1)]), [("a".into(), Current)]);
    }

    #[test]
    fn pods_that_are_told_to_stop_retire_and_have_no_say_in_what_is_newest() {
        use PodRole::{Current, Retiring};
        let ending = ProcessPod { is_ending: true, ..pod("z", "r2", 9) };
        assert_eq!(told(&[pod("a", "r1", 1), ending]), [("a".into(), Current), ("z".into(), Retiring)]);
    }

    #[test]
    fn a_deployment_names_its_template_by_the_replica_set_that_it_rolls_out() {
        for message in [
            "Created new replica set \"shop-r2\"",
            "Found new replica set \"shop-r2\"",
            "ReplicaSet \"shop-r2\" is progressing.",
            "ReplicaSet \"shop-r2\" has successfully progressed.",
            "ReplicaSet \"shop-r2\" has timed out progressing.",
        ] {
            assert_eq!(template_of("shop", &progressing(message)), Some("r2"), "{message}");
        }
        for message in ["Deployment is paused", "Deployment \"shop\" has successfully progressed."] {
            assert_eq!(template_of("shop", &progressing(message)), None, "{message}");
        }
        assert_eq!(template_of("shop", &Deployment::default()), None);
    }

    #[test]
    fn in_a_rollout_that_is_scaled_the_newest_pod_may_be_an_earlier_one() {
        use PodRole::{Current, Earlier};
        let there = [pod("a", "r1", 1), pod("b", "r2", 2), pod("c", "r1", 3)];
        let expected = [("a".into(), Earlier), ("b".into(), Current), ("c".into(), Earlier)];
        assert_eq!(roles(&there, Some("r2"), &BTreeSet::new()).into_iter().collect::<Vec<_>>(), expected);
        // The template has no pods yet: those that are there do the work.
        let before = roles(&[pod("a", "r1", 1)], Some("r2"), &BTreeSet::new());
        assert_eq!(before.into_iter().collect::<Vec<_>>(), [("a".into(), Current)]);
    }

    #[test]
    fn pods_that_a_scale_down_empties_retire_and_still_say_what_is_newest() {
        use PodRole::{Earlier, Retiring};
        let pods = [pod("a", "r1", 1), pod("b", "r2", 2)];
        let expected = [("a".into(), Earlier), ("b".into(), Retiring)].into();
        assert_eq!(roles(&pods, None, &["b".into()].into()), expected);
    }
}
