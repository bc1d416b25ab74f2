//! The deletion of an EventConsumer: first its pods go, then the consumer, where the policy says so; then the finalizer. Bounded: pods by the time
//! that they may take to stop, the consumer by the deletion timeout, so that no namespace is stuck.

use std::pin::pin;

use futures::{StreamExt as _, stream};
use jetwright_crds::{EventConsumer, labels::WORKLOAD, names::WorkloadNames};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{Api, Resource, ResourceExt, api::ListParams, runtime::controller::Action};
use tokio::time::Instant;

use super::{
    super::{
        finalize::{self, Step, Wait},
        report::report_summary,
    },
    Error, MAX_CONCURRENT_PARTITIONS,
    search::{Failure, Found, Search},
};
use crate::{
    context::Context,
    deletion as progress,
    error::error_chain,
    jetstream::{
        asset::{Asset as _, Consumer},
        ownership::Owner,
    },
    kubernetes::{apply::Applier, finalizer, status::ConditionSummary, stores::name_of},
    object_state::ObjectKey,
    pods::drain::{Drain, RunningPod, drain, lifetime},
    workload::apply::delete_workload,
};

/// Most notes of what one deletion leaves behind.
const MAX_NOTES: usize = 3;

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
    context.scale_downs.forget(&name_of(object));
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
        let search = Search { object: self.object, owner: self.owner, key: &self.key, context: self.context };
        let Found { consumers, unknown: mut left_behind } = match search.run().await {
            Ok(found) => found,
            Err(Failure::EventStream(error)) => return Err(self.failed(Error::EventStream(error)).await),
            Err(Failure::Wait(wait)) => return Ok(Some(*wait)),
        };
        let deleted = stream::iter(consumers).map(async |consumer| {
            finalize::delete_asset::<Consumer>(&consumer, self.owner, &self.key, self.context).await
        });
        let mut deleted = pin!(deleted.buffered(MAX_CONCURRENT_PARTITIONS));
        while let Some(step) = deleted.next().await {
            match step {
                Step::Done => {}
                Step::Wait(wait) => return Ok(Some(wait)),
                Step::Left(note) => left_behind.push(note),
            }
        }
        for note in bounded(left_behind) {
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
}

/// What stays behind, in as many notes as somebody reads: partitions are many, and alike.
fn bounded(mut notes: Vec<String>) -> Vec<String> {
    let others = notes.len().saturating_sub(MAX_NOTES);
    notes.truncate(MAX_NOTES);
    if let Some(last) = notes.last_mut().filter(|_| others > 0) {
        *last = format!("{last}. The same holds for {others} more consumers of this object");
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_that_stay_behind_a_few_are_named_and_the_others_counted() {
        let notes = |count: u32| bounded((0..count).map(|number| number.to_string()).collect());
        assert_eq!(notes(3), ["0", "1", "2"]);
        assert_eq!(notes(9)[..2], ["0", "1"]);
        assert_eq!(notes(9)[2], "2. The same holds for 6 more consumers of this object");
    }
}
