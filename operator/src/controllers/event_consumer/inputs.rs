//! In: the object. Out: every other object that its reconcile depends on, read once from what the watches brought. Reads from Kubernetes only
//! what no watch has brought, since a store never proves that something does not exist; once it is proved, its watch reports a change.

use std::{fmt::Debug, sync::Arc};

use jetwright_crds::{EventConsumer, EventStream, names::dead_letter_object};
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::clash::{Contest, Marked, contests};
use crate::{
    context::Context,
    field_error::FieldError,
    jetstream::{
        asset::{Consumer, ConsumerKey},
        entries::CacheEntry,
        history::History,
        ownership::{Owner, Ownership},
    },
    kubernetes::{
        apply::Error,
        scopes::Scope,
        stores::{IndexKey, Objects},
        watched::Watched,
    },
    object_state::ObjectKey,
    outcome::CreationTime as _,
};

/// What the reconcile of an EventConsumer depends on.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The EventStream that it consumes from; None where there is none.
    pub stream: Option<Arc<EventStream>>,
    /// Why it cannot have its name, where another EventConsumer has it.
    pub clash: Option<FieldError>,
    /// The EventStream under the name of the one for its dead letters, where they are kept.
    pub dead_letter_stream: Option<Arc<EventStream>>,
    pub pods: Pods,
}

/// Where the pods of an EventConsumer are declared.
#[derive(Clone, Debug)]
pub enum Pods {
    None,
    /// At another EventConsumer; None where that does not exist.
    Elsewhere(Option<Arc<EventConsumer>>),
    /// Here; these others consume in them too.
    Own(Vec<Guest>),
}

/// An EventConsumer whose events are handled in another's pods.
#[derive(Clone, Debug)]
pub struct Guest {
    pub consumer: Arc<EventConsumer>,
    pub stream: Option<Arc<EventStream>>,
    pub clash: Option<FieldError>,
}

/// What an EventConsumer is judged by beside itself.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub stream: &'a EventStream,
    pub clash: Option<&'a FieldError>,
}

impl Inputs {
    /// What the object is judged by; None where its EventStream does not exist.
    #[must_use]
    pub fn source(&self) -> Option<Source<'_>> {
        Some(Source { stream: self.stream.as_deref()?, clash: self.clash.as_ref() })
    }
}

impl Guest {
    /// What it is judged by; None where its EventStream does not exist.
    #[must_use]
    pub fn source(&self) -> Option<Source<'_>> {
        Some(Source { stream: self.stream.as_deref()?, clash: self.clash.as_ref() })
    }
}

/// Reads what a reconcile depends on.
///
/// # Errors
///
/// When Kubernetes has to be asked and does not answer.
pub async fn read(object: &EventConsumer, scope: &Scope, context: &Context) -> Result<Inputs, Error> {
    let namespace = object.namespace().unwrap_or_default();
    let reader = Reader { scope, context, namespace: &namespace };
    let reference = &object.spec.stream_ref.name;
    let keeps_dead_letters = object.spec.dead_letter_max_age().is_some();
    Ok(Inputs {
        stream: reader.stream(reference).await?,
        clash: reader.clash(object).await?,
        dead_letter_stream: if keeps_dead_letters {
            reader.stream(&dead_letter_object(reference)).await?
        } else {
            None
        },
        pods: reader.pods(object).await?,
    })
}

/// The EventStreams that the pods consume from and that do not exist, by the names in `streamRef`; one for each consumer that waits.
pub fn missing_streams<'a>(object: &'a EventConsumer, inputs: &Inputs, guests: &'a [Guest]) -> Vec<&'a str> {
    let own = (object, inputs.stream.is_none());
    let others = guests.iter().map(|guest| (guest.consumer.as_ref(), guest.stream.is_none()));
    let missing = std::iter::once(own).chain(others).filter(|(_, is_missing)| *is_missing);
    missing.map(|(consumer, _)| consumer.spec.stream_ref.name.as_str()).collect()
}

struct Reader<'a> {
    scope: &'a Scope,
    context: &'a Context,
    namespace: &'a str,
}

impl Reader<'_> {
    async fn stream(&self, name: &str) -> Result<Option<Arc<EventStream>>, Error> {
        self.find(&self.scope.event_streams, name).await
    }

    async fn clash(&self, object: &EventConsumer) -> Result<Option<FieldError>, Error> {
        let reference = &object.spec.stream_ref.name;
        let stream = IndexKey::Stream((self.namespace.to_owned(), reference.clone()));
        let contests = contests(object, &self.scope.event_consumers.by(&stream));
        if contests.is_empty() {
            return Ok(None);
        }
        let stream = self.stream(reference).await?.map(|stream| stream.stream_name());
        for contest in contests {
            let marked = match &stream {
                Some(stream) => self.marked(object, &contest, stream).await,
                None => Marked { own: false, theirs: false },
            };
            if let Some(error) = contest.lost(object, marked) {
                return Ok(Some(error));
            }
        }
        Ok(None)
    }

    async fn marked(&self, object: &EventConsumer, contest: &Contest, stream: &str) -> Marked {
        let has = async |object: &EventConsumer, name: &str| {
            let key = ConsumerKey { stream: stream.to_owned(), name: name.to_owned() };
            let cache = &self.context.connections.for_namespace(self.namespace).ok()?.cache;
            let info = match cache.peek::<Consumer>(&key) {
                // Where JetStream does not answer, nothing is made either.
                CacheEntry::Stale => cache.lock::<Consumer>(&key).await.ok()?.present()?,
                known => known.present()?,
            };
            let owner = Owner::new(&self.context.cluster, object);
            let ownership = owner.ownership(&info.config, info.created(), &History::default());
            Some(matches!(ownership, Ownership::Ours(_)))
        };
        Marked {
            own: has(object, &contest.own).await.unwrap_or_default(),
            theirs: has(&contest.other, &contest.theirs).await.unwrap_or_default(),
        }
    }

    async fn pods(&self, object: &EventConsumer) -> Result<Pods, Error> {
        if let Some(reference) = &object.spec.workload_ref {
            return Ok(Pods::Elsewhere(self.find(&self.scope.event_consumers, &reference.name).await?));
        }
        if object.spec.workload.is_none() {
            return Ok(Pods::None);
        }
        let key = IndexKey::Workload((self.namespace.to_owned(), object.name_any()));
        let mut guests = Vec::new();
        for consumer in self.scope.event_consumers.by(&key) {
            if consumer.metadata.deletion_timestamp.is_none() {
                let stream = self.stream(&consumer.spec.stream_ref.name).await?;
                let clash = self.clash(&consumer).await?;
                guests.push(Guest { consumer, stream, clash });
            }
        }
        Ok(Pods::Own(guests))
    }

    async fn find<K>(&self, objects: &Objects<K>, name: &str) -> Result<Option<Arc<K>>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        let (key, states) = (ObjectKey::new::<K>(self.namespace, name), &self.context.states);
        match objects.get(self.namespace, name) {
            Some(Watched::Valid(object)) => {
                states.set_absent(&key, false);
                return Ok(Some(object));
            }
            None if states.is_absent(&key) => return Ok(None),
            // Reading one that cannot be read tells what is wrong with it.
            Some(Watched::Invalid(_)) | None => {}
        }
        let api: Api<K> = Api::namespaced(self.context.client.clone(), self.namespace);
        let failed = |source| Error::Kubernetes { kind: key.kind, name: name.to_owned(), source };
        let found = api.get_opt(name).await.map_err(failed)?;
        if found.is_none() {
            states.set_absent(&key, true);
        }
        Ok(found.map(Arc::new))
    }
}
