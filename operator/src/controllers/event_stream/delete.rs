//! The deletion of an EventStream: first the EventConsumers that use it go, then the stream, where the policy says so; then the finalizer.
//! Bounded by the deletion timeout, so that no namespace is stuck.

use jetwright_crds::{EventConsumer, EventStream, conditions::Reason};
use kube::{
    Api, Resource, ResourceExt,
    api::{ListParams, PartialObjectMeta},
    runtime::controller::Action,
};

use super::{
    super::{
        finalize::{self, Step, Wait},
        report::report_summary,
    },
    Error,
};
use crate::{
    context::Context,
    deletion::Deletion,
    jetstream::{
        asset::{Asset as _, Stream},
        ownership::Owner,
    },
    kubernetes::{finalizer, list, status::ConditionSummary, stores::IndexKey},
    object_state::ObjectKey,
};

/// Takes the next step of a deletion.
///
/// # Errors
///
/// When it fails; the status says so already.
pub async fn delete(
    object: &EventStream,
    api: &Api<EventStream>,
    owner: &Owner,
    context: &Context,
) -> Result<Action, Error> {
    if finalize::is_released(owner, &ObjectKey::of(object), context) {
        return Ok(Action::await_change());
    }
    if finalizer::is_set(object) && object.spec.deletes() {
        if finalizer::is_orphaning(object) {
            let note = "its stream stays: it was deleted without its dependents";
            context.events.normal(&object.object_ref(&()), "Orphaned", note);
        } else if let Some(wait) = next(object, api, owner, context).await? {
            report_summary(api, object, &wait.summary, context).await.map_err(Error::Status)?;
            let requeue = wait.requeue();
            return wait.error.map_or(Ok(requeue), |error| Err(Error::Stream(error)));
        }
    }
    finalize::release(api, object, context).await.map_err(Error::Release)
}

/// What the deletion waits for; None where nothing holds the object any more.
async fn next(
    object: &EventStream,
    api: &Api<EventStream>,
    owner: &Owner,
    context: &Context,
) -> Result<Option<Wait>, Error> {
    let users = match users(owner, context).await {
        Ok(users) => users,
        Err(error) => {
            let summary = ConditionSummary::failed(&error);
            report_summary(api, object, &summary, context).await.map_err(Error::Status)?;
            return Err(error);
        }
    };
    if !users.is_empty() {
        let clock = context.states.deletion(&ObjectKey::of(object), &owner.uid, Deletion::of_users);
        let message = format!(
            "waiting since {:.0}: EventConsumers still refer to it: {}; delete them first",
            clock.since,
            users.join(", ")
        );
        return Ok(Some(Wait::without_end(ConditionSummary::reconciling(Reason::InUse, message))));
    }
    let stream = object.stream_name();
    match finalize::delete_asset::<Stream>(&stream, owner, &ObjectKey::of(object), context).await {
        Step::Done => Ok(None),
        Step::Wait(wait) => Ok(Some(wait)),
        Step::Left(note) => {
            finalize::report_orphan(object, owner, Stream::KIND, &note, context);
            Ok(None)
        }
    }
}

/// Names of the EventConsumers that refer to the object: what they consume is not taken from under them. That there are none is read
/// from the API server, since a store may lag, and does not know to what an object refers that cannot be read.
async fn users(owner: &Owner, context: &Context) -> Result<Vec<String>, Error> {
    let key = IndexKey::Stream((owner.namespace.clone(), owner.name.clone()));
    let scope = context.scopes.of(&owner.namespace);
    let known = scope.map(|scope| scope.event_consumers.names_by(&key)).unwrap_or_default();
    if !known.is_empty() {
        return Ok(known.into_iter().map(|(_, name)| name).collect());
    }
    let failed = |source| Error::Consumers { namespace: owner.namespace.clone(), source };
    let api: Api<EventConsumer> = Api::namespaced(context.client.clone(), &owner.namespace);
    let referring = ListParams::default().fields(&format!("spec.streamRef.name={}", owner.name)).limit(1);
    match api.list_metadata(&referring).await {
        Ok(found) => Ok(found.items.iter().map(PartialObjectMeta::name_any).collect()),
        // A definition of an earlier version cannot be searched by it.
        Err(kube::Error::Api(status)) if status.code == 400 => {
            let all: Vec<EventConsumer> =
                list::readable(&context.client, &owner.namespace).await.map_err(failed)?;
            let users = all.into_iter().filter(|user| user.spec.stream_ref.name == owner.name);
            Ok(users.map(|user| user.name_any()).collect())
        }
        Err(source) => Err(failed(source)),
    }
}
