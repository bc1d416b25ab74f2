//! In: the sample and the stores, at each scrape. Out: metrics, by the rows of the catalogue. Asks nobody.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use jetwright_crds::{
    EventConsumer,
    conditions::{
        CONSUMER_READY, DEAD_LETTERS_READY, DURABLE, PARTITIONS_CHANGING, PARTITIONS_OWNED, READY, Reason,
        SCALING_ACTIVE, WORKLOAD_READY,
    },
    monitoring::Threshold,
};
use jetwright_process::metrics::catalogue::{Definition, Value};
use k8s_openapi::{api::apps::v1::Deployment, apimachinery::pkg::apis::meta::v1::Condition};
use parking_lot::Mutex;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Registry};

use super::{
    catalogue as rows,
    sample::{ConsumerFigures, Group, Sample, Sampled, StreamFigures},
};
use crate::{
    context::Context,
    kubernetes::stores::{Name, name_of},
    object_state::ObjectKey,
};

/// The conditions that are exported. Reconciling and Stalled say why Ready is as it is.
const CONDITIONS: [&str; 8] = [
    READY,
    DURABLE,
    PARTITIONS_CHANGING,
    CONSUMER_READY,
    DEAD_LETTERS_READY,
    WORKLOAD_READY,
    PARTITIONS_OWNED,
    SCALING_ACTIVE,
];

/// Writes figures of what the leader knows.
pub type Others = fn(&mut DescriptorEncoder<'_>, &Context) -> fmt::Result;

/// Exports the figures of objects while this process leads. Clones share it.
#[derive(Clone)]
pub struct Exporter {
    sample: Arc<Sample>,
    /// Writes what others know of objects.
    others: Others,
    /// What the leader has.
    leading: Arc<Mutex<Weak<Context>>>,
}

impl Exporter {
    /// Adds the metrics to the registry, those of others too; there are none before [`Self::begin`].
    #[must_use]
    pub fn register(registry: &mut Registry, others: Others) -> Self {
        let exporter = Self { sample: Arc::default(), others, leading: Arc::default() };
        registry.register_collector(Box::new(exporter.clone()));
        exporter
    }

    /// This process leads: the sample that it exports from now on.
    #[must_use]
    pub fn begin(&self, context: &Arc<Context>) -> &Sample {
        *self.leading.lock() = Arc::downgrade(context);
        &self.sample
    }

    /// It leads no more.
    pub fn end(&self) {
        *self.leading.lock() = Weak::new();
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Exporter").finish_non_exhaustive()
    }
}

impl Collector for Exporter {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(context) = self.leading.lock().upgrade() else { return Ok(()) };
        encode_conditions(&mut encoder, &context)?;
        encode_streams(&mut encoder, &context, &self.sample.streams)?;
        encode_consumers(&mut encoder, &context, &self.sample.consumers)?;
        let assets = self.sample.assets.lock().clone();
        rows::SERVER_REPLICATED_ASSETS
            .encode(&mut encoder, assets.iter().map(|(server, count)| ([server], count)))?;
        (self.others)(&mut encoder, &context)
    }
}

/// A condition of an object.
struct ObjectCondition {
    kind: &'static str,
    object: Name,
    condition: Condition,
}

fn encode_conditions(encoder: &mut DescriptorEncoder<'_>, context: &Context) -> fmt::Result {
    let mut conditions = Vec::new();
    for scope in context.scopes.all() {
        for object in scope.event_streams.all() {
            conditions.extend(exported_conditions(
                "EventStream",
                &name_of(object.as_ref()),
                object.conditions(),
            ));
        }
        for object in scope.event_consumers.all() {
            conditions.extend(exported_conditions(
                "EventConsumer",
                &name_of(object.as_ref()),
                object.conditions(),
            ));
        }
    }
    let samples = conditions.iter().map(|ObjectCondition { kind, object, condition }| {
        // A status can be written by others, and by other versions: a label has only words that this one knows.
        let reason = Reason::named(&condition.reason).map_or("Unknown", Reason::as_str);
        ([*kind, &object.0, &object.1, &condition.type_, &condition.status, reason], true)
    });
    rows::OBJECT_CONDITION.encode(encoder, samples)
}

fn exported_conditions(kind: &'static str, object: &Name, conditions: &[Condition]) -> Vec<ObjectCondition> {
    let exported = conditions.iter().filter(|condition| CONDITIONS.contains(&condition.type_.as_str()));
    exported
        .map(|condition| ObjectCondition { kind, object: object.clone(), condition: condition.clone() })
        .collect()
}

type Stream = (Name, Sampled<StreamFigures>);

