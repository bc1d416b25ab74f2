//! Samples the consumers of workloads with autoscaling, and lets their autoscalers decide, while this process leads. Each consumer, or each of its
//! partitions, is one request, which its leader answers; workloads without autoscaling cost none.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use jetwright_crds::EventConsumer;
use jetwright_nats::Api;
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;
use tokio::time::{Instant, sleep_until};

use super::{
    figures::{Part, Reading, Sample, Unknown},
    registry::{Seen, count},
    spec::Useful,
};
use crate::{
    context::Context,
    jetstream::{connections::Connection, ownership::Owner},
    kubernetes::{
        scopes::Scope,
        stores::{IndexKey, Name, name_of},
    },
    object_state::ObjectKey,
    scale_down::intended,
    stats::{answer::ListedConsumer, pace::Pace},
};

/// How often each consumer is sampled, where there are few enough.
const INTERVAL: Duration = Duration::from_secs(2);
/// Least time between two requests of a connection: at most 200 a second.
const MIN_GAP: Duration = Duration::from_millis(5);
/// How long an answer is waited for: one that comes later says nothing of now.
const TIMEOUT: Duration = INTERVAL;

/// Samples every connection for ever.
pub async fn run(context: &Context) {
    for scope in context.scopes.all() {
        // Before everything was listed, a Deployment that exists would seem missing. A scope lives as long as the process leads.
        let _ = scope.listed.subscribe().wait_for(|listed| *listed).await;
    }
    join_all(context.connections.all().map(|connection| sample(context, connection))).await;
}

async fn sample(context: &Context, connection: &Connection) {
    let metrics = context.metrics.clone();
    let api = connection.cache.api().with_timeout(TIMEOUT, move |_, error| metrics.sampled(error));
    let pace = Pace::with_gap(MIN_GAP);
    let sampler = &Sampler { context, connection, api: &api, pace: &pace };
    // Each workload by itself: an answer that does not come holds up no other.
    let (mut looks, mut under_way) = (FuturesUnordered::new(), HashSet::new());
    let mut next = Instant::now();
    loop {
        tokio::select! {
            Some(name) = looks.next() => {
                under_way.remove(&name);
            }
            () = sleep_until(next) => {
                next = Instant::now() + INTERVAL;
                let workloads = workloads(context, connection);
                let names: HashSet<_> = workloads.iter().map(|workload| name_of(workload.as_ref())).collect();
                context
                    .autoscalers
                    .retain(|name| !connection.serves.contains(&name.0) || names.contains(name));
                for workload in workloads {
                    let name = name_of(workload.as_ref());
                    if under_way.insert(name.clone()) {
                        looks.push(async move {
                            sampler.look(workload).await;
                            name
                        });
                    }
                }
            }
        }
    }
}

/// The EventConsumers with autoscaling that a connection serves.
fn workloads(context: &Context, connection: &Connection) -> Vec<Arc<EventConsumer>> {
    let scaled = context.scopes.all().flat_map(|scope| scope.event_consumers.by(&IndexKey::Autoscaled));
    let here = scaled.filter(|object| {
        let is_deleted = object.metadata.deletion_timestamp.is_some();
        !is_deleted && connection.serves.contains(&object.namespace().unwrap_or_default())
    });
    here.collect()
}

struct Sampler<'a> {
    context: &'a Context,
    connection: &'a Connection,
    api: &'a Api,
    pace: &'a Pace,
}

