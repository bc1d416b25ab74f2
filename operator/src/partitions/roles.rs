//! In: the pods of a workload. Out: what each is to the workload. Pure.

use std::collections::BTreeMap;

use jetwright_partitions::coordinator::PodRole;

use crate::pods::processes::ProcessPod;

/// What each pod is to its workload, by UID. The newest pod has the workload's template: also after a rollback, whose pods are new ones of an
/// old template.
#[must_use]
pub fn roles(pods: &[ProcessPod]) -> BTreeMap<String, PodRole> {
    let newest = pods.iter().filter(|pod| !pod.is_ending).max_by_key(|pod| pod.created);
    let role = |pod: &ProcessPod| match newest {
        _ if pod.is_ending => PodRole::Retiring,
        Some(newest) if newest.revision != pod.revision => PodRole::Earlier,
        _ => PodRole::Current,
    };
    pods.iter().map(|pod| (pod.uid.clone(), role(pod))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, revision: &str, created: i64) -> ProcessPod {
        ProcessPod { uid: uid.into(), revision: revision.into(), created, ..ProcessPod::default() }
    }

    fn told(pods: &[ProcessPod]) -> Vec<(String, PodRole)> {
        roles(pods).into_iter().collect()
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
}
