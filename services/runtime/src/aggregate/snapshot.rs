//! Snapshots: states of aggregates with long histories, in a bucket, so that the next load folds only the later events.
//! They only save time: one that is unreadable or does not fit counts as none.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{Aggregate, Aggregates};
use crate::{Entry, ErrorKind, KeyValue, Position};

/// How long a load waits for a snapshot before it folds the whole history, or for the bucket to store one on the way.
const BUCKET_TIMEOUT: Duration = Duration::from_millis(500);
/// How often a long load stores its progress, so that the next one continues from there.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum snapshots that are written at once; beyond that the next load writes them.
const MAX_CONCURRENT_WRITES: usize = 4;

/// An aggregate with snapshots.
pub trait Snapshot: Aggregate + Serialize + DeserializeOwned {
    /// Version of the state: another number for every change of the type, or of the meaning of its events. Snapshots of other
    /// versions are ignored.
    const VERSION: u32;
}

/// Reads and writes snapshots. Clones share one connection.
#[derive(Clone)]
pub(super) struct Snapshots<A> {
    bucket: KeyValue,
    every: u64,
    version: u32,
    decode: fn(&[u8]) -> serde_json::Result<StoredSnapshot<A>>,
    encode: fn(&StoredSnapshot<A>) -> serde_json::Result<Vec<u8>>,
    writes: Arc<Semaphore>,
}

/// A snapshot as the bucket stores it, as JSON.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StoredSnapshot<A> {
    version: u32,
    /// Position of the newest event in it.
    position: Position,
    state: A,
}

/// The snapshot of one aggregate during a load: the stored one, and the one to write.
pub(super) struct Progress<'a, A> {
    /// Events in the state and in no snapshot.
    pub(super) folded: u64,
    /// `None` if snapshots are off.
    bucket: Option<(&'a Snapshots<A>, u64)>,
    id: &'a str,
    state: Option<(A, Position)>,
    written: Instant,
}

impl<A: Snapshot> Aggregates<A> {
    /// With snapshots in this bucket, which is for this kind of aggregate alone. A load that folded at least `every` events
    /// (at least 1) writes one, in the background. Of several writers one succeeds, and none is waited for.
    ///
    /// A snapshot is used only if its newest event is still at its position in the stream. To remove events from the middle of a
    /// history, remove the snapshot too.
    #[must_use]
    pub fn with_snapshots(self, bucket: KeyValue, every: u64) -> Self {
        let snapshots = Snapshots {
            bucket,
            every: every.max(1),
            version: A::VERSION,
            decode: |value| serde_json::from_slice(value),
            encode: |snapshot| serde_json::to_vec(snapshot),
            writes: Arc::new(Semaphore::new(MAX_CONCURRENT_WRITES)),
        };
        Self { snapshots: Some(snapshots), ..self }
    }
}

impl<A: Aggregate> Snapshots<A> {
    fn parse(&self, value: &[u8]) -> Option<(A, Position)> {
        let StoredSnapshot { version, position, state } = (self.decode)(value).ok()?;
        (version == self.version).then_some((state, position))
    }

    fn encode(&self, id: &str, state: &A, position: Position) -> Option<Vec<u8>> {
        let snapshot = StoredSnapshot { version: self.version, position, state: state.clone() };
        (self.encode)(&snapshot)
            .inspect_err(|error| tracing::warn!(id, %error, "failed to encode a snapshot"))
            .ok()
    }
}

