//! In: where the partitions of a consumer are, again and again. Out: how many are owned, what the others wait for and since when, and how often
//! one was handed over. Pure.

use std::collections::BTreeMap;

use jetwright_partitions::{
    coordinator::Whereabouts,
    keys::{ConsumerId, MemberId},
    observer::Observer,
    records::Figures,
};
use jiff::Timestamp;

use crate::pods::processes::ProcessPod;

/// Most partitions whose wait is told.
pub const MAX_WAITING: usize = 10;

/// How the partitions of a consumer are shared out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    pub count: u32,
    /// Handled where they belong.
    pub owned: u32,
    /// On their way to another owner: the one before finishes what it has begun.
    pub draining: u32,
    /// Nobody's.
    pub unowned: u32,
    /// What those wait for that are not owned, the longest first; at most [`MAX_WAITING`].
    pub waiting: Vec<Waiting>,
    /// The pods that a scale-down empties.
    pub emptying: Vec<Emptying>,
}

/// A pod that a scale-down empties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emptying {
    pub pod: String,
    pub uid: String,
    /// Partitions that it has, or that are on their way to it.
    pub left: u32,
}

/// The process that has a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionHolder {
    /// Its id.
    pub process: String,
    /// What it says of the partition; None before its first report, and of one that says nothing.
    pub work: Option<HolderWork>,
}

impl PartitionHolder {
    /// Whether it says that it has events for which it has no room.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.work.is_some_and(|work| work.is_busy)
    }
}

/// What the process that has a partition says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HolderWork {
    /// Whether it has events for which it has no room, lately at each look.
    pub is_busy: bool,
    /// Events that it works at.
    pub running: u64,
    /// Events that it could begin, and has no room for.
    pub queued: u64,
}

/// Who has the partitions of a consumer, by number.
pub fn holders(id: &ConsumerId, places: &[Whereabouts], observer: &Observer) -> Vec<Option<PartitionHolder>> {
    let work = |partition: u32, holder: &MemberId| {
        let Figures { busy, running, queued, .. } =
            *observer.record(holder)?.consumers.get(id)?.partitions.get(&partition)?;
        // Earlier versions say `busy` of what is empty, and nothing else.
        Some(HolderWork { is_busy: busy?, running: running?, queued: queued? })
    };
    let holder = |(partition, place): (u32, &Whereabouts)| {
        let holder = place.holder.as_ref()?;
        Some(PartitionHolder { process: holder.to_string(), work: work(partition, holder) })
    };
    (0..).zip(places).map(holder).collect()
}

/// What these pods have of a consumer. `uid` says of a member in which pod it is.
pub fn emptying<'r>(
    pods: Vec<ProcessPod>,
    places: &[Whereabouts],
    uid: impl Fn(&MemberId) -> Option<&'r str>,
) -> Vec<Emptying> {
    let emptying = pods.into_iter().map(|pod| {
        let is_at = |id: &MemberId| uid(id) == Some(&pod.uid);
        let has = |place: &&Whereabouts| [&place.holder, &place.to].into_iter().flatten().any(is_at);
        let left = u32::try_from(places.iter().filter(has).count()).unwrap_or(u32::MAX);
        Emptying { pod: pod.name, uid: pod.uid, left }
    });
    emptying.collect()
}

/// What a partition waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub partition: u32,
    pub wait: Wait,
    pub since: Timestamp,
}

/// Whom a partition waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// This one, which has it, finishes what it has begun.
    Finish(String),
    /// This one takes it.
    Take(String),
    /// Any one that joins.
    Join,
}

/// What is known of one consumer over time.
#[derive(Debug, Default)]
pub struct Tracker {
    waits: BTreeMap<u32, (Wait, Timestamp)>,
    holders: BTreeMap<u32, MemberId>,
    /// How often a partition came to another member.
    pub handovers: u64,
}