impl Sampler<'_> {
    /// Samples the consumers of one workload, and lets it decide. Nothing is decided for one without a Deployment: it is not made yet.
    async fn look(&self, object: Arc<EventConsumer>) {
        let (namespace, name) = name_of(object.as_ref());
        let Some(scope) = self.context.scopes.of(&namespace) else { return };
        let Some(autoscaling) =
            object.spec.workload.as_ref().and_then(|workload| workload.autoscaling.as_ref())
        else {
            return;
        };
        let mut guests = scope.event_consumers.by(&IndexKey::Workload((namespace.clone(), name.clone())));
        guests.retain(|guest| guest.metadata.deletion_timestamp.is_none());
        let consumers = std::iter::once(&object).chain(&guests);
        let reading = consumers.map(async |consumer| (consumer.name_any(), self.read(consumer, scope).await));
        let readings: Vec<_> = join_all(reading).await;
        let partitions = readings.iter().map(|(_, reading): &(_, Reading)| reading.partitions);
        let useful = Useful::of_all(partitions.map(|count| count.map(|partitions| Useful { partitions })));
        let Some((replicas, ready)) = self.pods(&object, &(namespace, name)) else { return };
        let seen = Seen { object: &object, autoscaling, replicas, ready, readings: &readings, useful };
        self.context.autoscalers.look(&seen, self.context.settings.status_stats_interval);
    }

    /// Pods that the object's Deployment is to have, and those that are ready: without those that a scale-down empties, which handle nothing.
    fn pods(&self, object: &EventConsumer, workload: &Name) -> Option<(u32, u32)> {
        let key = ObjectKey::new::<Deployment>(&workload.0, &workload.1);
        let known = self.context.applying.owned.get(&key)?;
        let own = known.is_controlled_by(object.metadata.uid.as_deref()?);
        let deployment = known.deployment.as_deref().filter(|_| own)?;
        let replicas = deployment.spec.as_ref()?.replicas?;
        let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default();
        let pods = self.context.pods.processes(workload);
        let retiring = self.context.scale_downs.retiring(workload);
        let idle = pods.iter().filter(|pod| pod.is_ready && retiring.contains(&pod.uid)).count();
        let idle = u32::try_from(idle).unwrap_or(u32::MAX);
        Some((intended(count(replicas), &pods), count(ready).saturating_sub(idle)))
    }

    /// Reads an object's consumer.
    async fn read(&self, consumer: &EventConsumer, scope: &Scope) -> Reading {
        let Some(stream) = scope.event_stream_of(consumer) else {
            return Reading::unknown(Unknown::Missing);
        };
        let partitions = consumer.partitions_on(&stream);
        let name = stream.stream_name();
        if !self.connection.nats.state().borrow().connected || self.connection.cache.outage(&name).is_some() {
            return Reading { partitions, ..Reading::unknown(Unknown::Unanswered) };
        }
        let (there, coming) = consumer.jetstream_names_by_status(&stream);
        let names = there.iter().chain(&coming);
        let read = join_all(names.map(|part| self.read_part(consumer, (&name, part)))).await;
        let holders = self.context.partitions.holders(&name_of(consumer));
        // Holders are indexed by the partitions in the status; while these change, the indexes do not match.
        let holder =
            |index: usize| holders.get(index).filter(|_| holders.len() == there.len()).cloned().flatten();
        let mut reading = Reading { partitions, ..Reading::default() };
        for (index, part) in read.into_iter().enumerate() {
            match part {
                Ok(sample) => reading.parts.push(Part { sample, holder: holder(index) }),
                Err(Unknown::Missing) if index >= there.len() => {}
                Err(unknown) => reading.unknown = Some(unknown),
            }
        }
        if reading.parts.is_empty() {
            reading.unknown.get_or_insert(Unknown::Missing);
        }
        reading
    }

    /// Reads one JetStream consumer of an object.
    async fn read_part(
        &self,
        consumer: &EventConsumer,
        (stream, name): (&str, &str),
    ) -> Result<Sample, Unknown> {
        self.pace.turn().await;
        let answer = self.api.consumer_info::<ListedConsumer>(stream, name).await;
        let found = answer.map_err(|_| Unknown::Unanswered)?.ok_or(Unknown::Missing)?;
        let owner = Owner::new(&self.context.cluster, consumer);
        if !found.owner().is_some_and(|mark| owner.is_named_by(mark)) {
            return Err(Unknown::Missing);
        }
        let (figures, delivered) = (found.figures(), found.deliveries());
        if figures.is_paused {
            return Err(Unknown::Paused);
        }
        if !figures.is_led {
            return Err(Unknown::Unanswered);
        }
        Ok(Sample {
            at: self.context.autoscalers.elapsed(),
            delivered,
            pending: figures.pending,
            ack_pending: figures.ack_pending,
            max_ack_pending: figures.max_ack_pending,
            waiting_pulls: figures.waiting_pulls,
            ..Sample::default()
        })
    }
}
