//! In: how many pods are wanted, those that there are, and what those that go still have. Out: how many the Deployment gets, which pods give up
//! their partitions, and on which a hint is written. Pure.
//!
//! The Deployment keeps its number until all pods that go have nothing left, or have had their time. To zero nobody waits: there is nobody to
//! whom partitions could be handed over, and each pod gives up its own when it is told to stop.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use super::ranking::removal_order;
use crate::pods::processes::ProcessPod;

/// What there is.
pub struct Look<'a> {
    pub now: Instant,
    pub wanted: u32,
    /// Pods that the Deployment has to have now.
    pub deployed: u32,
    pub pods: &'a [ProcessPod],
    /// The template that the Deployment has, where that is known.
    pub template: Option<&'a str>,
    /// How long a hand-over takes at most; None where no consumer of the pods has order.
    pub drain: Option<Duration>,
    /// Since when pods are being emptied, by UID.
    pub retiring: &'a BTreeMap<String, Instant>,
    /// Partitions that are at a pod that is being emptied, or on their way to it, by UID; None where that is not known.
    pub left: &'a dyn Fn(&str) -> Option<u32>,
}

/// What follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Pods that the Deployment is to have.
    pub replicas: u32,
    /// Those that give up what they have, by UID.
    pub retiring: BTreeSet<String>,
    /// Those that the Deployment waits for.
    pub emptying: Vec<Emptying>,
    /// Those that have something left, and go nevertheless: they had their time.
    pub overdue: Vec<Emptying>,
    /// Those that get a hint.
    pub mark: Vec<PodRef>,
    /// Those whose hint is removed.
    pub unmark: Vec<PodRef>,
    /// When to decide again, where nothing changes before.
    pub requeue_after: Option<Duration>,
}

/// A pod that is being emptied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emptying {
    pub pod: PodRef,
    /// Its partitions; None where they are not known.
    pub left: Option<u32>,
}

/// Which pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    pub name: String,
    pub uid: String,
}

impl PodRef {
    fn of(pod: &ProcessPod) -> Self {
        Self { name: pod.name.clone(), uid: pod.uid.clone() }
    }
}

/// Decides.
pub fn decide(look: &Look<'_>) -> Plan {
    let Look { wanted, deployed, drain, .. } = *look;
    let chosen = chosen(look);
    let retiring: BTreeSet<_> = chosen.iter().map(|pod| pod.uid.clone()).collect();
    let stay = look.pods.iter().filter(|pod| !pod.is_ending && !retiring.contains(&pod.uid));
    let mut plan = Plan {
        replicas: wanted,
        unmark: stay.filter(|pod| pod.removal.is_marked).map(PodRef::of).collect(),
        ..Plan::default()
    };
    if wanted > 0 {
        let unmarked = chosen.iter().filter(|pod| !pod.removal.is_marked);
        plan.mark = unmarked.map(|pod| PodRef::of(pod)).collect();
    }
    if wanted > 0 && wanted < deployed {
        let emptying =
            chosen.iter().map(|pod| Emptying { pod: PodRef::of(pod), left: (look.left)(&pod.uid) });
        let unfinished: Vec<_> = emptying.filter(|pod| pod.left != Some(0)).collect();
        let time_left = unfinished.iter().map(|Emptying { pod, .. }| {
            let since = look.retiring.get(&pod.uid).copied().unwrap_or(look.now);
            (since + drain.unwrap_or_default()).saturating_duration_since(look.now)
        });
        match time_left.max() {
            Some(time_left) if !time_left.is_zero() => {
                plan.replicas = deployed;
                plan.emptying = unfinished;
                plan.requeue_after = Some(time_left);
            }
            _ => plan.overdue = unfinished,
        }
    }
    plan.retiring = retiring;
    plan
}

/// The pods that go. Once the Deployment has its number, they are those that were chosen before, until Kubernetes has told them to stop: pods
/// that are more than that otherwise are those of a rollout.
fn chosen<'a>(look: &Look<'a>) -> Vec<&'a ProcessPod> {
    if look.drain.is_none() {
        return Vec::new();
    }
    let is_chosen = |pod: &ProcessPod| look.retiring.contains_key(&pod.uid) || pod.removal.is_marked;
    let order = removal_order(look.pods, look.template, is_chosen);
    let excess = order.len().saturating_sub(usize::try_from(look.wanted).unwrap_or(usize::MAX));
    let may_go = |pod: &&ProcessPod| look.deployed > look.wanted || is_chosen(pod);
    order.into_iter().filter(may_go).take(excess).collect()
}