impl Tracker {
    /// Takes over where the partitions are. `name` says what a living member is called, and None of one that is dead or unknown.
    /// `is_scaled_to_zero`: there are no pods on purpose, so what nobody has waits for nobody.
    pub fn see(
        &mut self,
        partitions: &[Whereabouts],
        name: impl Fn(&MemberId) -> Option<String>,
        now: Timestamp,
        is_scaled_to_zero: bool,
    ) -> Sharing {
        let mut sharing = Sharing::default();
        for (partition, place) in (0..).zip(partitions) {
            sharing.count += 1;
            if let Some(holder) = place.holder.as_ref().filter(|_| !place.is_draining) {
                let before = self.holders.insert(partition, holder.clone());
                self.handovers += u64::from(before.is_some_and(|before| before != *holder));
            }
            let Some(wait) = wait_of(place, &name) else {
                sharing.owned += 1;
                self.waits.remove(&partition);
                continue;
            };
            match wait {
                Wait::Finish(_) => sharing.draining += 1,
                Wait::Take(_) | Wait::Join => sharing.unowned += 1,
            }
            if is_scaled_to_zero && place.holder.is_none() {
                self.waits.remove(&partition);
                continue;
            }
            let (known, since) = self.waits.entry(partition).or_insert_with(|| (wait.clone(), now));
            if *known != wait {
                (*known, *since) = (wait, now);
            }
        }
        self.waits.retain(|partition, _| *partition < sharing.count);
        let waiting = self.waits.iter().map(|(partition, (wait, since))| Waiting {
            partition: *partition,
            wait: wait.clone(),
            since: *since,
        });
        sharing.waiting = waiting.collect();
        sharing.waiting.sort_by_key(|waiting| (waiting.since, waiting.partition));
        sharing.waiting.truncate(MAX_WAITING);
        sharing
    }
}

fn wait_of(place: &Whereabouts, name: impl Fn(&MemberId) -> Option<String>) -> Option<Wait> {
    let Whereabouts { holder, is_draining, to } = place;
    let Some(holder) = holder else {
        return Some(to.as_ref().and_then(name).map_or(Wait::Join, Wait::Take));
    };
    let is_at_home = to.as_ref().is_none_or(|to| to == holder);
    (*is_draining || !is_at_home).then(|| Wait::Finish(name(holder).unwrap_or_else(|| holder.to_string())))
}

#[cfg(test)]
mod tests {
    use jetwright_partitions::{
        lease::Clocks,
        records::{MemberRecord, Participation},
        write::Reading,
    };

    use super::*;

    fn member(name: &str) -> MemberId {
        MemberId::new("shop", name).unwrap()
    }

