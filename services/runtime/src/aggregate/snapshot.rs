//! Snapshots: states of aggregates with long histories, kept in a bucket so that the next load folds only what came after.
//! They are a help and no truth: one that cannot be read or does not fit is as good as none.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{Aggregate, Aggregates};
use crate::{Entry, ErrorKind, KeyValue, Position};

/// How long a load waits for a snapshot before it folds the whole history, or for the bucket to take one on the way.
const BUCKET_TIMEOUT: Duration = Duration::from_millis(500);
/// How often a load that takes long writes how far it is, so that the next one goes on from there.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Snapshots that are written at once; one that is to be written meanwhile is left to the next load.
const WRITES: usize = 4;

/// An aggregate whose state can be kept.
pub trait Snapshot: Aggregate + Serialize + DeserializeOwned {
    /// Which state it is: another number for every change of the type, or of what its events mean to it. Snapshots of other
    /// versions are not looked at.
    const VERSION: u32;
}

/// Reads and writes snapshots. Clones share one connection.
#[derive(Clone)]
pub(super) struct Snapshots<A> {
    bucket: KeyValue,
    every: u64,
    version: u32,
    decode: fn(&[u8]) -> serde_json::Result<Kept<A>>,
    encode: fn(&Kept<A>) -> serde_json::Result<Vec<u8>>,
    writes: Arc<Semaphore>,
}

/// A snapshot as the bucket has it, as JSON.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept<A> {
    version: u32,
    /// The newest event that is in it.
    position: Position,
    state: A,
}

/// The snapshot of one aggregate while it is loaded: what there is of it, and what is to be written.
pub(super) struct Progress<'a, A> {
    /// Events that are in the state and in no snapshot.
    pub(super) folded: u64,
    /// `None` where there is nothing to write to.
    bucket: Option<(&'a Snapshots<A>, u64)>,
    id: &'a str,
    state: Option<(A, Position)>,
    written: Instant,
}

impl<A: Snapshot> Aggregates<A> {
    /// With snapshots in this bucket, which is for this kind of aggregate alone. A load that folded at least `every` events
    /// (1 where it says 0) writes one, beside its answer. Of several writers one succeeds, and none is waited for.
    ///
    /// A snapshot is believed only where the newest event in it is still at its place in the stream. Whoever takes events out
    /// of the middle of a history takes the snapshot away too.
    #[must_use]
    pub fn with_snapshots(self, bucket: KeyValue, every: u64) -> Self {
        let snapshots = Snapshots {
            bucket,
            every: every.max(1),
            version: A::VERSION,
            decode: |value| serde_json::from_slice(value),
            encode: |kept| serde_json::to_vec(kept),
            writes: Arc::new(Semaphore::new(WRITES)),
        };
        Self { snapshots: Some(snapshots), ..self }
    }
}

impl<A: Aggregate> Snapshots<A> {
    fn parse(&self, value: &[u8]) -> Option<(A, Position)> {
        let Kept { version, position, state } = (self.decode)(value).ok()?;
        (version == self.version).then_some((state, position))
    }

    fn encode(&self, id: &str, state: &A, position: Position) -> Option<Vec<u8>> {
        let kept = Kept { version: self.version, position, state: state.clone() };
        (self.encode)(&kept).inspect_err(|error| tracing::warn!(id, %error, "no snapshot can be made")).ok()
    }
}

impl<'a, A: Aggregate> Progress<'a, A> {
    /// Reads the snapshot of an aggregate, if there is one of this version. Never fails, and takes half a second at most.
    pub(super) async fn read(snapshots: Option<&'a Snapshots<A>>, id: &'a str) -> Self {
        let mut progress = Self { folded: 0, bucket: None, id, state: None, written: Instant::now() };
        let Some(snapshots) = snapshots else { return progress };
        match timeout(BUCKET_TIMEOUT, snapshots.bucket.get(&key(id))).await {
            Ok(Ok(None)) => progress.bucket = Some((snapshots, 0)),
            Ok(Ok(Some(Entry { value, revision }))) => {
                progress.state = snapshots.parse(&value);
                progress.bucket = Some((snapshots, revision));
            }
            Ok(Err(error)) => tracing::warn!(id, %error, "the whole history is folded instead of a snapshot"),
            Err(_) => {
                let within = BUCKET_TIMEOUT;
                tracing::warn!(id, ?within, "the whole history is folded, since no snapshot came in time");
            }
        }
        progress
    }

    /// What it says, once.
    pub(super) fn take_state(&mut self) -> Option<(A, Position)> {
        self.state.take()
    }

    /// Writes a snapshot on the way, where the load takes long and folded enough events for one.
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
        // What became of it is not known where it is not said, and whoever is faster is as far.
        self.bucket = written.ok().flatten().map(|revision| (snapshots, revision));
        (self.folded, self.written) = (0, Instant::now());
    }

    /// Writes the last snapshot of a load that folded enough events for one, where there is somebody free to write it. Waits for
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

/// Writes a snapshot in the place of the one of this revision, and returns its own.
async fn write(bucket: &KeyValue, id: &str, value: Vec<u8>, revision: u64) -> Option<u64> {
    let written = match revision {
        0 => bucket.create(&key(id), value).await,
        revision => bucket.update(&key(id), value, revision).await,
    };
    match &written {
        Ok(_) => tracing::debug!(id, "wrote a snapshot"),
        // Another one was written meanwhile.
        Err(error) if error.kind() == ErrorKind::Conflict => {}
        Err(error) => tracing::warn!(id, %error, "no snapshot was written"),
    }
    written.ok()
}

/// The key of an aggregate: its id, with `=` and two hexadecimal digits for each byte that keys do not have.
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
        let kept: Kept<Vec<u64>> = serde_json::from_str(text).unwrap();
        assert_eq!((kept.version, kept.position.sequence), (2, 7));
        assert_eq!(serde_json::to_string(&kept).unwrap(), text);
    }
}
