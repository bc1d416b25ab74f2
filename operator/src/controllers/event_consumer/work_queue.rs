//! In: a consumer of a WorkQueue, the other consumers of its stream, and what the first is to be changed to. Out: why it must not be. Reads
//! from the cache.
//!
//! Each message of a WorkQueue has one consumer. A server refuses overlapping filters when a consumer is created; when one is updated, only
//! a server that is not clustered does (`jsClusteredConsumerRequest` in server/jetstream_cluster.go of nats-server), and both consumers
//! get every message.

use std::sync::Arc;

use jetwright_crds::{EventConsumer, EventStream, conditions::Reason, stream::Retention};
use kube::ResourceExt as _;

use super::{
    clash::precedes,
    physical::{Physical, physical},
};
use crate::{
    jetstream::{
        asset::{Consumer, ConsumerKey},
        cache::Cache,
        consumer_config::{self, FILTERS, filters},
        entries::CacheEntry,
        plan::Plan,
        reconcile, subjects,
    },
    kubernetes::stores::{IndexKey, Objects},
    outcome::Blocked,
};

/// A consumer, and the others that its stream may have: of other partitions than its own there are none with the same events.
pub struct WorkQueue<'a> {
    object: &'a EventConsumer,
    others: Vec<Other>,
    cache: &'a Cache,
}

/// Another consumer of the stream.
struct Other {
    object: Arc<EventConsumer>,
    key: ConsumerKey,
    /// What its object declares.
    declared: Vec<String>,
    /// What it had a moment ago; None where it did not exist.
    had: Option<Vec<String>>,
}

impl<'a> WorkQueue<'a> {
    /// None where the stream is no WorkQueue, or the consumer has the filters that are declared.
    ///
    /// # Errors
    ///
    /// When JetStream has to be asked about another consumer and does not answer.
    pub async fn of(
        object: &'a EventConsumer,
        own: &Physical,
        (stream, consumers): (&EventStream, &Objects<EventConsumer>),
        cache: &'a Cache,
    ) -> Result<Option<Self>, reconcile::Error> {
        if stream.spec.effective_retention() != Retention::WorkQueue {
            return Ok(None);
        }
        let key = |name: &str| ConsumerKey { stream: stream.stream_name(), name: name.to_owned() };
        let known = cache.peek::<Consumer>(&key(&own.name)).present();
        if known.is_some_and(|info| filters(&info.config) == declared(object, own)) {
            return Ok(None);
        }
        let reference = (object.namespace().unwrap_or_default(), object.spec.stream_ref.name.clone());
        let mut others = Vec::new();
        for other in consumers.by(&IndexKey::Stream(reference)) {
            if other.metadata.uid == object.metadata.uid {
                continue;
            }
            for physical in physical_of(&other, stream) {
                if own.partition.zip(physical.partition).is_some_and(|(own, theirs)| own != theirs) {
                    continue;
                }
                let (key, declared) = (key(&physical.name), declared(&other, &physical));
                // Who writes it now may not have seen yet what this one is to become; who does so later has.
                let entry = cache.lock::<Consumer>(&key).await;
                let entry = entry.map_err(|source| reconcile::Error::reading::<Consumer>(&key, source))?;
                let had = entry.present().map(|info| filters(&info.config));
                others.push(Other { object: other.clone(), key, declared, had });
            }
        }
        Ok(Some(Self { object, others, cache }))
    }

    /// Why a plan must not be carried out.
    #[must_use]
    pub fn forbids(&self, plan: &Plan) -> Option<Blocked> {
        let wanted = match plan {
            Plan::Create { config, .. } => filters(config),
            Plan::Update { steps, fields, .. } if fields.iter().any(|field| FILTERS.contains(field)) => {
                filters(steps.last()?)
            }
            _ => return None,
        };
        self.others.iter().find_map(|other| self.barred_by(other, &wanted))
    }

    fn barred_by(&self, other: &Other, wanted: &[String]) -> Option<Blocked> {
        let Other { object, key, declared, had } = other;
        let has = match self.cache.peek::<Consumer>(key) {
            CacheEntry::Stale => had.clone(),
            known => known.present().map(|info| filters(&info.config)),
        };
        // One that does not exist is refused by the server itself when it is created.
        let mut theirs = has?;
        if precedes(object, self.object) {
            theirs.extend(declared.iter().cloned());
        }
        let (wanted, theirs) = overlapping(wanted, &theirs)?;
        Some(Blocked {
            reason: Reason::Invalid,
            message: format!(
                "spec.filterSubjects: {wanted} overlaps with {theirs} of consumer {} (EventConsumer {}), and each message of a WorkQueue \
                 has one consumer: choose other subjects, or change or delete the other first",
                key.name,
                object.name_any()
            ),
        })
    }
}

fn overlapping<'a>(wanted: &'a [String], theirs: &'a [String]) -> Option<(&'a str, &'a str)> {
    wanted.iter().find_map(|one| {
        let other = theirs.iter().find(|other| subjects::overlap(one, other))?;
        Some((one.as_str(), other.as_str()))
    })
}

/// The consumers of an object; of one that cannot be as it is declared, the one that it may have from before.
fn physical_of(object: &EventConsumer, stream: &EventStream) -> Vec<Physical> {
    let filters = object.spec.filter_subjects.clone();
    let whole = || vec![Physical { partition: None, name: object.consumer_name(), filters }];
    physical(object, stream, None).unwrap_or_else(|_| whole())
}

fn declared(object: &EventConsumer, consumer: &Physical) -> Vec<String> {
    filters(&consumer_config::config(&consumer.name, &consumer.filters, &object.spec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subjects_that_overlap_are_named() {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let of = |wanted: &[&str], theirs: &[&str]| {
            let (wanted, theirs) = (texts(wanted), texts(theirs));
            overlapping(&wanted, &theirs).map(|(one, other)| format!("{one} {other}"))
        };
        assert_eq!(of(&["a.*", "b.1"], &["c.>", "b.*"]), Some("b.1 b.*".into()));
        assert_eq!(of(&["a.*"], &["b.*"]), None);
    }
}
