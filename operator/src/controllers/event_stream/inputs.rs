//! In: the object, and what JetStream and the watches have. Out: which of the subjects that are reserved it may have. Asks JetStream only where
//! nothing is known of a stream.

use std::{collections::BTreeSet, time::Duration};

use jetwright_crds::{EventStream, conditions::Reason, names::dead_letter_source};

use super::reserved::{Grants, dead_letters_of};
use crate::{
    context::Context,
    jetstream::{
        asset::Stream,
        cache::Cache,
        ownership::{Owner, Ownership},
        reconcile::Error,
    },
    outcome::{CreationTime as _, Pending},
};

/// How soon an object asks again for a stream that its EventStream has not made yet. That one's status wakes it too, but for a stream that
/// is recreated within a second.
const STREAM_RETRY: Duration = Duration::from_secs(5);

/// What JetStream has under a name, as an object sees it.
enum Found {
    Absent,
    /// It is the object's own, with these subjects.
    Own(Vec<String>),
    Foreign,
}

/// Reads what of the reserved subjects an object may have, or what it waits for. Whose dead letters they are is what the mark of their stream in
/// JetStream says: names, labels and statuses prove nothing.
///
/// # Errors
///
/// When JetStream has to be asked and does not answer.
pub async fn read(
    object: &EventStream,
    owner: &Owner,
    cache: &Cache,
    context: &Context,
) -> Result<Result<Grants, Pending>, Error> {
    let in_operators_namespace = owner.namespace == context.client.default_namespace();
    let mut grants = Grants { in_operators_namespace, ..Grants::default() };
    let wanted: BTreeSet<_> =
        object.spec.subjects.iter().filter_map(|subject| dead_letters_of(subject)).collect();
    let Some(source) = dead_letter_source(&owner.name) else { return Ok(Ok(grants)) };
    for stream in wanted {
        let source_owner = Owner { name: source.to_owned(), ..owner.clone() };
        let is_own = match find(stream, &source_owner, cache).await? {
            Found::Own(_) => true,
            Found::Absent if keeps_already(stream, object, owner, cache).await? => true,
            Found::Absent if is_declared(stream, source, owner, context) => {
                return Ok(Err(waiting_for(stream, source)));
            }
            Found::Foreign | Found::Absent => false,
        };
        if is_own {
            grants.dead_letters_of.insert(stream.to_owned());
        }
    }
    Ok(Ok(grants))
}

async fn find(stream: &str, owner: &Owner, cache: &Cache) -> Result<Found, Error> {
    let key = stream.to_owned();
    let entry = cache.lock::<Stream>(&key).await.map_err(|source| Error::reading::<Stream>(&key, source))?;
    let Some(info) = entry.present() else { return Ok(Found::Absent) };
    let Ownership::Ours(_) = owner.ownership(&info.config, info.created(), entry.history()) else {
        return Ok(Found::Foreign);
    };
    let subjects = info.config.get("subjects").and_then(serde_json::Value::as_array);
    let subjects = subjects.into_iter().flatten().filter_map(serde_json::Value::as_str).map(str::to_owned);
    Ok(Found::Own(subjects.collect()))
}

/// Whether the object's stream has the dead letters of this one: they outlive it.
async fn keeps_already(
    stream: &str,
    object: &EventStream,
    owner: &Owner,
    cache: &Cache,
) -> Result<bool, Error> {
    let own = find(&object.stream_name(), owner, cache).await?;
    Ok(
        matches!(own, Found::Own(subjects) if subjects.iter().any(|subject| dead_letters_of(subject) == Some(stream))),
    )
}

/// Whether the EventStream that the object keeps dead letters for declares the stream: then it makes it, or says why not.
fn is_declared(stream: &str, source: &str, owner: &Owner, context: &Context) -> bool {
    let scope = context.scopes.of(&owner.namespace);
    let declared = scope.and_then(|scope| scope.event_streams.get(&owner.namespace, source));
    let declared = declared.as_ref().and_then(|declared| declared.valid());
    declared.is_some_and(|declared| declared.stream_name() == stream)
}

fn waiting_for(stream: &str, source: &str) -> Pending {
    Pending {
        reason: Reason::StreamNotReady,
        message: format!(
            "waiting for EventStream {source}: its stream {stream}, whose dead letters are kept here, does not exist yet (see its conditions)"
        ),
        stalled: false,
        requeue_after: Some(STREAM_RETRY),
    }
}
