//! What was read last of each stream and consumer, by the object that owns it. Compact, since there are thousands.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;

use super::{assets::ReplicatedAssets, dead_letters::Counted};
use crate::kubernetes::stores::Name;

/// Samples in a row that do not have a thing before it counts as gone: while lists are read page by page, others move to pages that were
/// read already.
const MAX_MISSES: u8 = 2;

/// Figures of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamFigures {
    pub messages: u64,
    pub bytes: u64,
    /// When the oldest message was stored, in seconds since 1970; None while there is none.
    pub first_at: Option<f64>,
    pub last_sequence: u64,
    pub max_messages: Option<u64>,
    pub max_bytes: Option<u64>,
    pub consumers: u64,
    pub replicas_wanted: u8,
    pub replicas_current: u8,
    pub is_led: bool,
    pub discards_new: bool,
    pub leader: Option<Arc<str>>,
    /// Servers that keep copies beside the leader, with the operations that each is behind.
    pub peers: Box<[(Arc<str>, u64)]>,
}

/// Figures of a consumer.
#[derive(Clone, Debug, PartialEq)]
pub struct ConsumerFigures {
    pub pending: u64,
    pub ack_pending: u64,
    pub max_ack_pending: Option<u64>,
    pub redelivered: u64,
    pub waiting_pulls: u64,
    pub delivered_sequence: u64,
    /// In seconds since 1970; None where it never delivered.
    pub delivered_at: Option<f64>,
    pub ack_floor_sequence: u64,
    pub ack_floor_at: Option<f64>,
    pub is_paused: bool,
    pub is_led: bool,
}

/// What is known of one thing.
#[derive(Clone, Debug)]
pub struct Sampled<F> {
    /// Name of the stream in JetStream.
    pub stream: Arc<str>,
    /// Name of the consumer in JetStream; empty for a stream.
    pub consumer: Box<str>,
    /// When it was read, in seconds since 1970.
    pub at: f64,
    /// None where its servers did not answer: that it has no leader is all that is known.
    pub figures: Option<F>,
    /// Dead letters that wait, where the consumer keeps them.
    pub dead_letters: Option<Counted>,
    misses: u8,
}

/// Figures of all things of one kind.
pub struct Group<F>(Mutex<HashMap<Name, Sampled<F>>>);

impl<F> Default for Group<F> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// The last sample.
#[derive(Default)]
pub struct Sample {
    pub streams: Group<StreamFigures>,
    pub consumers: Group<ConsumerFigures>,
    /// What the servers of the connection keep, as its last whole list of streams says.
    pub assets: Mutex<ReplicatedAssets>,
}

impl<F: Clone> Group<F> {
    /// Takes over what was read of the thing of an object just now: None where nobody answered for it.
    pub fn set(&self, name: Name, (stream, consumer): (Arc<str>, &str), figures: Option<F>, at: f64) {
        let mut all = self.0.lock();
        let known = all.get(&name).filter(|known| known.stream == stream && *known.consumer == *consumer);
        let (consumer, dead_letters) = known
            .map_or_else(|| (consumer.into(), None), |known| (known.consumer.clone(), known.dead_letters));
        all.insert(name, Sampled { stream, consumer, at, figures, dead_letters, misses: 0 });
    }

    /// A whole list does not have the thing of an object.
    pub fn missed(&self, name: &Name) {
        let mut all = self.0.lock();
        let Some(known) = all.get_mut(name) else { return };
        known.misses += 1;
        if known.misses >= MAX_MISSES {
            all.remove(name);
        }
    }

    pub fn dead_letters(&self, name: &Name) -> Option<Counted> {
        self.0.lock().get(name)?.dead_letters
    }

    pub fn set_dead_letters(&self, name: &Name, counted: Option<Counted>) {
        if let Some(known) = self.0.lock().get_mut(name) {
            known.dead_letters = counted;
        }
    }

    /// Drops what belongs to no object any more.
    pub fn retain(&self, is_there: impl Fn(&Name) -> bool) {
        let mut all = self.0.lock();
        all.retain(|name, _| is_there(name));
        all.shrink_to_fit();
    }

    /// Everything, in the order of the names.
    pub fn all(&self) -> Vec<(Name, Sampled<F>)> {
        let mut all: Vec<_> =
            self.0.lock().iter().map(|(name, known)| (name.clone(), known.clone())).collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }
}

/// Names that many things share, each kept once.
#[derive(Default)]
pub struct Intern(HashSet<Arc<str>>);

impl Intern {
    pub fn get(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        let name: Arc<str> = name.into();
        self.0.insert(name.clone());
        name
    }

    /// Drops what nothing has any more.
    pub fn prune(&mut self) {
        self.0.retain(|name| Arc::strong_count(name) > 1);
    }
}

/// Now, in seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Name {
        ("shop".into(), "orders".into())
    }

    fn known(group: &Group<u64>) -> Vec<Option<u64>> {
        group.all().into_iter().map(|(_, sampled)| sampled.figures).collect()
    }

    #[test]
    fn what_one_list_does_not_have_stays_and_what_two_do_not_have_goes() {
        let group = Group::<u64>::default();
        let set = |figures| group.set(name(), ("ORDERS".into(), ""), figures, 1.0);
        set(Some(1));
        group.missed(&name());
        assert_eq!(known(&group), [Some(1)]);
        set(Some(2));
        group.missed(&name());
        assert_eq!(known(&group), [Some(2)]);
        group.missed(&name());
        assert_eq!(known(&group), []);
        set(None);
        assert_eq!(known(&group), [None]);
        group.retain(|_| false);
        assert_eq!(known(&group), []);
    }

    #[test]
    fn dead_letters_stay_with_the_consumer_that_they_are_of() {
        let group = Group::<u64>::default();
        let counted = Some(Counted { count: 3, contents: super::super::answer::Contents::default() });
        group.set(name(), ("ORDERS".into(), "a"), Some(1), 1.0);
        group.set_dead_letters(&name(), counted);
        group.set(name(), ("ORDERS".into(), "a"), Some(2), 2.0);
        assert_eq!(group.dead_letters(&name()), counted);
        group.set(name(), ("ORDERS".into(), "b"), Some(2), 2.0);
        assert_eq!(group.dead_letters(&name()), None);
    }

    #[test]
    fn a_sampled_thing_is_small() {
        assert!(
            size_of::<(Name, Sampled<StreamFigures>)>() <= 272,
            "{}",
            size_of::<(Name, Sampled<StreamFigures>)>()
        );
        assert!(
            size_of::<(Name, Sampled<ConsumerFigures>)>() <= 272,
            "{}",
            size_of::<(Name, Sampled<ConsumerFigures>)>()
        );
    }
}
