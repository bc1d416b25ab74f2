//! How far the sequences of streams ever were, as far as it was seen; known still when a stream is gone. In memory, and decides
//! nothing.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::StreamInfo;
use crate::identity::applied_uid;

/// The highest sequence of each stream, by its name.
#[derive(Debug, Default)]
pub struct Sequences(Mutex<HashMap<String, Highest>>);

#[derive(Debug)]
struct Highest {
    /// Of the object that the stream is or was.
    uid: String,
    sequence: u64,
}

impl Sequences {
    /// Takes note of a stream. What is nobody's has no meaning to an object that makes it again.
    pub fn observe(&self, name: &str, info: &StreamInfo) {
        let Some(uid) = applied_uid(&info.config) else { return };
        let seen = Highest { uid: uid.to_owned(), sequence: info.state.last_seq };
        let mut known = self.known();
        match known.get_mut(name) {
            Some(highest) if highest.uid == uid => highest.sequence = highest.sequence.max(seen.sequence),
            _ => drop(known.insert(name.to_owned(), seen)),
        }
    }

    /// The highest sequence that the stream of this name was seen to have while it was this object's; None where it never was.
    #[must_use]
    pub fn highest(&self, name: &str, uid: &str) -> Option<u64> {
        self.known().get(name).filter(|highest| highest.uid == uid).map(|highest| highest.sequence)
    }

    /// Forgets all streams but those whose names are wanted.
    pub fn retain(&self, wanted: impl Fn(&str) -> bool) {
        self.known().retain(|name, _| wanted(name));
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Highest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn info(uid: Option<&str>, last: u64) -> StreamInfo {
        let metadata = uid.map_or(json!({}), |uid| json!({ "jetwright.dev/uid": uid }));
        serde_json::from_value(json!({
            "config": {"metadata": metadata}, "created": "2026-11-21T10:00:00Z",
            "state": {"messages": 0, "bytes": 0, "first_seq": 0, "last_seq": last},
        }))
        .unwrap()
    }

    #[test]
    fn the_highest_is_kept_whatever_comes_later_until_it_is_another_objects() {
        let sequences = Sequences::default();
        for (uid, last) in [(Some("a"), 7), (Some("a"), 3), (None, 900)] {
            sequences.observe("orders", &info(uid, last));
        }
        assert_eq!(sequences.highest("orders", "a"), Some(7));
        assert_eq!(sequences.highest("orders", "b"), None);
        sequences.observe("orders", &info(Some("b"), 2));
        assert_eq!((sequences.highest("orders", "a"), sequences.highest("orders", "b")), (None, Some(2)));
        sequences.retain(|name| name != "orders");
        assert_eq!(sequences.highest("orders", "b"), None);
    }
}