    fn place(holder: Option<&str>, to: Option<&str>) -> Whereabouts {
        Whereabouts { holder: holder.map(member), is_draining: false, to: to.map(member) }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// All but `dead` live.
    fn name(id: &MemberId) -> Option<String> {
        (!id.as_str().ends_with("dead")).then(|| format!("pod-{id}"))
    }

    #[test]
    fn who_is_at_home_is_owned_and_the_others_say_whom_they_wait_for_since_when() {
        let mut tracker = Tracker::default();
        let draining = Whereabouts { is_draining: true, ..place(Some("a"), None) };
        let places = [
            place(Some("a"), Some("a")),
            place(Some("a"), None),
            place(Some("a"), Some("b")),
            draining,
            place(None, Some("b")),
            place(None, Some("dead")),
            place(None, None),
        ];
        let waiting = |partition, wait| Waiting { partition, wait, since: at(1) };
        let expected = Sharing {
            count: 7,
            owned: 2,
            draining: 2,
            unowned: 3,
            waiting: vec![
                waiting(2, Wait::Finish("pod-shop.a".into())),
                waiting(3, Wait::Finish("pod-shop.a".into())),
                waiting(4, Wait::Take("pod-shop.b".into())),
                waiting(5, Wait::Join),
                waiting(6, Wait::Join),
            ],
            emptying: Vec::new(),
        };
        assert_eq!(tracker.see(&places, name, at(1), false), expected);
        assert_eq!(tracker.see(&places, name, at(9), false), expected, "it waits since then");
        let taken = tracker.see(&[place(Some("b"), Some("b"))], name, at(10), false);
        assert_eq!(taken, Sharing { count: 1, owned: 1, ..Sharing::default() });
    }

    #[test]
    fn what_nobody_has_waits_from_when_pods_are_wanted_again() {
        let mut tracker = Tracker::default();
        let places = [place(None, None), place(Some("a"), Some("b"))];
        let mut since = |second, is_scaled_to_zero| {
            let sharing = tracker.see(&places, name, at(second), is_scaled_to_zero);
            assert_eq!((sharing.unowned, sharing.draining), (1, 1));
            sharing.waiting.iter().map(|waiting| (waiting.partition, waiting.since)).collect::<Vec<_>>()
        };
        assert_eq!(since(1, false), [(0, at(1)), (1, at(1))]);
        assert_eq!(since(5, true), [(1, at(1))], "a pod still has one");
        assert_eq!(since(9, false), [(1, at(1)), (0, at(9))]);
        assert_eq!(since(10, false), [(1, at(1)), (0, at(9))]);
    }

    #[test]
    fn a_hand_over_is_counted_when_the_next_one_has_it() {
        let mut tracker = Tracker::default();
        let mut see = |places: &[Whereabouts]| {
            tracker.see(places, name, at(1), false);
            tracker.handovers
        };
        assert_eq!(see(&[place(Some("a"), None), place(None, None)]), 0);
        assert_eq!(see(&[place(Some("a"), Some("b")), place(Some("b"), None)]), 0);
        assert_eq!(see(&[place(None, Some("b")), place(Some("b"), None)]), 0);
        assert_eq!(see(&[place(Some("b"), Some("b")), place(Some("b"), None)]), 1);
    }

    #[test]
    fn a_pod_has_what_it_holds_and_what_is_meant_for_it() {
        let pod = |uid: &str| ProcessPod { uid: uid.into(), ..ProcessPod::default() };
        let places = [
            place(Some("a"), Some("a")),
            place(Some("a"), Some("b")),
            place(Some("c"), Some("a")),
            place(None, Some("a")),
            place(Some("a"), None),
            place(Some("dead"), Some("c")),
            place(None, None),
        ];
        let uid = |id: &MemberId| match id.as_str() {
            "shop.a" => Some("a"),
            "shop.b" => Some("b"),
            _ => None,
        };
        let emptying = emptying(vec![pod("a"), pod("b"), pod("d")], &places, uid);
        let left: Vec<_> = emptying.iter().map(|emptying| (emptying.uid.as_str(), emptying.left)).collect();
        assert_eq!(left, [("a", 5), ("b", 1), ("d", 0)]);
    }

    #[test]
    fn a_partition_has_a_holder_and_what_that_says_of_it() {
        let now = Clocks::default();
        let id: ConsumerId = "orders.fulfilment".parse().unwrap();
        let of_now = Figures { busy: Some(true), running: Some(4), queued: Some(3), ..Figures::default() };
        let said = [(0, of_now), (1, Figures { queued: None, ..of_now }), (4, of_now)];
        let consumers = [(id.clone(), Participation { partitions: said.into() })].into();
        let mut observer = Observer::new(now);
        let record = MemberRecord { consumers, ..MemberRecord::default() };
        observer.member(&member("a"), Reading::Present(7, record), now);
        let held = || place(Some("a"), Some("a"));
        let places = [held(), held(), held(), place(Some("b"), None), place(None, Some("a"))];
        let holder = |process: &str, work| Some(PartitionHolder { process: process.into(), work });
        let work = HolderWork { is_busy: true, running: 4, queued: 3 };
        let expected = [
            holder("shop.a", Some(work)),
            holder("shop.a", None),
            holder("shop.a", None),
            holder("shop.b", None),
            None,
        ];
        assert_eq!(holders(&id, &places, &observer), expected);
    }

    #[test]
    fn of_many_that_wait_the_longest_are_told() {
        let mut tracker = Tracker::default();
        tracker.see(&vec![place(None, None); 20], name, at(5), false);
        let mut places = vec![place(None, None); 20];
        places[0] = place(None, Some("b"));
        let sharing = tracker.see(&places, name, at(6), false);
        let told: Vec<_> = sharing.waiting.iter().map(|waiting| waiting.partition).collect();
        assert_eq!((sharing.unowned, told), (20, (1..11).collect()));
    }
}
