//! In: an object that is being deleted. First its pods go, then its consumer, where its policy says so; then the object is let go.
//! Bounded: an object is let go in the end even if NATS never comes back, so that no namespace is stuck.

use jetwright_crds::{EventConsumer, EventStream, conditions::Reason};
use kube::{Api, Resource, runtime::controller::Action};

use super::{consumer_name, deletes, dereference::remembered, status, validate::StreamFacts};
use crate::{
    context::Context,
    deletion::{self, Progress},
    identity::Identity,
    jetstream::ApiError,
    kubernetes::{events, finalizer},
    outcome::{Category, Failure as _, applied_generation},
    workload,
};

/// Why the deletion did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The workload could not be taken down.
    #[error("the workload cannot be taken down")]
    Workload(#[from] workload::Error),
    /// JetStream did not delete.
    #[error("consumer {name} of stream {stream} could not be deleted")]
    JetStream {
        /// The stream.
        stream: String,
        /// The consumer.
        name: String,
        /// What it said.
        source: ApiError,
    },
    /// The EventStream could not be read, the finalizer not be removed, or the status not be written.
    #[error("the object cannot be let go")]
    Kubernetes(#[from] kube::Error),
}

impl Error {
    pub(super) fn category(&self) -> Category {
        match self {
            Self::Workload(error) => error.category(),
            Self::JetStream { source, .. } => Category::of_jetstream(source),
            Self::Kubernetes(source) => Category::of_kubernetes(source),
        }
    }
}

/// Deletes what belongs to the object, and lets it go.
pub async fn delete(object: &EventConsumer, identity: &Identity, context: &Context) -> Result<Action, Error> {
    let api: Api<EventConsumer> = Api::namespaced(context.client.clone(), &identity.namespace);
    let name = consumer_name(object);
    let stream = stream_of(object, identity, context).await?;
    if finalizer::is_set(object) && deletes(object) {
        if !workload::take_down(object, context).await? && !deletion::is_overdue(status::key(object), context)
        {
            deletion::tell(&api, object, Reason::Deleting, "pods finish their work".to_owned()).await?;
            return Ok(deletion::look_again());
        }
        let tried = delete_consumer(&stream, &name, object, identity, context).await;
        match deletion::judge(status::key(object), tried, context) {
            Progress::Done => {}
            Progress::Later(Some(source)) => return Err(Error::JetStream { stream, name, source }),
            Progress::Later(None) => {
                deletion::tell(&api, object, Reason::Deleting, "NATS is away".to_owned()).await?;
                return Ok(deletion::look_again());
            }
            Progress::GiveUp => {
                let note = format!(
                    "NATS could not be asked to delete consumer {name} of stream {stream}: it is left behind"
                );
                events::warning(&context.recorder, &object.object_ref(&()), "LeftBehind", note).await;
            }
        }
    }
    finalizer::set(&api, object, false).await?;
    context.written.clear(&status::key(object));
    context.deletions.clear(&status::key(object));
    Ok(Action::await_change())
}

/// The stream's name in JetStream: as the status has it, since the EventStream may be gone already.
async fn stream_of(
    object: &EventConsumer,
    identity: &Identity,
    context: &Context,
) -> Result<String, kube::Error> {
    let known = object.status.as_ref().and_then(|status| status.consumer.as_ref());
    if let Some(known) = known {
        return Ok(known.stream.clone());
    }
    let api: Api<EventStream> = Api::namespaced(context.client.clone(), &identity.namespace);
    let reference = &object.spec.stream_ref.name;
    let stream = api.get_opt(reference).await?;
    Ok(stream.map_or_else(|| reference.clone(), |stream| StreamFacts::of(&stream).name))
}

/// Deletes the consumer where it is the object's; None while NATS is away.
async fn delete_consumer(
    stream: &str,
    name: &str,
    object: &EventConsumer,
    identity: &Identity,
    context: &Context,
) -> Option<Result<(), ApiError>> {
    if context.no_connection(&identity.namespace).is_some() {
        return None;
    }
    let remembered = remembered(object);
    let deleted = async {
        let mut held = context.mirror.hold_consumer(stream, name).await?;
        context.mirror.look_at_consumer(stream, name, &mut held).await?;
        let Some(info) = held.present() else { return Ok(()) };
        // What a newer generation was applied to, another operator knows more about.
        if applied_generation(identity, ("consumer", name), &info.config, remembered.is_of(&info.created))
            .is_ok()
        {
            context.mirror.api().delete_consumer(stream, name).await?;
            context.mirror.look_at_consumer(stream, name, &mut held).await?;
        }
        Ok(())
    };
    Some(deleted.await)
}
