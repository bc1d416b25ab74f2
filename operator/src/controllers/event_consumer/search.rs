//! In: an EventConsumer that goes. Out: the consumers in JetStream that may be its own. Reads what the watches brought, and JetStream.
//!
//! Neither its status nor its EventStream proves how many partitions it has consumers for: an attempt may have made some, and the EventStream
//! may be gone. So the names on the stream are listed. Of each consumer, its mark says whether it is the object's.

use std::{collections::BTreeSet, pin::pin};

use futures::TryStreamExt as _;
use jetwright_crds::{
    EventConsumer, EventStream,
    names::{consumer_names, consumer_of_partition},
};
use jetwright_nats::ApiError;
use jetwright_partitions::keys::MAX_PARTITIONS;

use super::super::finalize::{Unfinished, Wait, attempt};
use crate::{
    context::Context,
    jetstream::{
        asset::{Consumer, ConsumerKey},
        connections::Connection,
        info::ConsumerInfo,
        listed::Listed,
        ownership::Owner,
        pages::pages,
        reconcile,
    },
    kubernetes::{reduced, watched::Watched},
    object_state::ObjectKey,
};

/// One search.
pub struct Search<'a> {
    pub object: &'a EventConsumer,
    pub owner: &'a Owner,
    pub key: &'a ObjectKey,
    pub context: &'a Context,
}

/// What was found.
pub struct Found {
    pub consumers: Vec<ConsumerKey>,
    /// Where it is not known whether there are more, in notes for people.
    pub unknown: Vec<String>,
}

/// Why nothing was found yet.
pub enum Failure {
    EventStream(kube::Error),
    /// JetStream does not say what there is.
    Wait(Box<Wait>),
}

impl Search<'_> {
    /// Finds them.
    ///
    /// # Errors
    ///
    /// When Kubernetes or JetStream does not answer, as long as that is waited for.
    pub async fn run(&self) -> Result<Found, Failure> {
        let (streams, partitions) = self.streams().await.map_err(Failure::EventStream)?;
        let (mut all, mut unknown) = (BTreeSet::new(), Vec::new());
        for stream in streams {
            all.extend(names(self.object, partitions).map(|name| (stream.clone(), name)));
            if !self.object.spec.is_per_key() && partitions.is_none() {
                continue;
            }
            match self.of_partitions(&stream).await {
                Ok(names) => all.extend(names.into_iter().map(|name| (stream.clone(), name))),
                Err(Unfinished { wait, why }) if wait.left.is_zero() => unknown.push(unlisted(&stream, &why)),
                Err(Unfinished { wait, .. }) => return Err(Failure::Wait(Box::new(wait))),
            }
        }
        let consumers = all.into_iter().map(|(stream, name)| ConsumerKey { stream, name }).collect();
        Ok(Found { consumers, unknown })
    }

    /// The streams in JetStream that may have consumers of the object: the one that its EventStream has now, and the one that the status names,
    /// since the EventStream may be gone, or another; and as many partitions as either says.
    async fn streams(&self) -> Result<(Vec<String>, Option<u32>), kube::Error> {
        let Self { object, owner, context, .. } = self;
        let reference = object.spec.stream_ref.name.as_str();
        let scope = context.scopes.of(&owner.namespace);
        let stored = scope.and_then(|scope| scope.event_streams.get(&owner.namespace, reference));
        let declared = match stored.as_ref().and_then(Watched::valid) {
            Some(stream) => Some(stream.as_ref().clone()),
            None if reference.is_empty() => None,
            None => reduced::get::<EventStream>(&context.client, &owner.namespace, reference).await?,
        };
        let known = object.status.as_ref().and_then(|status| status.consumer.as_ref());
        let partitions = declared.as_ref().and_then(|stream| object.partitions_on(stream));
        let partitions = partitions.max(known.and_then(|consumer| consumer.partitions));
        let declared = declared.map_or_else(|| reference.to_owned(), |stream| stream.stream_name());
        let known = known.map(|consumer| consumer.stream.clone()).filter(|stream| *stream != declared);
        Ok((std::iter::once(declared).chain(known).collect(), partitions))
    }

    /// Names of a stream's consumers that are called as the object's are for partitions.
    async fn of_partitions(&self, stream: &str) -> Result<Vec<String>, Unfinished> {
        let logical = self.object.consumer_name();
        let what = format!("the consumers of {logical}'s partitions on stream {stream}");
        let list = async |connection: &Connection| {
            list(connection, stream, &logical).await.map_err(|source| {
                let key = ConsumerKey { stream: stream.to_owned(), name: logical.clone() };
                reconcile::Error::new::<Consumer>("list the partitions of", &key, source)
            })
        };
        attempt(&what, (self.owner, self.key), self.context, list).await
    }
}

/// Names of the consumers of a logical consumer's partitions; none where the operator may not list them.
async fn list(connection: &Connection, stream: &str, logical: &str) -> Result<Vec<String>, ApiError> {
    let ask = |offset| connection.cache.api().list_consumers(stream, offset);
    let is_partition =
        |name: &String| consumer_of_partition(name).is_some_and(|(consumer, _)| consumer == logical);
    let mut pages = pin!(pages(ask, Listed::<ConsumerInfo>::name));
    let mut found = Vec::new();
    loop {
        match pages.try_next().await {
            Ok(Some(page)) => {
                let names = page.items.iter().map(|listed| listed.name().to_owned()).chain(page.missing);
                found.extend(names.filter(is_partition));
            }
            Ok(None) => return Ok(found),
            Err(error) if error.is_absence() || matches!(error, ApiError::NotPermitted { .. }) => {
                return Ok(found);
            }
            Err(error) => return Err(error),
        }
    }
}

/// What an object's consumers are called where their stream has so many partitions: one from before it had order, too.
fn names(object: &EventConsumer, partitions: Option<u32>) -> impl Iterator<Item = String> {
    let logical = object.consumer_name();
    let partitions = partitions.map(|count| count.min(MAX_PARTITIONS));
    let names = consumer_names(&logical, partitions);
    names.into_iter().chain(partitions.map(|_| logical))
}

/// What is said where it is not known which consumers stay behind.
fn unlisted(stream: &str, why: &str) -> String {
    format!(
        "gave up listing the consumers of stream {stream}: {why}. Delete those of this object's partitions in NATS if they are still there and \
         nothing needs them"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_object_with_partitions_the_consumer_of_each_is_looked_for_and_one_without_order() {
        let object = EventConsumer::new("x", serde_saphyr::from_str("streamRef: {name: orders}").unwrap());
        let names = |partitions| super::names(&object, partitions).collect::<Vec<_>>();
        assert_eq!(names(None), ["x"]);
        assert_eq!(names(Some(2)), ["x-p0", "x-p1", "x"]);
        assert_eq!(names(Some(u32::MAX)).len(), 1025, "a status can be written by others");
    }
}
