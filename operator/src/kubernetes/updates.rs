//! What a watch tells its listeners: what was touched, whether it has brought everything that there is, and whether it fails.

use std::{collections::HashSet, hash::Hash, time::Duration};

use futures::{Stream, StreamExt, stream};
use kube::runtime::watcher;
use tokio::time::{Instant, sleep_until};

use crate::error::error_chain;

/// Objects that a list brings at once. A page is held as text and as objects, with what is left out of them afterwards: of large objects,
/// a few hundred take more memory than all that is kept.
const PAGE_SIZE: u32 = 50;

/// How every watch lists and watches.
#[must_use]
pub fn watch_config() -> watcher::Config {
    watcher::Config::default().page_size(PAGE_SIZE)
}

/// One step of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update<T> {
    pub touched: Vec<T>,
    /// Everything that there is was brought.
    pub synced: bool,
    /// The watch failed; it is tried again.
    pub failed: bool,
}

impl<T> Update<T> {
    /// The update of an event that touches this.
    pub fn touching(touched: Vec<T>, synced: bool) -> Self {
        Self { touched, synced, failed: false }
    }

    /// The update of a watch that failed, which is logged.
    pub fn failed(kind: &str, error: &watcher::Error) -> Self {
        tracing::warn!(kind, error = error_chain(error), "a watch failed; it is started again");
        Self { touched: Vec::new(), synced: false, failed: true }
    }
}

/// Merges updates, so that there is at most one in this time: the first at once, and what comes until the time is over together at its
/// end. That everything was brought is told at once.
pub fn debounce<T: Eq + Hash + Send>(
    updates: impl Stream<Item = Update<T>> + Unpin + Send,
    interval: Duration,
) -> impl Stream<Item = Update<T>> + Send {
    let start = (updates.fuse(), Instant::now());
    stream::unfold(start, move |(mut updates, next)| async move {
        let mut touched = HashSet::new();
        let (mut pending, mut synced, mut failed) = (false, false, false);
        loop {
            tokio::select! {
                biased;
                () = sleep_until(next), if pending => break,
                update = updates.next() => match update {
                    Some(update) => {
                        (synced, failed) = (synced || update.synced, update.failed);
                        touched.extend(update.touched);
                        pending = failed || !touched.is_empty();
                        // Every reconcile waits for it.
                        if synced {
                            break;
                        }
                    }
                    None if !pending => return None,
                    None => break,
                },
            }
        }
        let merged = Update { touched: touched.into_iter().collect(), synced, failed };
        Some((merged, (updates, Instant::now() + interval)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_changes_often_wakes_seldom_and_what_changes_once_at_once() {
        let begun = Instant::now();
        let items = stream::unfold(0_u32, |count| async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let update = Update::touching(vec![count % 2], count == 120);
            (count < 200).then_some((update, count + 1))
        });
        let merged: Vec<_> = debounce(items.boxed(), Duration::from_millis(500))
            .map(|update| (begun.elapsed(), update.touched.len(), update.synced))
            .collect()
            .await;
        assert_eq!(merged[0].0.as_millis() / 20, 0, "{merged:?}");
        // Two seconds of changes.
        assert!(merged.len() <= 7, "{merged:?}");
        assert!(merged[1..4].iter().all(|(_, count, _)| *count == 2), "{merged:?}");
        let synced: Vec<_> = merged.iter().filter(|(_, _, synced)| *synced).collect();
        // Not only when the time is over.
        assert!(synced.len() == 1 && (1200..1300).contains(&synced[0].0.as_millis()), "{merged:?}");
    }
}
