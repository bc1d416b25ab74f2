//! In: the object, and what its pods consume. Out: the workload that it declares, or what is wrong with it. Pure.

use jetwright_crds::{EventConsumer, consumer::Workload, environment::Bindings, names::WorkloadNames};
use k8s_openapi::{api::core::v1::ServicePort, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{Resource, ResourceExt};
use serde_json::{Map, Value};

use crate::field_error::FieldError;

/// What every pod is given, beside what its EventConsumer declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadSettings {
    /// Addresses of NATS as pods reach it.
    pub nats_url: String,
    /// Where pods send their traces, if anywhere.
    pub otlp_endpoint: Option<String>,
}

/// A workload as it is desired.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Names of all that belongs to it.
    pub names: WorkloadNames,
    pub namespace: String,
    /// Makes the objects the EventConsumer's own.
    pub owner: OwnerReference,
    /// Pods.
    pub replicas: i32,
    /// The pod as the user wrote it.
    pub template: Map<String, Value>,
    /// Ports of the Service, if there is one.
    pub service_ports: Option<Vec<ServicePort>>,
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
pub fn desired(
    object: &EventConsumer,
    workload: &Workload,
    bindings: Bindings,
) -> Result<Desired, Vec<FieldError>> {
    let Workload { replicas, template, service, credentials } = workload;
    let Value::Object(template) = template.to_json() else {
        return Err(vec![FieldError::new(
            "spec.workload.template",
            "it is no pod template: it needs a spec with containers",
        )]);
    };
    let Some(owner) = object.controller_owner_ref(&()) else {
        return Err(vec![FieldError::new("metadata.uid", "the object was not read from the API server")]);
    };
    let names = WorkloadNames::of(&object.name_any())
        .map_err(|error| vec![FieldError::new("metadata.name", error.to_string())])?;
    Ok(Desired {
        names,
        namespace: object.namespace().unwrap_or_default(),
        owner,
        replicas: *replicas,
        template,
        service_ports: service.as_ref().map(|service| service.ports.clone()),
        credentials: credentials.as_ref().map(|credentials| credentials.secret_ref.name.clone()),
        bindings,
    })
}
