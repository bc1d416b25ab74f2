//! An entry as the bucket stores it, and the effect of an event on it. No I/O.

use serde::{Deserialize, Serialize};

use super::Projection;
use crate::{Position, StoredEvent};

/// Maximum events that could not be applied and are remembered, the newest ones, until their own delivery reports them.
const MAX_SKIPPED_EVENTS: usize = 32;
/// Maximum length of a remembered reason, in bytes.
const MAX_REASON_BYTES: usize = 200;

/// An entry, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(deserialize = "E: Deserialize<'de>"))]
pub(super) struct StoredEntry<E> {
    /// Position of the key's newest event that was read.
    #[serde(flatten)]
    pub(super) position: Position,
    /// The folded events; `None` after a deletion. Always present, which distinguishes entries from those of other programs.
    #[serde(deserialize_with = "Option::deserialize")]
    pub(super) entry: Option<E>,
    /// Events that could not be applied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) skipped: Vec<Skipped>,
    /// The last rebuild that wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rebuild: Option<String>,
}

/// An event that could not be applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Skipped {
    sequence: u64,
    reason: String,
}

/// The rebuild of an entry, whatever else the entry has.
#[derive(Deserialize)]
struct Mark {
    rebuild: Option<String>,
}

impl<E> StoredEntry<E> {
    /// Why the event of this sequence could not be applied, if so.
    pub(super) fn skipped(&self, sequence: u64) -> Option<&str> {
        let skipped = self.skipped.iter().find(|skipped| skipped.sequence == sequence)?;
        Some(&skipped.reason)
    }

    /// Whether the event at this position was read already, as far as positions show: if servers' clocks differ, or the stream was
    /// recreated, a higher sequence may have an earlier time.
    pub(super) fn covers(&self, position: Position) -> bool {
        position.sequence <= self.position.sequence && position.time <= self.position.time
    }
}

/// An entry while it is folded from its key's events.
pub(super) struct Fold<P: Projection> {
    entry: Option<P::Entry>,
    skipped: Vec<Skipped>,
    position: Option<Position>,
    events: u64,
    /// Whether any event was applied, and not all were skipped.
    applied: bool,
}

impl<P: Projection> Fold<P> {
    /// Before the first event.
    pub(super) fn new() -> Self {
        Self { entry: None, skipped: Vec::new(), position: None, events: 0, applied: false }
    }

    /// After the events of this entry.
    pub(super) fn after(stored: StoredEntry<P::Entry>) -> Self {
        let StoredEntry { position, entry, skipped, rebuild: _ } = stored;
        Self { entry, skipped, position: Some(position), events: 0, applied: true }
    }

    /// Applies these events too. An event that cannot be read or applied is skipped: it fails in its own delivery.
    pub(super) fn advance(&mut self, events: &[StoredEvent]) {
        for stored in events {
            self.apply(stored);
            self.position = Some(stored.position());
            self.events += 1;
        }
    }

    fn apply(&mut self, stored: &StoredEvent) {
        let StoredEvent { subject, sequence, .. } = stored;
        match stored.decode::<P::Event>() {
            Ok(event) => match P::apply(self.entry.clone(), event, stored) {
                Ok(entry) => (self.entry, self.applied) = (entry, true),
                Err(why) => {
                    tracing::warn!(bucket = P::BUCKET, subject, sequence, %why, "skipped event");
                    self.skip(*sequence, &why.to_string());
                }
            },
            Err(why) => tracing::debug!(bucket = P::BUCKET, subject, sequence, %why, "skipped event"),
        }
    }

    fn skip(&mut self, sequence: u64, reason: &str) {
        let end = (0..=reason.len().min(MAX_REASON_BYTES)).rev().find(|end| reason.is_char_boundary(*end));
        self.skipped.push(Skipped { sequence, reason: reason[..end.unwrap_or_default()].to_owned() });
        if self.skipped.len() > MAX_SKIPPED_EVENTS {
            self.skipped.remove(0);
        }
    }

    /// How many events it has read.
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// Whether nothing is known of the key: no event of it could be applied.
    pub(super) fn is_empty(&self) -> bool {
        !self.applied
    }

    /// The entry after the events so far, if an event could be applied.
    pub(super) fn progress(&self, rebuild: Option<&String>) -> Option<StoredEntry<P::Entry>> {
        let Self { entry, skipped, position, .. } = self;
        let (entry, skipped, rebuild) = (entry.clone(), skipped.clone(), rebuild.cloned());
        (self.applied && self.events > 0).then_some(())?;
        Some(StoredEntry { position: (*position)?, entry, skipped, rebuild })
    }

    /// The entry after all events; `None` if there were none.
    pub(super) fn finish(self, rebuild: Option<String>) -> Option<StoredEntry<P::Entry>> {
        let Self { entry, skipped, position, .. } = self;
        Some(StoredEntry { position: position?, entry, skipped, rebuild })
    }
}

/// Reads an entry. An unreadable one, such as another program's, counts as none.
pub(super) fn parse<P: Projection>(key: &str, value: &[u8]) -> Option<StoredEntry<P::Entry>> {
    let parsed = serde_json::from_slice(value);
    parsed
        .inspect_err(|error| tracing::warn!(bucket = P::BUCKET, key, %error, "failed to read an entry"))
        .ok()
}

/// Whether an entry was written by this rebuild.
pub(super) fn is_by_rebuild(value: &[u8], rebuild: &str) -> bool {
    serde_json::from_slice(value).is_ok_and(|mark: Mark| mark.rebuild.as_deref() == Some(rebuild))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(seconds: i64, sequence: u64) -> Position {
        Position { time: jiff::Timestamp::from_second(seconds).unwrap(), sequence }
    }

    fn stored(position: Position) -> StoredEntry<u64> {
        StoredEntry { position, entry: Some(7), skipped: Vec::new(), rebuild: None }
    }

    #[test]
    fn an_entry_is_json_with_its_position() {
        let text = r#"{"time":"1970-01-01T00:00:05Z","sequence":3,"entry":7}"#;
        assert_eq!(serde_json::to_string(&stored(position(5, 3))).unwrap(), text);
        assert_eq!(serde_json::from_str::<StoredEntry<u64>>(text).unwrap(), stored(position(5, 3)));
        let ended = r#"{"time":"1970-01-01T00:00:05Z","sequence":3,"entry":null,"rebuild":"a"}"#;
        assert_eq!(serde_json::from_str::<StoredEntry<u64>>(ended).unwrap().entry, None);
        assert!(
            serde_json::from_str::<StoredEntry<u64>>(r#"{"time":"1970-01-01T00:00:05Z","sequence":3}"#)
                .is_err()
        );
        assert!(
            is_by_rebuild(ended.as_bytes(), "a")
                && !is_by_rebuild(ended.as_bytes(), "b")
                && !is_by_rebuild(text.as_bytes(), "a")
        );
    }

    #[test]
    fn only_an_earlier_time_with_an_earlier_sequence_is_covered() {
        let stored = stored(position(5, 3));
        assert!(stored.covers(position(5, 3)) && stored.covers(position(4, 2)));
        // The stream was recreated, or a server with a slow clock leads it now.
        assert!(!stored.covers(position(6, 1)) && !stored.covers(position(4, 4)));
    }
}