/// The number of pods that was last decided on, of a Deployment that has `deployed` of them: without those that an earlier process has begun
/// to empty. While the Deployment has its number still, pods may be missing, as by a quota; once it has a lower one, they are those that stay.
pub fn intended(deployed: u32, pods: &[ProcessPod]) -> u32 {
    let active = pods.iter().filter(|pod| !pod.is_ending);
    let (marked, others): (Vec<_>, Vec<_>) = active.partition(|pod| pod.removal.is_marked);
    let count = |pods: &[_]| u32::try_from(pods.len()).unwrap_or(u32::MAX);
    deployed.saturating_sub(count(&marked)).max(count(&others)).min(deployed)
}

/// So many of them, in words.
pub fn partitions(count: u32) -> String {
    if count == 1 { "1 partition".to_owned() } else { format!("{count} partitions") }
}

/// What is said of pods that are being emptied; None where there are none.
pub fn words<'a>(pods: impl IntoIterator<Item = (&'a str, Option<u32>)>) -> Option<String> {
    let words = pods.into_iter().map(|(pod, left)| match left {
        Some(left) => format!("emptying pod {pod}: {} left", partitions(left)),
        None => format!("emptying pod {pod}: its partitions are not known"),
    });
    let words: Vec<_> = words.collect();
    (!words.is_empty()).then(|| words.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::processes::{Phase, Removal};

    const DRAIN: Duration = Duration::from_secs(30);

    fn pod(uid: &str, created: i64) -> ProcessPod {
        let removal = Removal {
            node: Some(format!("node-{uid}")),
            phase: Phase::Running,
            ready_since: Some(created),
            ..Removal::default()
        };
        let name = format!("pod-{uid}");
        ProcessPod { name, uid: uid.into(), created, is_ready: true, removal, ..ProcessPod::default() }
    }

    fn marked(pod: ProcessPod) -> ProcessPod {
        let removal = Removal { is_marked: true, cost: i32::MIN, ..pod.removal };
        ProcessPod { removal, ..pod }
    }

    /// Three pods of which `c` goes first, then `b`.
    fn three() -> Vec<ProcessPod> {
        vec![pod("a", 1), pod("b", 2), pod("c", 3)]
    }

    struct World {
        begun: Instant,
        /// Seconds.
        now: u64,
        deployed: u32,
        pods: Vec<ProcessPod>,
        drain: Option<Duration>,
        retiring: BTreeMap<String, Instant>,
        left: BTreeMap<&'static str, u32>,
    }

    impl World {
        fn new() -> Self {
            Self {
                begun: Instant::now(),
                now: 0,
                deployed: 3,
                pods: three(),
                drain: Some(DRAIN),
                retiring: BTreeMap::new(),
                left: BTreeMap::new(),
            }
        }

        /// What is decided, which is remembered as the registry does.
        fn decide(&mut self, wanted: u32) -> Plan {
            let now = self.begun + Duration::from_secs(self.now);
            let plan = decide(&Look {
                now,
                wanted,
                deployed: self.deployed,
                pods: &self.pods,
                template: None,
                drain: self.drain,
                retiring: &self.retiring,
                left: &|uid| self.left.get(uid).copied(),
            });
            let before = std::mem::take(&mut self.retiring);
            let since = |uid: &String| (uid.clone(), before.get(uid).copied().unwrap_or(now));
            self.retiring = plan.retiring.iter().map(since).collect();
            plan
        }
    }

    fn names(pods: &[PodRef]) -> Vec<&str> {
        pods.iter().map(|pod| pod.name.as_str()).collect()
    }

    fn uids(plan: &Plan) -> Vec<&str> {
        plan.retiring.iter().map(String::as_str).collect()
    }

    #[test]
    fn the_deployment_keeps_its_pods_until_those_that_go_are_empty() {
        let mut world = World::new();
        let plan = world.decide(1);
        assert_eq!((plan.replicas, uids(&plan)), (3, vec!["b", "c"]), "nothing is known of them yet");
        assert_eq!((names(&plan.mark), plan.requeue_after), (vec!["pod-c", "pod-b"], Some(DRAIN)));
        world.left = [("b", 0), ("c", 2)].into();
        world.now = 10;
        let plan = world.decide(1);
        let pod = PodRef { name: "pod-c".into(), uid: "c".into() };
        assert_eq!((plan.replicas, plan.emptying), (3, vec![Emptying { pod, left: Some(2) }]));
        assert_eq!(plan.requeue_after, Some(Duration::from_secs(20)));
        world.left.insert("c", 0);
        let plan = world.decide(1);
        assert_eq!((plan.replicas, plan.emptying, plan.requeue_after), (1, vec![], None));
        assert_eq!(plan.overdue, []);
    }

    #[test]
    fn until_kubernetes_has_told_them_to_stop_they_get_nothing_and_nobody_else_is_chosen() {
        let mut world = World::new();
        world.decide(2);
        world.left = [("c", 0)].into();
        assert_eq!(world.decide(2).replicas, 2);
        world.deployed = 2;
        assert_eq!(uids(&world.decide(2)), ["c"]);
        world.pods[2].is_ending = true;
        assert_eq!(uids(&world.decide(2)), [""; 0]);
        // A rollout has more pods for a while.
        world.pods.push(pod("d", 4));
        assert_eq!(world.decide(2), Plan { replicas: 2, ..Plan::default() });
    }

    #[test]
    fn a_wish_that_goes_up_again_gives_pods_their_role_back_and_removes_the_hint() {
        let mut world = World::new();
        world.decide(1);
        world.pods = vec![pod("a", 1), marked(pod("b", 2)), marked(pod("c", 3))];
        world.left = [("b", 1), ("c", 1)].into();
        let plan = world.decide(2);
        assert_eq!((plan.replicas, uids(&plan), names(&plan.unmark)), (3, vec!["c"], vec!["pod-b"]));
        let plan = world.decide(5);
        assert_eq!((plan.replicas, uids(&plan)), (5, vec![]));
        assert_eq!(names(&plan.unmark), ["pod-b", "pod-c"]);
    }

    #[test]
    fn a_pod_that_dies_meanwhile_is_replaced_by_one_that_goes_in_its_stead() {
        let mut world = World::new();
        assert_eq!(uids(&world.decide(2)), ["c"]);
        // Its container starts again: it is not ready, and goes before all others.
        world.pods[0].is_ready = false;
        assert_eq!(uids(&world.decide(2)), ["a"]);
        // It is gone, and Kubernetes makes another one, as it still has to.
        world.pods[0] = ProcessPod { is_ready: false, removal: Removal::default(), ..pod("d", 9) };
        assert_eq!(uids(&world.decide(2)), ["d"]);
        world.pods.remove(0);
        let plan = world.decide(2);
        assert_eq!((plan.replicas, uids(&plan)), (2, vec![]), "there are no more than are wanted");
    }

    #[test]
    fn after_their_time_pods_go_with_what_they_have() {
        let mut world = World::new();
        world.decide(2);
        world.left = [("c", 3)].into();
        world.now = 29;
        assert_eq!(world.decide(2).replicas, 3);
        world.now = 30;
        let plan = world.decide(2);
        assert_eq!((plan.replicas, plan.overdue.len(), plan.overdue[0].left), (2, 1, Some(3)));
        assert_eq!(uids(&plan), ["c"]);
    }

    #[test]
    fn to_zero_all_pods_retire_and_nobody_waits() {
        let mut world = World::new();
        world.left = [("a", 2)].into();
        let plan = world.decide(0);
        let all = ["a", "b", "c"].map(str::to_owned).into();
        assert_eq!(plan, Plan { retiring: all, ..Plan::default() });
    }

    #[test]
    fn without_order_the_deployment_gets_its_number_at_once() {
        let mut world = World { drain: None, ..World::new() };
        assert_eq!(world.decide(1), Plan { replicas: 1, ..Plan::default() });
        world.pods[2] = marked(pod("c", 3));
        assert_eq!(names(&world.decide(1).unmark), ["pod-c"], "it had order before");
    }

    #[test]
    fn an_operator_that_starts_in_the_middle_goes_on_with_the_pods_that_have_the_hint() {
        let mut world = World::new();
        // By their age c would go.
        world.pods[0] = marked(pod("a", 1));
        let plan = world.decide(intended(3, &world.pods));
        assert_eq!((plan.replicas, uids(&plan)), (3, vec!["a"]));
        assert_eq!((plan.mark, plan.unmark), (vec![], vec![]));
    }

    #[test]
    fn what_was_intended_is_without_those_that_are_emptied_and_what_the_deployment_has_where_there_are_none()
    {
        let mut pods = three();
        assert_eq!(intended(3, &pods), 3);
        assert_eq!(intended(8, &pods), 8, "the others are still to come");
        pods[2] = marked(pod("c", 3));
        assert_eq!(intended(3, &pods), 2);
        assert_eq!(intended(4, &pods), 3, "one of the others is still to come");
        assert_eq!(intended(2, &pods), 2, "it was lowered, and Kubernetes removes it");
        pods[2].is_ending = true;
        assert_eq!(intended(2, &pods), 2);
    }

    #[test]
    fn what_is_said_names_each_pod_and_what_it_has() {
        assert_eq!(words([]), None);
        let said = words([("a", Some(3)), ("b", Some(1)), ("c", None)]).unwrap();
        assert_eq!(
            said,
            "emptying pod a: 3 partitions left; emptying pod b: 1 partition left; emptying pod c: its partitions are not known"
        );
    }
}
