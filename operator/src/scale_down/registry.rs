//! The scale-downs of all workloads, while this process leads. In: what is wanted of a workload, and what its pods still have. Out: the plan for
//! the workload's pipeline, the pods that retire for those who share out partitions; and the names of the objects whose plan may be another now.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::decision::{Look, Plan, decide};
use crate::{changes::Changes, kubernetes::stores::Name, pods::processes::ProcessPod};

/// How long no hints are written after Kubernetes refused one.
const REFUSAL_TTL: Duration = Duration::from_mins(5);

/// What is wanted of a workload.
pub struct Wanted<'a> {
    pub replicas: u32,
    /// Pods that its Deployment has to have now.
    pub deployed: u32,
    pub pods: &'a [ProcessPod],
    /// The template that it has, where that is known.
    pub template: Option<&'a str>,
    /// Its consumers with order, and how long a hand-over takes at most.
    pub ordered: Option<(&'a [Name], Duration)>,
}

/// A pod that is being emptied.
#[derive(Debug)]
struct Retiring {
    since: Instant,
    /// A hint was written, or tried to.
    is_marked: bool,
    /// That it goes with what it has was said.
    is_reported: bool,
    /// Its partitions, by the consumer.
    left: BTreeMap<Name, u32>,
}

/// All of them, by the EventConsumer that declares the workload.
#[derive(Debug, Default)]
pub struct ScaleDowns {
    workloads: Mutex<HashMap<Name, BTreeMap<String, Retiring>>>,
    refused: Mutex<Refusal>,
    /// Objects whose pods have less left than before.
    pub changes: Changes,
}

/// Whether Kubernetes lets this operator write hints.
#[derive(Debug, Default)]
struct Refusal {
    last: Option<Instant>,
    is_reported: bool,
}

impl ScaleDowns {
    /// Decides for a workload, and remembers which pods go. What is to be said or written once is in one plan alone.
    pub fn plan(&self, workload: &Name, wanted: &Wanted<'_>) -> Plan {
        let now = Instant::now();
        let mut workloads = self.workloads.lock();
        let mut before = workloads.remove(workload).unwrap_or_default();
        let since = before.iter().map(|(uid, retiring)| (uid.clone(), retiring.since)).collect();
        let consumers = wanted.ordered.map(|(consumers, _)| consumers).unwrap_or_default();
        let left = |uid: &str| -> Option<u32> {
            let left = &before.get(uid)?.left;
            consumers.iter().map(|consumer| left.get(consumer).copied()).sum()
        };
        let mut plan = decide(&Look {
            now,
            wanted: wanted.replicas,
            deployed: wanted.deployed,
            pods: wanted.pods,
            template: wanted.template,
            drain: wanted.ordered.map(|(_, drain)| drain),
            retiring: &since,
            left: &left,
        });
        let retiring = plan.retiring.iter().map(|uid| {
            let new = || Retiring { since: now, is_marked: false, is_reported: false, left: BTreeMap::new() };
            (uid.clone(), before.remove(uid).unwrap_or_else(new))
        });
        let mut retiring: BTreeMap<_, _> = retiring.collect();
        let mut once = |uid: &str, flag: fn(&mut Retiring) -> &mut bool| {
            retiring.get_mut(uid).is_some_and(|retiring| !std::mem::replace(flag(retiring), true))
        };
        plan.overdue.retain(|pod| once(&pod.pod.uid, |retiring| &mut retiring.is_reported));
        // What is not sent is not tried: it is marked once the operator may.
        if self.is_refused() {
            plan.mark.clear();
            plan.unmark.clear();
        }
        plan.mark.retain(|pod| once(&pod.uid, |retiring| &mut retiring.is_marked));
        if !retiring.is_empty() {
            workloads.insert(workload.clone(), retiring);
        }
        plan
    }

    /// The pods of a workload that give up what they have, by UID.
    #[must_use]
    pub fn retiring(&self, workload: &Name) -> BTreeSet<String> {
        self.workloads.lock().get(workload).into_iter().flat_map(BTreeMap::keys).cloned().collect()
    }

    /// Takes over how many partitions of a consumer its retiring pods have, by UID: of those that are missing that is not known.
    pub fn see(&self, workload: &Name, consumer: &Name, left: &BTreeMap<String, u32>) {
        let mut workloads = self.workloads.lock();
        let Some(pods) = workloads.get_mut(workload) else { return };
        let mut is_news = false;
        for (uid, retiring) in pods {
            let before = match left.get(uid) {
                Some(left) => retiring.left.insert(consumer.clone(), *left),
                None => retiring.left.remove(consumer),
            };
            is_news |= before != left.get(uid).copied();
        }
        if is_news {
            self.changes.add(workload.clone());
        }
    }

