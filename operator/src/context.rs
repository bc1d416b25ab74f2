//! What every reconcile needs: the clients, what the watches brought, what JetStream has, the settings, and what is remembered.

use std::{fmt::Debug, sync::Arc, time::Duration};

use jetwright_crds::conditions::{self, READY, Reason, STALLED};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, Client, Resource, runtime::controller::Action};
use rand::RngExt as _;
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::task::TaskTracker;

use crate::{
    jetstream::{
        connections::Connections,
        ownership::ClusterNames,
        repartition::{resumed::Resumed, unchanged::Unchanged},
    },
    kubernetes::{
        age,
        apply::Applying,
        events::Events,
        scopes::Scopes,
        status::{self, ConditionSummary, Progress, StatusUpdate, StatusWrite},
    },
    metrics::Metrics,
    object_state::{ObjectKey, ObjectStates},
    outcome::Outcome,
    partitions::registry::Partitions,
    pods::cache::PodCache,
    rate_limit::RateLimit,
    reported::{Report, Sighting},
    scale_down::registry::ScaleDowns,
    scaling::registry::Autoscalers,
    workload::{desired::WorkloadSettings, pod_security},
    write_gate::WriteGate,
};

/// How the controllers behave.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What pods are given.
    pub workloads: WorkloadSettings,
    /// The most that pods may be allowed.
    pub pod_security: pod_security::Level,
    /// How often every object is reconciled although nothing seemed to change.
    pub resync: Duration,
    /// Least time between two writes of a status in which only live figures changed.
    pub status_stats_interval: Duration,
    /// How long a deletion is tried before the finalizer is removed.
    pub deletion_timeout: Duration,
}

/// What every reconcile needs.
pub struct Context {
    pub client: Client,
    pub events: Events,
    pub connections: Connections,
    pub metrics: Metrics,
    /// Names of this Kubernetes cluster, part of every owner.
    pub cluster: Arc<ClusterNames>,
    pub settings: Settings,
    /// The custom resources.
    pub scopes: Scopes,
    /// What applying objects takes, with those that exist.
    pub applying: Applying,
    pub pods: PodCache,
    /// How many pods workloads with autoscaling should have.
    pub autoscalers: Autoscalers,
    /// How the partitions of ordered consumers are shared out.
    pub partitions: Partitions,
    /// Which pods scale-downs empty.
    pub scale_downs: ScaleDowns,
    pub states: ObjectStates,
    /// Statuses that say Disconnected: with NATS away, every object has one to write.
    pub disconnect_writes: RateLimit,
    /// Statuses in which only live figures change.
    pub stats_writes: RateLimit,
    /// Statuses that come to say JetStreamUnavailable, or no longer do: a server that is away has many streams.
    pub availability_writes: RateLimit,
    /// As often their objects are woken, the most urgent first.
    pub availability_wakeups: RateLimit,
    /// For how long stands still what a change of partitions waits for.
    pub unchanged: Unchanged,
    /// Consumers that could not be divided, and go on for now.
    pub resumed: Resumed,
    /// The reconciles that run.
    pub running: TaskTracker,
}

impl Context {
    /// How long a status that changes has to wait for its write: one that says Disconnected, until NATS has been away for a while and
    /// a write is permitted; one in which only live figures change, until the last write is old enough.
    #[must_use]
    pub fn status_write_delay(
        &self,
        key: &ObjectKey,
        disconnected: bool,
        only_stats: bool,
    ) -> Option<Duration> {
        if disconnected {
            let grace = self.connections.report_disconnect_after(&key.namespace);
            return grace.or_else(|| self.states.turn(key, &self.disconnect_writes));
        }
        if !only_stats {
            return None;
        }
        let delay = self.states.status_write_delay(key, self.settings.status_stats_interval);
        delay.or_else(|| self.states.turn(key, &self.stats_writes))
    }

    /// Waits for a permit where an object comes to say JetStreamUnavailable, or no longer says so. `before` is what its status says.
    pub async fn pace_availability(&self, before: &[Condition], summary: &ConditionSummary) {
        let is_away = |reason: &str| reason == Reason::JetStreamUnavailable.as_str();
        let was = conditions::get(before, READY).is_some_and(|ready| is_away(&ready.reason));
        if was != is_away(summary.reason.as_str()) {
            self.availability_writes.acquire().await;
        }
    }

    /// Writes the status that `update` makes of an object, and records that it was written: what a store brings from before is older.
    ///
    /// # Errors
    ///
    /// When Kubernetes refuses.
    pub async fn write_status<K, S>(
        &self,
        api: &Api<K>,
        object: &K,
        update: impl Fn(&K) -> StatusUpdate<S>,
    ) -> Result<StatusWrite, kube::Error>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
        S: Serialize,
    {
        let written = status::write(api, object, &(), update).await?;
        if let StatusWrite::Written(version) = written {
            self.states.status_written(&ObjectKey::of(object), version);
        }
        Ok(written)
    }

    /// Reports by an event that an object became Stalled, or is Contested: once for each reason and generation. In how long it is due,
    /// where the object is too young. `before` is what the object's status said.
    pub fn report_trouble<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        before: &[Condition],
        summary: &ConditionSummary,
    ) -> Option<Duration> {
        if summary.progress != Progress::Stalled && summary.reason != Reason::Contested {
            return None;
        }
        let reason = summary.reason.as_str();
        let generation = object.meta().generation;
        let is = |type_: &str| conditions::get(before, type_).filter(|condition| condition.status == "True");
        let sighting = Sighting {
            reason,
            generation,
            age: age(object),
            was_ready: is(READY).is_some(),
            was_told: is(STALLED)
                .is_some_and(|stalled| stalled.reason == reason && stalled.observed_generation == generation),
        };
        match self.states.report(&ObjectKey::of(object), &sighting) {
            Report::Now => self.events.warning(&object.object_ref(&()), reason, &summary.message),
            Report::Later(delay) => return Some(delay),
            Report::Known => {}
        }
        None
    }

    /// When to reconcile an object next: rarely where nothing is known to change, since changes wake it; soon where its status could
    /// not be written yet, or where a part of it, as its workload, asks for it.
    #[must_use]
    pub fn requeue<I>(&self, outcome: &Outcome<I>, status: StatusWrite, part: Option<Duration>) -> Action {
        let pending = match outcome {
            Outcome::Pending(pending) => pending.requeue_after,
            Outcome::Reconciled(reconciled) => {
                let contested = reconciled.contested.as_ref();
                contested.and_then(|contested| contested.requeue_after).or(reconciled.requeue_after)
            }
            Outcome::Invalid(_) => None,
        };
        let deferred = match status {
            StatusWrite::Deferred(delay) => Some(delay),
            StatusWrite::Written(_) | StatusWrite::Unchanged | StatusWrite::Gone => None,
        };
        let delay = [pending, deferred, part].into_iter().flatten().fold(self.settings.resync, Duration::min);
        Action::requeue(delay.mul_f64(rand::rng().random_range(1.0..1.2)))
    }

    /// Lets the writes of what an object declares pass, unless others write as much.
    #[must_use]
    pub fn write_gate<K: Resource<DynamicType = ()>>(&self, object: &K, kind: &'static str) -> WriteGate<'_> {
        let (states, generation) = (&self.states, object.meta().generation);
        WriteGate { states, object: ObjectKey::of(object), partition: None, generation, kind }
    }
}