impl<'a, A: Aggregate> Progress<'a, A> {
    /// Reads the snapshot of an aggregate, if there is one of this version. Never fails, and takes at most half a second.
    pub(super) async fn read(snapshots: Option<&'a Snapshots<A>>, id: &'a str) -> Self {
        let mut progress = Self { folded: 0, bucket: None, id, state: None, written: Instant::now() };
        let Some(snapshots) = snapshots else { return progress };
        match timeout(BUCKET_TIMEOUT, snapshots.bucket.get(&key(id))).await {
            Ok(Ok(None)) => progress.bucket = Some((snapshots, 0)),
            Ok(Ok(Some(Entry { value, revision }))) => {
                progress.state = snapshots.parse(&value);
                progress.bucket = Some((snapshots, revision));
            }
            Ok(Err(error)) => {
                tracing::warn!(id, %error, "failed to read the snapshot, folding the whole history");
            }
            Err(_) => {
                let within = BUCKET_TIMEOUT;
                tracing::warn!(id, ?within, "read no snapshot in time, folding the whole history");
            }
        }
        progress
    }

    /// Its state, once.
    pub(super) fn take_state(&mut self) -> Option<(A, Position)> {
        self.state.take()
    }

    /// Writes a snapshot on the way, if the load is long and folded enough events for one.
    pub(super) async fn save(&mut self, state: &A, position: Position) {
        if self.written.elapsed() < PROGRESS_INTERVAL {
            return;
        }
        let Some((snapshots, revision)) = self.bucket.filter(|(snapshots, _)| self.folded >= snapshots.every)
        else {
            return;
        };
        let Some(value) = snapshots.encode(self.id, state, position) else { return };
        let written = timeout(BUCKET_TIMEOUT, write(&snapshots.bucket, self.id, value, revision)).await;
        // A failed write may have been stored, and a faster writer has stored at least as much: forget the revision.
        self.bucket = written.ok().flatten().map(|revision| (snapshots, revision));
        (self.folded, self.written) = (0, Instant::now());
    }

    /// Writes the last snapshot of a load that folded enough events for one, if a writer is free. Waits for
    /// nothing.
    pub(super) fn finish(self, state: &A, position: Position) {
        let Some((snapshots, revision)) = self.bucket.filter(|(snapshots, _)| self.folded >= snapshots.every)
        else {
            return;
        };
        let Ok(permit) = Arc::clone(&snapshots.writes).try_acquire_owned() else { return };
        let Some(value) = snapshots.encode(self.id, state, position) else { return };
        let (bucket, id) = (snapshots.bucket.clone(), self.id.to_owned());
        tokio::spawn(async move {
            write(&bucket, &id, value, revision).await;
            drop(permit);
        });
    }
}

/// Writes a snapshot over the one of this revision, and returns the new revision.
async fn write(bucket: &KeyValue, id: &str, value: Vec<u8>, revision: u64) -> Option<u64> {
    let written = match revision {
        0 => bucket.create(&key(id), value).await,
        revision => bucket.update(&key(id), value, revision).await,
    };
    match &written {
        Ok(_) => tracing::debug!(id, "wrote a snapshot"),
        // Another writer was faster.
        Err(error) if error.kind() == ErrorKind::Conflict => {}
        Err(error) => tracing::warn!(id, %error, "failed to write a snapshot"),
    }
    written.ok()
}

/// The key of an aggregate: its id, with `=` and two hexadecimal digits for each byte that keys must not have.
fn key(id: &str) -> String {
    let mut key = String::with_capacity(id.len());
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || b"-/_".contains(&byte) {
            key.push(byte.into());
        } else {
            // A String takes everything.
            let _ = write!(key, "={byte:02X}");
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_has_a_key_of_its_own() {
        assert_eq!(key("0193f0a6-7d2b_x/y"), "0193f0a6-7d2b_x/y");
        assert_eq!(key("ann@x=40ü"), "ann=40x=3D40=C3=BC");
    }

    #[test]
    fn a_snapshot_is_json_with_its_version_and_position() {
        let text = r#"{"version":2,"position":{"time":"2026-11-21T09:00:00Z","sequence":7},"state":[5]}"#;
        let snapshot: StoredSnapshot<Vec<u64>> = serde_json::from_str(text).unwrap();
        assert_eq!((snapshot.version, snapshot.position.sequence), (2, 7));
        assert_eq!(serde_json::to_string(&snapshot).unwrap(), text);
    }
}
