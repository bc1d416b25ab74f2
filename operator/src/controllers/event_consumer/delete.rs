//! The deletion of an EventConsumer: first its pods go, then the consumer, where the policy says so; then the finalizer. Bounded: pods by the time
//! that they may take to stop, the consumer by the deletion timeout, so that no namespace is stuck.

use jetwright_crds::{EventConsumer, EventStream, labels::WORKLOAD, names::WorkloadNames};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{Api, Resource, ResourceExt, api::ListParams, runtime::controller::Action};
use tokio::time::Instant;

use super::{
    super::{
        finalize::{self, Step, Wait},
        report::report_summary,
    },
    Error,
};
use crate::{
    context::Context,
    deletion as progress,
    error::error_chain,
    jetstream::{
        asset::{Asset as _, Consumer, ConsumerKey},
        ownership::Owner,
    },
    kubernetes::{apply::Applier, finalizer, reduced, status::ConditionSummary, watched::Watched},
    object_state::ObjectKey,
    pods::drain::{Drain, RunningPod, drain, lifetime},
    workload::apply::delete_workload,
};

/// Takes the next step of a deletion.
///
/// # Errors
///
/// When it fails; the status says so already.
pub async fn delete(
    object: &EventConsumer,
    api: &Api<EventConsumer>,
    owner: &Owner,
    context: &Context,
) -> Result<Action, Error> {
    let deletion = Deletion { object, api, owner, context, key: ObjectKey::of(object) };
    if finalize::is_released(owner, &deletion.key, context) {
        return Ok(Action::await_change());
    }
    if finalizer::is_set(object) && object.spec.deletes() {
        if deletion.is_orphaning() {
            let note = "its pods and its consumer stay: it was deleted without its dependents";
            context.events.normal(&object.object_ref(&()), "Orphaned", note);
        } else if let Some(wait) = deletion.next().await? {
            report_summary(api, object, &wait.summary, context).await.map_err(Error::Status)?;
            let requeue = wait.requeue();
            return wait.error.map_or(Ok(requeue), |error| Err(Error::Consumer(error)));
        }
    }
    finalize::release(api, object, context).await.map_err(Error::Release)
}

struct Deletion<'a> {
    object: &'a EventConsumer,
    api: &'a Api<EventConsumer>,
    owner: &'a Owner,
    context: &'a Context,
    key: ObjectKey,
}

