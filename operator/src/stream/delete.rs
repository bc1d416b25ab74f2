//! In: an object that is being deleted. Deletes its stream where its policy says so, and lets the object go. Bounded: an object is
//! let go in the end even if NATS never comes back, so that no namespace is stuck.

use jetwright_crds::{DeletionPolicy, EventConsumer, EventStream, conditions::Reason};
use kube::{Api, Resource, ResourceExt, runtime::controller::Action};

use super::{dereference::remembered, status, stream_name};
use crate::{
    context::Context,
    deletion::{self, Progress},
    identity::Identity,
    jetstream::ApiError,
    kubernetes::{events, finalizer, list},
    outcome::{Category, applied_generation},
};

/// Why the deletion did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The EventConsumers could not be listed.
    #[error("the EventConsumers of namespace {namespace} cannot be listed")]
    Consumers {
        /// The namespace.
        namespace: String,
        /// What Kubernetes said.
        source: kube::Error,
    },
    /// JetStream did not delete.
    #[error("stream {name} could not be deleted")]
    JetStream {
        /// The stream.
        name: String,
        /// What it said.
        source: ApiError,
    },
    /// The finalizer could not be removed, or the status not be written.
    #[error("the object cannot be let go")]
    Kubernetes(#[from] kube::Error),
}

impl Error {
    pub(super) fn category(&self) -> Category {
        match self {
            Self::Consumers { source, .. } | Self::Kubernetes(source) => Category::of_kubernetes(source),
            Self::JetStream { source, .. } => Category::of_jetstream(source),
        }
    }
}

/// Deletes what belongs to the object, and lets it go.
pub async fn delete(object: &EventStream, identity: &Identity, context: &Context) -> Result<Action, Error> {
    let api: Api<EventStream> = Api::namespaced(context.client.clone(), &identity.namespace);
    let name = stream_name(object);
    if finalizer::is_set(object) && object.spec.deletion_policy == Some(DeletionPolicy::Delete) {
        let users = users(object, identity, context).await?;
        if !users.is_empty() {
            let message =
                format!("EventConsumers still refer to it: {}; delete them first", users.join(", "));
            deletion::tell(&api, object, Reason::InUse, message).await?;
            return Ok(deletion::look_again());
        }
        let tried = delete_stream(&name, object, identity, context).await;
        match deletion::judge(status::key(object), tried, context) {
            Progress::Done => {}
            Progress::Later(Some(error)) => return Err(Error::JetStream { name, source: error }),
            Progress::Later(None) => {
                deletion::tell(&api, object, Reason::Deleting, "NATS is away".to_owned()).await?;
                return Ok(deletion::look_again());
            }
            Progress::GiveUp => {
                let note = format!("NATS could not be asked to delete stream {name}: it is left behind");
                events::warning(&context.recorder, &object.object_ref(&()), "LeftBehind", note).await;
            }
        }
    }
    finalizer::set(&api, object, false).await?;
    context.written.clear(&status::key(object));
    context.deletions.clear(&status::key(object));
    Ok(Action::await_change())
}

/// Names of the EventConsumers that refer to the object: what they consume is not taken from under them.
async fn users(object: &EventStream, identity: &Identity, context: &Context) -> Result<Vec<String>, Error> {
    let consumers: Vec<EventConsumer> = list::readable(&context.client, &identity.namespace)
        .await
        .map_err(|source| Error::Consumers { namespace: identity.namespace.clone(), source })?;
    let name = object.name_any();
    Ok(consumers
        .into_iter()
        .filter(|user| user.spec.stream_ref.name == name)
        .map(|user| user.name_any())
        .collect())
}

/// Deletes the stream where it is the object's; None while NATS is away.
async fn delete_stream(
    name: &str,
    object: &EventStream,
    identity: &Identity,
    context: &Context,
) -> Option<Result<(), ApiError>> {
    if context.no_connection(&identity.namespace).is_some() {
        return None;
    }
    let remembered = remembered(object);
    let deleted = async {
        let mut held = context.mirror.hold_stream(name).await?;
        context.mirror.look_at_stream(name, &mut held).await?;
        let Some(info) = held.present() else { return Ok(()) };
        // What a newer generation was applied to, another operator knows more about.
        if applied_generation(identity, ("stream", name), &info.config, remembered.is_of(&info.created))
            .is_ok()
        {
            context.mirror.api().delete_stream(name).await?;
            context.mirror.look_at_stream(name, &mut held).await?;
        }
        Ok(())
    };
    Some(deleted.await)
}