fn encode_streams(
    encoder: &mut DescriptorEncoder<'_>,
    context: &Context,
    group: &Group<StreamFigures>,
) -> fmt::Result {
    let mut streams = group.all();
    streams.retain(|((namespace, name), _)| {
        context.scopes.of(namespace).is_some_and(|scope| scope.event_streams.get(namespace, name).is_some())
    });
    let mut row = |row: &Definition, figure: &dyn Fn(&StreamFigures) -> Option<Value>| {
        let known =
            streams.iter().filter_map(|stream| Some((labels(stream), figure(stream.1.figures.as_ref()?)?)));
        row.encode(encoder, known)
    };
    row(&rows::STREAM_MESSAGES, &|stream| Some(stream.messages.into()))?;
    row(&rows::STREAM_BYTES, &|stream| Some(stream.bytes.into()))?;
    row(&rows::STREAM_FIRST_TIMESTAMP, &|stream| stream.first_at.map(Value::from))?;
    row(&rows::STREAM_LAST_SEQUENCE, &|stream| Some(stream.last_sequence.into()))?;
    row(&rows::STREAM_MAX_MESSAGES, &|stream| stream.max_messages.map(Value::from))?;
    row(&rows::STREAM_MAX_BYTES, &|stream| stream.max_bytes.map(Value::from))?;
    row(&rows::STREAM_CONSUMERS, &|stream| Some(stream.consumers.into()))?;
    row(&rows::STREAM_REPLICAS_WANTED, &|stream| Some(u64::from(stream.replicas_wanted).into()))?;
    row(&rows::STREAM_REPLICAS_CURRENT, &|stream| Some(u64::from(stream.replicas_current).into()))?;
    row(&rows::STREAM_DISCARD_NEW, &|stream| Some(stream.discards_new.into()))?;
    let led = |stream: &Stream| stream.1.figures.as_ref().is_some_and(|figures| figures.is_led);
    rows::STREAM_HAS_LEADER.encode(encoder, streams.iter().map(|stream| (labels(stream), led(stream))))?;
    rows::STREAM_SAMPLED.encode(encoder, streams.iter().map(|stream| (labels(stream), stream.1.at)))?;
    encode_servers(encoder, &streams)?;
    encode_stream_thresholds(encoder, context, &streams)
}

/// What the EventStreams say themselves of when something is wrong.
fn encode_stream_thresholds(
    encoder: &mut DescriptorEncoder<'_>,
    context: &Context,
    streams: &[Stream],
) -> fmt::Result {
    let of = |stream: &Stream| {
        let (namespace, name) = &stream.0;
        let object = context.scopes.of(namespace)?.event_streams.get(namespace, name)?;
        object.valid()?.spec.thresholds()
    };
    let set = streams.iter().filter_map(|stream| Some((labels(stream), of(stream)?)));
    let with_threshold = |[namespace, object, stream]: [_; 3], name| [namespace, object, stream, name];
    rows::STREAM_MONITORING.encode(encoder, thresholds(set, with_threshold))
}

