//! In: the object, and what its pods consume. Out: the workload that it declares, or what is wrong with it. Pure.

use jetwright_crds::{
    EventConsumer,
    consumer::Workload,
    environment::{ADMIN_PORT, Bindings, JETWRIGHT_ADMIN_ADDRESS},
    names::WorkloadNames,
};
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
    /// Port of the program's probes and metrics.
    pub admin_port: u16,
    /// Ports of the Service, if there is one.
    pub service_ports: Option<Vec<ServicePort>>,
    /// Secret with the pods' NATS credentials, if they have some.
    pub credentials: Option<String>,
    /// What the pods consume.
    pub bindings: Bindings,
}

/// Makes the desired workload of an EventConsumer, with so many pods.
///
/// # Errors
///
/// Everything that is wrong, each with its field and what to do.
pub fn desired(
    object: &EventConsumer,
    workload: &Workload,
    replicas: i32,
    bindings: Bindings,
) -> Result<Desired, Vec<FieldError>> {
    let Workload { replicas: _, autoscaling: _, template, service, credentials } = workload;
    let mut template = template.to_json();
    drop_nulls(&mut template);
    let Value::Object(template) = template else {
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
    let admin_port = admin_port(&template).map_err(|error| vec![error])?;
    Ok(Desired {
        names,
        namespace: object.namespace().unwrap_or_default(),
        owner,
        replicas,
        template,
        admin_port,
        service_ports: service.as_ref().map(|service| service.ports.clone()),
        credentials: credentials.as_ref().map(|credentials| credentials.secret_ref.name.clone()),
        bindings,
    })
}

/// Takes fields without a value out, as charts print them (`env:` with nothing behind it): to Kubernetes they are absent.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// The port on which the program serves its probes and metrics: that of the address that the template sets, if it sets one.
/// An address that is not in the template is unknown before the pod runs.
fn admin_port(template: &Map<String, Value>) -> Result<u16, FieldError> {
    let program = template.get("spec").and_then(|spec| spec.get("containers")?.get(0));
    let variables = program.and_then(|program| program.get("env")?.as_array()).into_iter().flatten();
    let mut addresses = variables.filter(|variable| variable["name"] == JETWRIGHT_ADMIN_ADDRESS);
    let Some(address) = addresses.next() else { return Ok(ADMIN_PORT) };
    let wrong = |what: &str| {
        let message = format!(
            "{JETWRIGHT_ADMIN_ADDRESS} {what} (default: 0.0.0.0:{ADMIN_PORT}): the probes have its port"
        );
        Err(FieldError::new("spec.workload.template", message))
    };
    if address.get("valueFrom").is_some() {
        return wrong("must be a plain value");
    }
    let Some(text) = address.get("value").and_then(Value::as_str).filter(|text| !text.is_empty()) else {
        return Ok(ADMIN_PORT);
    };
    // The host may be a reference to another variable, as $(POD_IP).
    match text.rsplit_once(':').and_then(|(_, port)| port.parse().ok()) {
        None | Some(0) => wrong("must end with a port"),
        Some(port) => Ok(port),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_admin_port_is_that_of_the_address_that_the_template_sets() {
        let admin_port_of = |yaml: &str| admin_port(&serde_saphyr::from_str(yaml).unwrap());
        let set = |source: &str| {
            format!(
                "{{spec: {{containers: [{{name: app, env: [{{name: JETWRIGHT_ADMIN_ADDRESS, {source}}}]}}]}}}}"
            )
        };
        assert_eq!(admin_port_of("{spec: {containers: [{name: app}]}}"), Ok(9090));
        assert_eq!(admin_port_of(&set("value: '127.0.0.1:9191'")), Ok(9191));
        assert_eq!(admin_port_of(&set("value: '$(POD_IP):9191'")), Ok(9191));
        assert_eq!(admin_port_of(&set("value: ''")), Ok(9090));
        for wrong in
            ["valueFrom: {configMapKeyRef: {name: a, key: b}}", "value: '9191'", "value: '0.0.0.0:0'"]
        {
            assert_eq!(admin_port_of(&set(wrong)).unwrap_err().field, "spec.workload.template", "{wrong}");
        }
    }

    #[test]
    fn a_field_without_a_value_is_absent() {
        let mut template = serde_saphyr::from_str(
            "{metadata: {labels: , annotations: {a: b, c: }}, spec: {volumes: , containers: [{name: app, env: , ports: [{name: }]}]}}",
        )
        .unwrap();
        drop_nulls(&mut template);
        let expected = json!({
            "metadata": {"annotations": {"a": "b"}}, "spec": {"containers": [{"name": "app", "ports": [{}]}]},
        });
        assert_eq!(template, expected);
    }
}
