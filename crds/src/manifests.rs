//! The CustomResourceDefinitions as manifests.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use crate::{EventConsumer, EventStream};

/// Why the manifests could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A type's schema is not what Kubernetes takes.
    #[error("a definition is not one that Kubernetes takes")]
    Definition(#[from] serde_json::Error),
    /// A definition could not be written as YAML.
    #[error("a definition could not be written as YAML")]
    Yaml(#[from] serde_saphyr::ser::Error),
}

/// Every CustomResourceDefinition of the API.
///
/// # Errors
///
/// When a definition is not what Kubernetes takes for one, which is a mistake in the types.
pub fn definitions() -> Result<Vec<CustomResourceDefinition>, serde_json::Error> {
    [EventConsumer::crd(), EventStream::crd()].into_iter().map(tidy).collect()
}

/// Puts right what the derived schemas say in the words of Rust.
fn tidy(definition: CustomResourceDefinition) -> Result<CustomResourceDefinition, serde_json::Error> {
    let mut value = serde_json::to_value(definition)?;
    tidy_schema(&mut value);
    serde_json::from_value(value)
}

fn tidy_schema(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // A null is refused: CEL's has() would take it for a value.
            if fields.get("nullable").is_some_and(Value::is_boolean) {
                fields.remove("nullable");
            }
            // The API server warns of formats that are not OpenAPI's.
            if let Some(Value::String(format)) = fields.get_mut("format")
                && format.starts_with("uint")
            {
                "int64".clone_into(format);
            }
            fields.values_mut().for_each(tidy_schema);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy_schema),
        _ => {}
    }
}

/// File name and YAML text of every definition, as they stand in `crds/manifests`.
///
/// # Errors
///
/// When a definition cannot be written as YAML.
pub fn files() -> Result<Vec<(String, String)>, Error> {
    definitions()?
        .into_iter()
        .map(|definition| {
            let name = format!("{}.yaml", definition.spec.names.plural);
            let text = serde_saphyr::to_string(&definition)?;
            Ok((name, format!("# Made from the Rust types by `make manifests`; edit those instead.\n{text}")))
        })
        .collect()
}
