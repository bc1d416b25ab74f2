//! Takes over what the watch of the bucket and the answers to requests tell.

use futures::FutureExt as _;
use jetwright_nats::WatchEvent;
use jetwright_partitions::{
    actions::Value,
    keys::{ConsumerId, Key},
    records::{DeathReason, MemberRecord},
    write::Answer,
};
use tokio::time::Instant;

use super::{Done, Session, clocks};
use crate::{
    error::error_chain,
    partitions::requests::{Answered, value_of},
};

/// Most events of the watch that are taken over before anything is decided.
const MAX_BATCH: usize = 256;

impl Session<'_> {
    /// Takes over what the watch tells, and what else it has already; whether that may call for an action.
    pub(super) fn hear_all(&mut self, first: WatchEvent) -> bool {
        let mut acts = self.hear(first);
        for _ in 1..MAX_BATCH {
            let Some(event) = self.watch.next().now_or_never() else { break };
            acts |= self.hear(event);
        }
        acts
    }

    fn hear(&mut self, event: WatchEvent) -> bool {
        match event {
            WatchEvent::Value { key, revision, value } => self.stored(&key, revision, &value),
            WatchEvent::Deleted { key, revision } => {
                if let Ok(key) = key.parse() {
                    self.cleaner.deleted(&key);
                    self.map_observed(&key, None);
                    let _ = self.coordinator.observed(&key, Value::Absent(revision), clocks(self.begun));
                }
                true
            }
            WatchEvent::Synced => {
                self.is_synced = true;
                self.coordinator.synced();
                true
            }
            WatchEvent::Missing => {
                self.reset();
                self.keeping.due = Instant::now();
                true
            }
            WatchEvent::Lost(why) => {
                tracing::debug!(why, "the watch of the bucket begins again");
                false
            }
        }
    }

    /// What another cluster shares out is undeclared first, or the coordinator overwrites its map.
    fn map_observed(&mut self, key: &Key, value: Option<&[u8]>) {
        if self.cluster_maps.observed(key, value) {
            self.declare();
        }
    }

    fn stored(&mut self, text: &str, revision: u64, value: &[u8]) -> bool {
        let key = match text.parse::<Key>() {
            Ok(key) => key,
            Err(error) => {
                self.warn(&error.to_string());
                return false;
            }
        };
        self.cleaner.stored(&key, revision, value, self.begun.elapsed());
        self.map_observed(&key, Some(value));
        let before = self.shape(&key);
        let observed = self.coordinator.observed(&key, Value::Bytes(revision, value), clocks(self.begun));
        if let Err(error) = observed {
            self.warn(&error_chain(&error));
        }
        let is_another = self.has_changed(&key, before.as_ref());
        match key {
            Key::Operator | Key::OperatorOf(_) => false,
            // A renewal changes nothing that is decided.
            Key::Member(_) => is_another,
            Key::Map(_) | Key::Held(_) => true,
        }
    }

    /// What is known of a member; None of any other key.
    fn shape(&self, key: &Key) -> Option<Shape> {
        let Key::Member(id) = key else { return None };
        self.coordinator.observer().record(id).map(Shape::of)
    }

    /// Whether something else is known of a member now; counts it where it is dead since.
    fn has_changed(&self, key: &Key, before: Option<&Shape>) -> bool {
        let after = self.shape(key);
        if let (Some(Shape { death: None, .. }), Some(Shape { death: Some(reason), .. })) = (before, &after) {
            self.context.partitions.died(*reason);
        }
        before != after.as_ref()
    }

    pub(super) fn done(&mut self, done: Done) -> bool {
        let now = clocks(self.begun);
        match done {
            Done::Answered(None | Some(Answered::Removed)) => false,
            Done::Answered(Some(Answered::Write(key, answer))) => {
                if matches!((&key, answer), (Key::OperatorOf(_), Answer::Stored(_))) {
                    self.context.partitions.beat();
                }
                let before = self.shape(&key);
                self.coordinator.answered(&key, answer, now);
                self.has_changed(&key, before.as_ref());
                true
            }
            Done::Answered(Some(Answered::Read(key, found))) => {
                let before = self.shape(&key);
                if let Err(error) = self.coordinator.read(&key, value_of(&found), now) {
                    self.warn(&error_chain(&error));
                }
                self.has_changed(&key, before.as_ref());
                true
            }
            Done::Kept(kept) => {
                self.kept(*kept);
                true
            }
            Done::Asked(consumer, is_there) => {
                if let Some(is_there) = is_there {
                    self.cleaner.asked(&consumer, is_there);
                }
                false
            }
        }
    }
}

/// What of a member's record decides.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    uid: Option<String>,
    consumers: Vec<ConsumerId>,
    is_leaving: bool,
    death: Option<DeathReason>,
}

impl Shape {
    fn of(record: &MemberRecord) -> Self {
        Self {
            uid: record.uid.clone(),
            consumers: record.consumers.keys().cloned().collect(),
            is_leaving: record.leaving,
            death: record.dead.as_ref().map(|dead| dead.reason),
        }
    }
}