    /// Forgets a workload that is gone.
    pub fn forget(&self, workload: &Name) {
        self.workloads.lock().remove(workload);
    }

    fn is_refused(&self) -> bool {
        self.refused.lock().last.is_some_and(|last| last.elapsed() < REFUSAL_TTL)
    }

    /// Kubernetes refused a hint; whether that is the first time.
    pub fn refused(&self) -> bool {
        let mut refused = self.refused.lock();
        refused.last = Some(Instant::now());
        !std::mem::replace(&mut refused.is_reported, true)
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, StreamExt as _};

    use super::*;

    const DRAIN: Duration = Duration::from_secs(30);

    fn name(name: &str) -> Name {
        ("shop".into(), name.into())
    }

    fn pods() -> Vec<ProcessPod> {
        let pod = |(created, uid): (i64, &str)| ProcessPod {
            name: format!("pod-{uid}"),
            uid: uid.into(),
            created,
            ..ProcessPod::default()
        };
        [(1, "a"), (2, "b")].map(pod).into()
    }

    struct World {
        scale_downs: ScaleDowns,
        pods: Vec<ProcessPod>,
        consumers: Vec<Name>,
    }

    impl World {
        fn new() -> Self {
            let consumers = vec![name("orders"), name("payments")];
            Self { scale_downs: ScaleDowns::default(), pods: pods(), consumers }
        }

        fn plan(&self, replicas: u32) -> Plan {
            let ordered = Some((self.consumers.as_slice(), DRAIN));
            self.scale_downs.plan(
                &name("orders"),
                &Wanted { replicas, deployed: 2, pods: &self.pods, template: None, ordered },
            )
        }

        fn see(&self, consumer: &str, left: &[(&str, u32)]) {
            let left = left.iter().map(|(uid, left)| ((*uid).to_owned(), *left)).collect();
            self.scale_downs.see(&name("orders"), &name(consumer), &left);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_empty_when_it_has_nothing_of_any_consumer_and_each_change_triggers_the_workload() {
        let world = World::new();
        let mut changes = Box::pin(world.scale_downs.changes.of(|_| true));
        let mut is_triggered = || changes.next().now_or_never().flatten().is_some();
        assert_eq!(world.plan(1).replicas, 2);
        assert_eq!(world.scale_downs.retiring(&name("orders")), ["b".to_owned()].into());
        world.see("orders", &[("b", 2)]);
        assert!(is_triggered());
        world.see("orders", &[("b", 2)]);
        assert!(!is_triggered(), "nothing changed");
        assert_eq!(world.plan(1).emptying[0].left, None, "what it has of the other is not known");
        world.see("orders", &[("b", 0)]);
        world.see("payments", &[("b", 1)]);
        assert_eq!(world.plan(1).emptying[0].left, Some(1));
        world.see("payments", &[("b", 0)]);
        assert!(is_triggered());
        assert_eq!(world.plan(1).replicas, 1);
        world.see("payments", &[]);
        assert_eq!(world.plan(1).replicas, 2, "the bucket cannot be read");
        world.plan(2);
        assert_eq!(world.scale_downs.retiring(&name("orders")), BTreeSet::new());
        world.see("orders", &[("b", 4)]);
        assert_eq!(world.plan(1).emptying[0].left, None, "what was before does not count");
    }

    #[tokio::test(start_paused = true)]
    async fn hints_and_what_is_overdue_are_in_one_plan_alone() {
        let world = World::new();
        assert_eq!(world.plan(1).mark.len(), 1);
        assert_eq!(world.plan(1).mark, []);
        tokio::time::advance(DRAIN).await;
        let plan = world.plan(1);
        assert_eq!((plan.replicas, plan.overdue.len()), (1, 1));
        let plan = world.plan(1);
        assert_eq!((plan.replicas, plan.overdue.len()), (1, 0));
        world.scale_downs.forget(&name("orders"));
        assert_eq!(world.scale_downs.retiring(&name("orders")), BTreeSet::new());
    }

    #[tokio::test(start_paused = true)]
    async fn where_hints_are_refused_they_are_left_out_for_a_while_which_is_said_once() {
        let world = World::new();
        assert!(world.scale_downs.refused());
        assert_eq!((world.plan(1).mark, world.plan(1).replicas), (vec![], 2));
        world.plan(2);
        tokio::time::advance(REFUSAL_TTL).await;
        assert_eq!(world.plan(1).mark.len(), 1);
        assert!(!world.scale_downs.refused());
    }
}
