//! In: the pods of a workload. Out: the order in which Kubernetes removes them. Pure.
//!
//! The rules are those of `ActivePodsWithRanks` in Kubernetes' pkg/controller/controller_utils.go, with two differences. Pods of an earlier template
//! go before those of the newest one, since a rollout removes them anyhow. And a pod that became ready later goes before one that did so earlier,
//! where Kubernetes compares logarithms of their ages and then UIDs: that order changes with time, and the cost of those that were chosen decides
//! before it.

use std::{cmp::Reverse, collections::BTreeMap};

use crate::pods::processes::{ProcessPod, current_template};

/// The pods that do not end, those first that are removed first. `template` is the one that the Deployment has, where that is known; `is_chosen`
/// says whether a pod was chosen before.
pub fn removal_order<'p>(
    pods: &'p [ProcessPod],
    template: Option<&str>,
    is_chosen: impl Fn(&ProcessPod) -> bool,
) -> Vec<&'p ProcessPod> {
    let template = current_template(pods, template);
    let mut active: Vec<_> = pods.iter().filter(|pod| !pod.is_ending).collect();
    let mut on_node: BTreeMap<_, usize> = BTreeMap::new();
    for pod in &active {
        *on_node.entry(&pod.removal.node).or_default() += 1;
    }
    active.sort_by_cached_key(|pod| {
        let removal = &pod.removal;
        let is_stable = (removal.node.is_some(), removal.phase, pod.is_ready);
        let is_needed = (Some(pod.revision.as_str()) == template, !is_chosen(pod), removal.cost);
        let doubled = on_node.get(&removal.node).copied().unwrap_or_default();
        let ready_since = removal.ready_since.unwrap_or(i64::MAX);
        let ages = (Reverse(ready_since), Reverse(removal.restarts), Reverse(pod.created));
        (is_stable, is_needed, Reverse(doubled), ages, pod.uid.clone())
    });
    active
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::processes::{Phase, Removal};

    /// A pod that is as good as any.
    fn pod(uid: &str) -> ProcessPod {
        let removal = Removal {
            node: Some(format!("node-{uid}")),
            phase: Phase::Running,
            ready_since: Some(100),
            ..Removal::default()
        };
        let revision = "r".to_owned();
        ProcessPod {
            uid: uid.into(),
            revision,
            created: 50,
            is_ready: true,
            removal,
            ..ProcessPod::default()
        }
    }

    fn with(uid: &str, change: impl Fn(&mut ProcessPod)) -> ProcessPod {
        let mut pod = pod(uid);
        change(&mut pod);
        pod
    }

    #[test]
    fn each_rule_of_kubernetes_decides_only_where_those_before_it_do_not() {
        let on_one_node = |pod: &mut ProcessPod| pod.removal.node = Some("n".into());
        let pods = [
            pod("m-best"),
            with("a-older", |pod| pod.created = 40),
            with("l-restarted", |pod| pod.removal.restarts = 3),
            with("k-ready-later", |pod| pod.removal.ready_since = Some(200)),
            with("j-doubled", on_one_node),
            with("i-doubled", on_one_node),
            with("h-cheap", |pod| pod.removal.cost = -1),
            with("g-chosen", |_| {}),
            with("f-unready", |pod| (pod.is_ready, pod.removal.cost) = (false, 9)),
            with("e-unknown", |pod| pod.removal.phase = Phase::Unknown),
            with("d-pending", |pod| pod.removal.phase = Phase::Pending),
            with("c-unassigned", |pod| pod.removal.node = None),
            with("b-ending", |pod| (pod.is_ending, pod.removal.node) = (true, None)),
        ];
        let order = removal_order(&pods, None, |pod| pod.uid == "g-chosen");
        let uids: Vec<_> = order.iter().map(|pod| pod.uid.as_str()).collect();
        let expected = [
            "c-unassigned",
            "d-pending",
            "e-unknown",
            "f-unready",
            "g-chosen",
            "h-cheap",
            "i-doubled",
            "j-doubled",
            "k-ready-later",
            "l-restarted",
            "m-best",
            "a-older",
        ];
        assert_eq!(uids, expected);
    }

    #[test]
    fn in_a_rollout_pods_of_the_earlier_template_go_before_those_that_are_ready_of_the_newest() {
        let pods = [
            with("new", |pod| (pod.revision, pod.created) = ("r2".into(), 60)),
            pod("old"),
            with("new-unready", |pod| {
                (pod.revision, pod.created, pod.is_ready) = ("r2".into(), 60, false);
            }),
        ];
        let uids: Vec<_> = removal_order(&pods, None, |_| false).iter().map(|pod| pod.uid.as_str()).collect();
        assert_eq!(uids, ["new-unready", "old", "new"]);
    }
}
