//! Deletes a stream or a consumer in JetStream whose object goes, if its metadata say that it is the object's. Reads and writes JetStream.

use std::time::Duration;

use super::{
    asset::Asset,
    cache::{Cache, Cached},
    entries::EntryGuard,
    history::History,
    ownership::{Owner, Ownership},
    reconcile::{Error, attempt},
};
use crate::outcome::CreationTime as _;

/// What became of something whose object goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finalized {
    /// It is deleted, or there was nothing.
    Gone,
    /// There is nothing, and for this time a request that JetStream did not answer may make it yet.
    Settling(Duration),
    /// It stays: it is not the object's.
    NotOurs,
    /// It stays: it was the object's, and its metadata do not say so any more.
    Unmarked,
    /// It stays: this newer generation of the object was applied to it.
    Newer(i64),
    /// Another one stays, of this name, which was created for the object before that named this one.
    Elsewhere(String),
}

/// Deletes what the metadata in JetStream say is the owner's, and nothing else: what was seen to be the owner's may be another's by now.
///
/// # Errors
///
/// When JetStream does not answer or refuses. Unanswered, the deletion may take effect later.
pub async fn finalize<A: Cached>(cache: &Cache, key: &A::Key, owner: &Owner) -> Result<Finalized, Error> {
    let failed = |source| Error::new::<A>("delete", key, source);
    let mut entry = cache.lock::<A>(key).await.map_err(failed)?;
    cache.refresh_locked::<A>(key, &mut entry).await.map_err(failed)?;
    let kept = if let Some(kept) = finding(&entry, owner) {
        kept
    } else {
        attempt(&mut entry, A::delete(cache.api(), key)).await.map_err(failed)?;
        cache.refresh_locked::<A>(key, &mut entry).await.map_err(failed)?;
        Finalized::Gone
    };
    if kept == Finalized::Gone
        && let Some(left) = entry.history_mut().settling()
    {
        return Ok(Finalized::Settling(left));
    }
    match kept {
        nothing @ (Finalized::Gone | Finalized::NotOurs) => {
            let other = A::elsewhere(cache, owner, key).await.map_err(failed)?;
            Ok(other.map_or(nothing, Finalized::Elsewhere))
        }
        kept => Ok(kept),
    }
}

/// Why there is nothing to delete under a name; None where there is.
fn finding<A: Asset>(entry: &EntryGuard<A>, owner: &Owner) -> Option<Finalized> {
    let Some(info) = entry.present() else { return Some(Finalized::Gone) };
    let ownership = |history| owner.ownership(A::config(&info), info.created(), history);
    match ownership(&History::default()) {
        ours if ours.permits(owner.generation) => None,
        Ownership::Ours(applied) => Some(Finalized::Newer(applied.unwrap_or_default())),
        Ownership::Unowned if ownership(entry.history()).permits(owner.generation) => {
            Some(Finalized::Unmarked)
        }
        Ownership::Unowned | Ownership::Foreign(_) => Some(Finalized::NotOurs),
    }
}