/// The samples of all thresholds, each with the labels of its object and its own name.
fn thresholds<'a, const N: usize, const M: usize>(
    set: impl Iterator<Item = ([&'a str; N], Vec<Threshold>)>,
    with_threshold: impl Fn([&'a str; N], &'a str) -> [&'a str; M],
) -> impl Iterator<Item = ([&'a str; M], f64)> {
    set.flat_map(move |(labels, thresholds)| {
        let sample =
            |threshold: Threshold| (with_threshold(labels, threshold.name), threshold.value.as_f64());
        thresholds.into_iter().map(sample).collect::<Vec<_>>()
    })
}

/// What is said of each server of a stream.
fn encode_servers(encoder: &mut DescriptorEncoder<'_>, streams: &[Stream]) -> fmt::Result {
    let figures = || streams.iter().filter_map(|stream| Some((labels(stream), stream.1.figures.as_ref()?)));
    let with_server = |[namespace, object, stream]: [_; 3], server| [namespace, object, stream, server];
    let leaders = figures()
        .filter_map(|(labels, figures)| Some((with_server(labels, figures.leader.as_deref()?), true)));
    rows::STREAM_LEADER.encode(encoder, leaders)?;
    let peers = figures().flat_map(|(labels, figures)| {
        figures.peers.iter().map(move |(server, lag)| (with_server(labels, server.as_ref()), *lag))
    });
    rows::STREAM_PEER_LAG.encode(encoder, peers)
}

/// The labels of a stream.
fn labels((object, sampled): &Stream) -> [&str; 3] {
    [&object.0, &object.1, &sampled.stream]
}

/// A consumer, with the pods that its Deployment is to have and those that are ready.
type Consumer = (Name, Sampled<ConsumerFigures>, Option<(u64, u64)>);

fn encode_consumers(
    encoder: &mut DescriptorEncoder<'_>,
    context: &Context,
    group: &Group<ConsumerFigures>,
) -> fmt::Result {
    let consumers: Vec<Consumer> = group
        .all()
        .into_iter()
        .filter_map(|(object, sampled)| {
            let found = context.scopes.of(&object.0)?.event_consumers.get(&object.0, &object.1)?;
            let pods = found.valid().and_then(|found| pods(&object, found, context));
            Some((object, sampled, pods))
        })
        .collect();
    encode_figures(encoder, &consumers)?;
    encode_consumer_thresholds(encoder, context, &consumers)?;
    let mut row = |row: &Definition, figure: &dyn Fn(&Consumer) -> Option<Value>| {
        row.encode(
            encoder,
            consumers.iter().filter_map(|consumer| Some((of_consumer(consumer), figure(consumer)?))),
        )
    };
    row(&rows::CONSUMER_HAS_LEADER, &|(_, sampled, _)| {
        Some(sampled.figures.as_ref().is_some_and(|figures| figures.is_led).into())
    })?;
    row(&rows::CONSUMER_REPLICAS_WANTED, &|(_, _, pods)| pods.map(|(wanted, _)| wanted.into()))?;
    row(&rows::CONSUMER_REPLICAS_READY, &|(_, _, pods)| pods.map(|(_, ready)| ready.into()))?;
    row(&rows::CONSUMER_DEAD_LETTERS, &|(_, sampled, _)| {
        sampled.dead_letters.map(|counted| counted.count.into())
    })?;
    row(&rows::CONSUMER_SAMPLED, &|(_, sampled, _)| Some(sampled.at.into()))
}

/// What the EventConsumers say themselves of when something is wrong.
fn encode_consumer_thresholds(
    encoder: &mut DescriptorEncoder<'_>,
    context: &Context,
    consumers: &[Consumer],
) -> fmt::Result {
    let of = |consumer: &Consumer| {
        let (namespace, name) = &consumer.0;
        let object = context.scopes.of(namespace)?.event_consumers.get(namespace, name)?;
        object.valid()?.spec.thresholds()
    };
    let set = consumers.iter().filter_map(|consumer| Some((of_consumer(consumer), of(consumer)?)));
    let with_threshold =
        |[namespace, object, stream, consumer]: [_; 4], name| [namespace, object, stream, consumer, name];
    rows::CONSUMER_MONITORING.encode(encoder, thresholds(set, with_threshold))
}

fn encode_figures(encoder: &mut DescriptorEncoder<'_>, consumers: &[Consumer]) -> fmt::Result {
    let mut row = |row: &Definition, figure: &dyn Fn(&ConsumerFigures) -> Option<Value>| {
        let known = consumers
            .iter()
            .filter_map(|consumer| Some((of_consumer(consumer), figure(consumer.1.figures.as_ref()?)?)));
        row.encode(encoder, known)
    };
    row(&rows::CONSUMER_PENDING, &|consumer| Some(consumer.pending.into()))?;
    row(&rows::CONSUMER_ACK_PENDING, &|consumer| Some(consumer.ack_pending.into()))?;
    row(&rows::CONSUMER_MAX_ACK_PENDING, &|consumer| consumer.max_ack_pending.map(Value::from))?;
    row(&rows::CONSUMER_REDELIVERED, &|consumer| Some(consumer.redelivered.into()))?;
    row(&rows::CONSUMER_DELIVERED_SEQUENCE, &|consumer| Some(consumer.delivered_sequence.into()))?;
    row(&rows::CONSUMER_DELIVERED_TIMESTAMP, &|consumer| consumer.delivered_at.map(Value::from))?;
    row(&rows::CONSUMER_ACK_FLOOR_SEQUENCE, &|consumer| Some(consumer.ack_floor_sequence.into()))?;
    row(&rows::CONSUMER_ACK_FLOOR_TIMESTAMP, &|consumer| consumer.ack_floor_at.map(Value::from))?;
    row(&rows::CONSUMER_WAITING_PULLS, &|consumer| Some(consumer.waiting_pulls.into()))?;
    row(&rows::CONSUMER_PAUSED, &|consumer| Some(consumer.is_paused.into()))
}

/// The labels of a consumer.
fn of_consumer((object, sampled, _): &Consumer) -> [&str; 4] {
    [&object.0, &object.1, &sampled.stream, &sampled.consumer]
}

/// The pods that an object's Deployment, or that of the object that it refers to, is to have, and those that are ready.
fn pods(object: &Name, consumer: &EventConsumer, context: &Context) -> Option<(u64, u64)> {
    let (namespace, own) = object;
    let shared = consumer.spec.workload_ref.as_ref().map(|reference| reference.name.as_str());
    let name = if consumer.spec.workload.is_some() { own } else { shared? };
    let declaring = context.scopes.of(namespace)?.event_consumers.get(namespace, name)?;
    let declared = declaring.valid()?.spec.workload.as_ref()?.replicas;
    let known = context.applying.owned.get(&ObjectKey::new::<Deployment>(namespace, name));
    let deployment = known.as_ref().and_then(|known| known.deployment.as_deref());
    let wanted = deployment.and_then(|deployment| deployment.spec.as_ref()?.replicas).unwrap_or(declared);
    let ready =
        deployment.and_then(|deployment| deployment.status.as_ref()?.ready_replicas).unwrap_or_default();
    Some((u64::try_from(wanted).ok()?, u64::try_from(ready).ok()?))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use jetwright_process::metrics::{catalogue::problems, page};

    use super::rows::CATALOGUE;

    #[test]
    fn the_page_has_the_metrics_of_objects() {
        assert_eq!(problems(CATALOGUE), [""; 0]);
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        page::check(&file, "operator objects", CATALOGUE).unwrap();
    }
}