impl Deletion<'_> {
    /// Whether pods and consumer are to stay. The API server says so until its garbage collector has taken the dependents away from the object.
    fn is_orphaning(&self) -> bool {
        let deployment = ObjectKey::new::<Deployment>(&self.owner.namespace, &self.owner.name);
        let known = self.context.applying.owned.get(&deployment);
        finalizer::is_orphaning(self.object) || known.is_some_and(|deployment| deployment.is_orphaned())
    }

    /// What the deletion waits for; None where nothing holds the object any more.
    async fn next(&self) -> Result<Option<Wait>, Error> {
        if let Some(wait) = self.pods().await? {
            return Ok(Some(wait));
        }
        let consumers = match self.consumer_keys().await {
            Ok(consumers) => consumers,
            Err(error) => return Err(self.failed(error).await),
        };
        let mut left_behind = Vec::new();
        for consumer in consumers {
            match finalize::delete_asset::<Consumer>(&consumer, self.owner, &self.key, self.context).await {
                Step::Done => {}
                Step::Wait(wait) => return Ok(Some(wait)),
                Step::Left(note) => left_behind.push(note),
            }
        }
        for note in left_behind {
            finalize::report_orphan(self.object, self.owner, Consumer::KIND, &note, self.context);
        }
        Ok(None)
    }

    /// Takes the workload down, and says whether its pods are waited for.
    async fn pods(&self) -> Result<Option<Wait>, Error> {
        let Self { object, owner, context, .. } = self;
        let bound = context.settings.deletion_timeout;
        if self.progress(|deletion| deletion.are_pods_abandoned()) {
            return Ok(None);
        }
        let clock = self.progress(|deletion| deletion.of_pods(bound));
        if let Ok(names) = WorkloadNames::of(&owner.name) {
            let applier = Applier::new(&context.applying, &context.states, *object);
            let removed = delete_workload(&names, &applier).await.map_err(Error::Workload);
            // What cannot be removed goes with the object, as its dependent.
            if let Err(error) = removed
                && !clock.left_of(bound).is_zero()
            {
                return Err(self.failed(error).await);
            }
        }
        let is_away = context.connections.for_namespace(&owner.namespace).is_err();
        let running = match self.running(is_away).await {
            Ok(running) => running,
            Err(error) if !clock.left_of(bound).is_zero() => return Err(self.failed(error).await),
            Err(error) => {
                tracing::warn!(
                    error = error_chain(&error),
                    "failed to list pods for too long; going on without"
                );
                Vec::new()
            }
        };
        match drain(&running, clock, Instant::now(), bound) {
            Drain::Drained => Ok(None),
            Drain::Waiting { message, left, is_late } => {
                if is_late && is_away {
                    // It does not have to wait for pods first to notice that.
                    self.progress(|deletion| deletion.of_nats(bound));
                }
                Ok(Some(Wait::for_end(message, left)))
            }
            Drain::Overdue(names) => {
                self.progress(progress::Deletion::abandon_pods);
                let note = format!(
                    "gave up waiting for pods, which run for longer than their grace period: {names}. Their consumer is deleted: what \
                     they still handle is not acknowledged"
                );
                finalize::report_orphan(*object, owner, "pods", &note, context);
                Ok(None)
            }
        }
    }

    /// Works with how far the deletion has come.
    fn progress<R>(&self, work: impl FnOnce(&mut progress::Deletion) -> R) -> R {
        self.context.states.deletion(&self.key, &self.owner.uid, work)
    }

    /// Says in the status what failed.
    async fn failed(&self, error: Error) -> Error {
        let summary = ConditionSummary::failed(&error);
        match report_summary(self.api, self.object, &summary, self.context).await {
            Ok(()) => error,
            Err(error) => Error::Status(error),
        }
    }

    /// The pods that consume for the object. That there are none is read from the API server, since the watch may not have brought one yet;
    /// where nothing can be deleted now, that proves nothing.
    async fn running(&self, is_away: bool) -> Result<Vec<RunningPod>, Error> {
        let workloads = self.workloads();
        let named =
            |workload: &String| self.context.pods.running(&(self.owner.namespace.clone(), workload.clone()));
        let known: Vec<_> = workloads.iter().flat_map(named).collect();
        if is_away || workloads.is_empty() || !known.is_empty() {
            return Ok(known);
        }
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &self.owner.namespace);
        let pods = ListParams::default()
            .labels(&format!("{WORKLOAD} in ({})", workloads.join(",")))
            .fields("status.phase!=Succeeded,status.phase!=Failed")
            .limit(1);
        let found = api.list(&pods).await.map_err(Error::Pods)?;
        let running = found.items.iter().filter_map(|pod| {
            Some(RunningPod { name: pod.name_any(), lifetime: lifetime(pod, Instant::now())? })
        });
        Ok(running.collect())
    }

    /// The workloads whose pods consume for the object: its own, and that of its host where it goes too, as with their namespace. A host that
    /// stays lets go of the object's consumer by a rollout.
    fn workloads(&self) -> Vec<String> {
        let Self { object, owner, context, .. } = self;
        let host = object.spec.workload_ref.as_ref().map(|reference| reference.name.as_str());
        let goes = |host: &&str| {
            let known = context
                .scopes
                .of(&owner.namespace)
                .and_then(|scope| scope.event_consumers.get(&owner.namespace, host));
            known.is_none_or(|host| host.meta().deletion_timestamp.is_some())
        };
        let names = std::iter::once(owner.name.as_str()).chain(host.filter(goes));
        names.filter_map(|name| WorkloadNames::of(name).ok()).map(|names| names.workload).collect()
    }

    /// The consumers in JetStream that may be the object's: on the stream that its EventStream has now, and on the one that the status names,
    /// since the EventStream may be gone, or another. The status proves nothing: of each, its mark says whether it is the object's.
    async fn consumer_keys(&self) -> Result<Vec<ConsumerKey>, Error> {
        let Self { object, owner, context, .. } = self;
        let reference = object.spec.stream_ref.name.as_str();
        let scope = context.scopes.of(&owner.namespace);
        let stored = scope.and_then(|scope| scope.event_streams.get(&owner.namespace, reference));
        let declared = match stored.as_ref().and_then(Watched::valid) {
            Some(stream) => Some(stream.stream_name()),
            None if reference.is_empty() => None,
            None => {
                let read = reduced::get::<EventStream>(&context.client, &owner.namespace, reference);
                read.await.map_err(Error::EventStream)?.map(|stream| stream.stream_name())
            }
        };
        let declared = declared.unwrap_or_else(|| reference.to_owned());
        let known = object.status.as_ref().and_then(|status| status.consumer.as_ref());
        let known = known.map(|consumer| consumer.stream.clone()).filter(|stream| *stream != declared);
        let key = |stream| ConsumerKey { stream, name: object.consumer_name() };
        Ok(std::iter::once(declared).chain(known).map(key).collect())
    }
}
