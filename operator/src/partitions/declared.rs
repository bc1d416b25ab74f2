//! In: the EventConsumers and their pods, as the watches brought them. Out: the consumers whose partitions are shared out, and among
//! which pods. Asks nobody.

use std::{collections::HashSet, time::Duration};

use jetwright_crds::{EventConsumer, environment::STOP_MARGIN};
use jetwright_partitions::{
    coordinator::{Declared, Pods},
    keys::{ConsumerId, MAX_PARTITIONS},
};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;

use super::roles::{roles, template_of};
use crate::{
    context::Context,
    jetstream::connections::Connection,
    kubernetes::{
        scopes::{Scope, Scopes},
        stores::{IndexKey, Name, name_of},
        watched::Watched,
    },
    object_state::ObjectKey,
};

/// A consumer whose partitions are shared out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderedConsumer {
    /// The EventConsumer.
    pub object: Name,
    /// Its consumer in JetStream.
    pub id: ConsumerId,
    /// Number of partitions.
    pub count: u32,
    /// How long a hand-over should take at most.
    pub drain: Duration,
    /// The EventConsumer that declares its pods, where the operator runs some.
    pub workload: Option<Name>,
    /// Whether its EventStream is there, and says that the consumer is its own.
    pub has_stream: bool,
}

impl OrderedConsumer {
    /// What the coordinator shares out.
    #[must_use]
    pub fn declared(&self, context: &Context) -> Declared {
        let pods = self.workload.as_ref().map(|workload| {
            let template = template(context, workload);
            let retiring = context.scale_downs.retiring(workload);
            let roles = roles(&context.pods.processes(workload), template.as_deref(), &retiring);
            Pods { namespace: workload.0.clone(), roles }
        });
        Declared { count: self.count, drain: self.drain, pods }
    }
}

/// The consumers of a connection.
#[must_use]
pub fn ordered_consumers(scopes: &Scopes, connection: &Connection) -> Vec<OrderedConsumer> {
    let of_scope = |scope: &Scope| {
        // Before all pods were listed, a member's pod would seem to be none of its workload.
        if !*scope.listed.borrow() {
            return Vec::new();
        }
        let consumers = scope.event_consumers.by(&IndexKey::PerKey).into_iter();
        let here =
            consumers.filter(|object| connection.serves.contains(&object.namespace().unwrap_or_default()));
        here.filter_map(|object| shared_out(&object, scope)).collect::<Vec<_>>()
    };
    without_claims(scopes.all().flat_map(|scope| of_scope(scope)).collect())
}

/// Whether an object of the connection may declare a consumer, or it is not known yet which objects there are.
#[must_use]
pub fn may_be_declared(scopes: &Scopes, connection: &Connection, id: &ConsumerId) -> bool {
    scopes.all().any(|scope| {
        let may_declare = |object: &EventConsumer| {
            connection.serves.contains(&object.namespace().unwrap_or_default())
                && scope.event_stream_of(object).is_none_or(|stream| stream.stream_name() == id.stream)
        };
        let named = || scope.event_consumers.by(&IndexKey::JetStream(id.consumer.clone()));
        !*scope.listed.borrow() || named().iter().any(|object| may_declare(object))
    })
}

/// One whose consumers in JetStream are its own: a status describes no others. It may have fewer than its stream has partitions, while they are
/// divided. Where the EventStream is deleted or cannot be read, the status alone says which they are: they stay, and so do the pods.
#[must_use]
pub fn shared_out(object: &EventConsumer, scope: &Scope) -> Option<OrderedConsumer> {
    let name = name_of(object);
    let stream = scope.event_streams.get(&name.0, &object.spec.stream_ref.name);
    let stream = stream.as_ref().and_then(Watched::valid);
    let known = match stream {
        Some(stream) => object.known_consumer(stream)?,
        None => object.status.as_ref()?.consumer.as_ref()?,
    };
    let count = known.partitions.filter(|count| (1..=MAX_PARTITIONS).contains(count))?;
    let id = ConsumerId { stream: known.stream.clone(), consumer: object.consumer_name() };
    let workload = workload_of(object).map(|workload| (name.0.clone(), workload));
    let drain = drain_time(object);
    Some(OrderedConsumer { object: name, id, count, drain, workload, has_stream: stream.is_some() })
}

/// A status may be written by others: without its stream it speaks for no consumer of which another object with its stream speaks.
fn without_claims(mut consumers: Vec<OrderedConsumer>) -> Vec<OrderedConsumer> {
    consumers.sort_by_key(|consumer| !consumer.has_stream);
    let mut spoken_for = HashSet::new();
    consumers.retain(|consumer| spoken_for.insert(consumer.id.clone()) || consumer.has_stream);
    consumers
}

/// How long a hand-over of one of its partitions should take at most.
#[must_use]
pub fn drain_time(object: &EventConsumer) -> Duration {
    object.spec.effective_handler_deadline().0 + STOP_MARGIN.0
}

/// The template that a workload's Deployment rolls out or has rolled out, where it says so.
#[must_use]
pub fn template(context: &Context, (namespace, name): &Name) -> Option<String> {
    let owned = context.applying.owned.get(&ObjectKey::new::<Deployment>(namespace, name))?;
    template_of(name, owned.deployment.as_deref()?).map(str::to_owned)
}

/// Name of the EventConsumer that declares the pods which handle an object's events.
#[must_use]
pub fn workload_of(object: &EventConsumer) -> Option<String> {
    let reference = object.spec.workload_ref.as_ref().map(|reference| reference.name.clone());
    reference.or_else(|| object.spec.workload.as_ref().map(|_| object.name_any()))
}

/// Whether a workload is to have no pods, as far as its Deployment is known.
#[must_use]
pub fn is_scaled_to_zero(context: &Context, (namespace, name): &Name) -> bool {
    let owned = context.applying.owned.get(&ObjectKey::new::<Deployment>(namespace, name));
    let deployment = owned.as_ref().and_then(|owned| owned.deployment.as_deref());
    deployment.and_then(|deployment| deployment.spec.as_ref()).is_some_and(|spec| spec.replicas == Some(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_without_its_stream_speaks_for_no_consumer_of_another_object() {
        let consumer = |object: &str, consumer: &str, has_stream| OrderedConsumer {
            object: ("shop".to_owned(), object.to_owned()),
            id: ConsumerId { stream: "orders".to_owned(), consumer: consumer.to_owned() },
            count: 8,
            drain: Duration::ZERO,
            workload: None,
            has_stream,
        };
        let all = vec![
            consumer("forged", "fulfilment", false),
            consumer("left", "mails", false),
            consumer("own", "fulfilment", true),
        ];
        let kept: Vec<_> = without_claims(all).into_iter().map(|consumer| consumer.object.1).collect();
        assert_eq!(kept, ["own", "left"]);
    }
}
