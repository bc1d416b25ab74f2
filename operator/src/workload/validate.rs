//! In: the object, the EventConsumers that refer to its pods, and the EventStreams. Out: the workload that it declares, or what is
//! wrong with it. Pure.

use std::collections::BTreeMap;

use jetwright_crds::{
    EventConsumer, EventStream,
    conditions::{self, CONSUMER_READY, READY, Reason},
    consumer::Workload,
    environment::{Binding, Bindings},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference};
use kube::{Resource, ResourceExt};
use serde_json::{Map, Value};

use super::{dereference::Dereferenced, names::Names};
use crate::{
    consumer::validate::{StreamFacts, validate as validate_consumer},
    identity::Identity,
    outcome::{Problem, problem},
};

/// A workload as it is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Names of all that is made for it.
    pub names: Names,
    /// Its namespace.
    pub namespace: String,
    /// Makes the objects the EventConsumer's own.
    pub owner: OwnerReference,
    /// Pods.
    pub replicas: i32,
    /// The pod as the user wrote it.
    pub template: Map<String, Value>,
    /// Ports of the Service, if there is to be one.
    pub service_ports: Option<Vec<k8s_openapi::api::core::v1::ServicePort>>,
    /// Secret with the pods' NATS credentials, if they have some.
    pub credentials: Option<String>,
    /// What the pods consume.
    pub bindings: Bindings,
}

/// Makes the desired workload of an EventConsumer.
///
/// # Errors
///
/// Everything that is wrong, each with its field and what to do.
pub fn validate(object: &EventConsumer, found: &Dereferenced) -> Result<Desired, Vec<Problem>> {
    let namespace = object.namespace().unwrap_or_default();
    let Some(Workload { replicas, template, service, credentials }) = &object.spec.workload else {
        return Err(vec![problem("spec.workload", "there is none")]);
    };
    let Value::Object(template) = template else {
        return Err(vec![problem(
            "spec.workload.template",
            "it is no pod template: it needs a spec with containers",
        )]);
    };
    let Some(owner) = object.controller_owner_ref(&()) else {
        return Err(vec![problem("metadata.uid", "the object was not read from the API server")]);
    };
    let names = Names::of(&object.name_any()).map_err(|problem| vec![problem])?;
    let consumers = std::iter::once(object).chain(&found.others);
    let bindings: BTreeMap<_, _> = consumers
        .filter_map(|consumer| Some((consumer.name_any(), binding(consumer, &found.streams)?)))
        .collect();
    Ok(Desired {
        names,
        namespace,
        owner,
        replicas: *replicas,
        template: template.clone(),
        service_ports: service.as_ref().map(|service| service.ports.clone()),
        credentials: credentials.as_ref().map(|credentials| credentials.secret_ref.name.clone()),
        bindings: Bindings { bindings },
    })
}

/// What a handler needs of a consumer; None where the consumer's own reconcile says what is wrong with it.
fn binding(consumer: &EventConsumer, streams: &[EventStream]) -> Option<Binding> {
    let stream = streams.iter().find(|stream| stream.name_any() == consumer.spec.stream_ref.name)?;
    let of_stream = stream.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let of_consumer = consumer.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    if is_anothers(of_stream, READY) || is_anothers(of_consumer, CONSUMER_READY) {
        return None;
    }
    // Whose the consumer is does not matter to its handler.
    let identity = Identity::of("", consumer);
    let desired = validate_consumer(&consumer.spec, &identity, &StreamFacts::of(stream));
    desired.ok().map(|desired| desired.binding)
}

/// Whether what an object declares belongs to somebody else in JetStream: pods would take another's events.
fn is_anothers(known: &[Condition], type_: &str) -> bool {
    conditions::get(known, type_).is_some_and(|condition| condition.reason == Reason::NameConflict.as_str())
}
