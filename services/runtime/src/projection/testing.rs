//! A projection's entry made of events that are in no stream, for tests of projections. Pure.

use super::{Projection, entry::Fold};
use crate::StoredEvent;

/// What the events of one key make, and why those that could not be applied were not, by sequence.
pub(crate) fn fold<P: Projection>(events: &[StoredEvent]) -> (Option<P::Entry>, Vec<(u64, String)>) {
    let mut fold = Fold::<P>::new();
    fold.advance(events);
    let Some(entry) = fold.finish(None) else { return (None, Vec::new()) };
    let skipped = |event: &StoredEvent| Some((event.sequence, entry.skipped(event.sequence)?.to_owned()));
    let skipped = events.iter().filter_map(skipped).collect();
    (entry.entry, skipped)
}
