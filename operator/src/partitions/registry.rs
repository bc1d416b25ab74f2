//! How the partitions of all ordered consumers are shared out, while this process leads. In: what the driver finds out. Out: the same for the
//! pipelines of the objects and for the metrics; and the names of the objects for which it changed.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use jetwright_partitions::records::DeathReason;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::sharing::{PartitionHolder, Sharing};
use crate::{changes::Changes, kubernetes::stores::Name};

/// How long something has to be other than was told before an object is triggered: a clean hand-over is over by then.
const SETTLING_TIME: Duration = Duration::from_secs(1);
/// Least time between two triggers of an object.
const TRIGGER_INTERVAL: Duration = Duration::from_secs(2);

/// What is known of a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    Shared(Sharing),
    /// The bucket cannot be used, and why.
    Unavailable(String),
}

/// What the driver saw of a consumer.
#[derive(Clone, Debug)]
pub struct Seen {
    pub known: Known,
    /// By the number of the partition; of none where that is not known.
    pub holders: Vec<Option<PartitionHolder>>,
    pub handovers: u64,
}

#[derive(Debug)]
struct Entry {
    known: Known,
    /// By the number of the partition.
    holders: Vec<Option<PartitionHolder>>,
    handovers: u64,
    /// What the object's status says, or what it was last triggered for.
    told: Known,
    triggered_at: Instant,
    /// Since when it is other than that.
    differs_since: Option<Instant>,
}

/// How the operator's own part goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// When the operator's key moved last.
    pub beat: Option<Timestamp>,
    /// Members that were found dead, by how.
    pub deaths: BTreeMap<&'static str, u64>,
}

/// What is known of all of them.
#[derive(Debug, Default)]
pub struct Partitions {
    consumers: Mutex<HashMap<Name, Entry>>,
    course: Mutex<Course>,
    /// Objects for which it changed.
    pub changes: Changes,
}

/// Figures of a consumer, as metrics have them.
pub struct Exported {
    pub name: Name,
    pub sharing: Sharing,
    pub handovers: u64,
}

impl Partitions {
    /// How the partitions of an object's consumer are shared out, for its status; None before that is known. The object is triggered when it
    /// is other than that: a reconcile for another reason may come in the middle of a hand-over.
    #[must_use]
    pub fn tell(&self, object: &Name) -> Option<Known> {
        let mut consumers = self.consumers.lock();
        let entry = consumers.get_mut(object)?;
        (entry.told, entry.differs_since) = (entry.known.clone(), None);
        Some(entry.known.clone())
    }

    /// Who has the partitions of an object's consumer, and what they say of them; of none where that is not known.
    #[must_use]
    pub fn holders(&self, object: &Name) -> Vec<Option<PartitionHolder>> {
        self.consumers.lock().get(object).map(|entry| entry.holders.clone()).unwrap_or_default()
    }

    /// Takes over what is known now.
    pub fn publish(&self, object: &Name, seen: Seen) {
        let Seen { known, holders, handovers } = seen;
        let now = Instant::now();
        let mut consumers = self.consumers.lock();
        let Some(entry) = consumers.get_mut(object) else {
            let told = known.clone();
            consumers.insert(
                object.clone(),
                Entry { known, holders, handovers, told, triggered_at: now, differs_since: None },
            );
            self.changes.add(object.clone());
            return;
        };
        (entry.known, entry.holders, entry.handovers) = (known, holders, handovers);
        if entry.known == entry.told {
            entry.differs_since = None;
            return;
        }
        let since = *entry.differs_since.get_or_insert(now);
        if now - since >= SETTLING_TIME && now - entry.triggered_at >= TRIGGER_INTERVAL {
            (entry.told, entry.triggered_at, entry.differs_since) = (entry.known.clone(), now, None);
            self.changes.add(object.clone());
        }
    }

    /// Forgets the objects that are not among these, of those for which `is_here` holds.
    pub fn retain(&self, objects: &HashSet<Name>, is_here: impl Fn(&str) -> bool) {
        self.consumers.lock().retain(|name, _| !is_here(&name.0) || objects.contains(name));
    }

    /// The operator's key moved.
    pub fn beat(&self) {
        self.course.lock().beat = Some(Timestamp::now());
    }

    /// A member was found dead.
    pub fn died(&self, reason: DeathReason) {
        let reason = match reason {
            DeathReason::ContainerEnded => "ContainerEnded",
            DeathReason::Silent => "Silent",
            DeathReason::Left => "Left",
        };
        *self.course.lock().deaths.entry(reason).or_default() += 1;
    }

    #[must_use]
    pub fn course(&self) -> Course {
        self.course.lock().clone()
    }

    /// Figures of all consumers, in the order of their names.
    #[must_use]
    pub fn exported(&self) -> Vec<Exported> {
        let consumers = self.consumers.lock();
        let shared = consumers.iter().filter_map(|(name, entry)| match &entry.known {
            Known::Shared(sharing) => {
                Some(Exported { name: name.clone(), sharing: sharing.clone(), handovers: entry.handovers })
            }
            Known::Unavailable(_) => None,
        });
        let mut all: Vec<_> = shared.collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, StreamExt as _};

    use super::*;

    fn object() -> Name {
        ("shop".into(), "fulfilment".into())
    }

    fn owned(owned: u32) -> Known {
        Known::Shared(Sharing { count: 4, owned, unowned: 4 - owned, ..Sharing::default() })
    }

    fn seen(known: Known) -> Seen {
        Seen { known, holders: Vec::new(), handovers: 0 }
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_is_triggered_for_what_lasts_and_not_for_a_quick_hand_over() {
        let partitions = Partitions::default();
        let mut changes = Box::pin(partitions.changes.of(|_| true));
        let mut publish = async |known: Known, millis: u64| {
            tokio::time::advance(Duration::from_millis(millis)).await;
            partitions.publish(&object(), seen(known));
            changes.next().now_or_never().flatten().is_some()
        };
        assert!(publish(owned(0), 0).await, "the first that is known");
        assert!(!publish(owned(4), 5_000).await);
        assert!(publish(owned(4), 1_000).await);
        assert!(!publish(owned(3), 5_000).await);
        assert!(!publish(owned(4), 900).await, "a hand-over");
        assert!(!publish(owned(3), 900).await);
        assert!(publish(owned(3), 1_000).await);
        assert!(!publish(owned(2), 100).await);
        assert!(!publish(owned(2), 1_000).await, "told a moment ago");
        assert!(publish(owned(1), 1_000).await);
        assert_eq!(partitions.tell(&object()), Some(owned(1)));
        partitions.retain(&HashSet::new(), |namespace| namespace == "bank");
        assert!(partitions.tell(&object()).is_some());
        partitions.retain(&HashSet::new(), |namespace| namespace == "shop");
        assert_eq!(partitions.tell(&object()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_reconcile_told_in_the_middle_of_a_hand_over_is_corrected_after_it() {
        let partitions = Partitions::default();
        let mut changes = Box::pin(partitions.changes.of(|_| true));
        partitions.publish(&object(), seen(owned(4)));
        assert!(changes.next().now_or_never().flatten().is_some());
        partitions.publish(&object(), seen(owned(3)));
        assert_eq!(partitions.tell(&object()), Some(owned(3)), "a pod became ready");
        for _ in 0..5 {
            tokio::time::advance(SETTLING_TIME).await;
            partitions.publish(&object(), seen(owned(4)));
        }
        assert!(changes.next().now_or_never().flatten().is_some(), "the status says what was");
    }
}
