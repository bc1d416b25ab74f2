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
            // The API server then takes a null for a field that is left out; else CEL's has() would take it for a value.
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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path};

    use super::*;

    /// What an annotation of at most 262,144 bytes holds, as plain `kubectl apply` makes one, with room for what JSON adds.
    const LARGEST: usize = 200 * 1024;

    fn schemas() -> Vec<(String, Value)> {
        let schema = |definition: CustomResourceDefinition| {
            let schema = serde_json::to_value(&definition.spec.versions[0].schema).unwrap();
            (definition.spec.names.kind, schema["openAPIV3Schema"].clone())
        };
        definitions().unwrap().into_iter().map(schema).collect()
    }

    /// Paths of what `wanted` finds in a schema and in what is below it.
    fn find(path: &str, schema: &Value, wanted: &dyn Fn(&str, &Value) -> bool, found: &mut Vec<String>) {
        if wanted(path, schema) {
            found.push(path.to_owned());
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            find(&format!("{path}.{name}"), property, wanted, found);
        }
        if let Some(items) = schema.get("items") {
            find(&format!("{path}[]"), items, wanted, found);
        }
    }

    fn all(wanted: &dyn Fn(&str, &Value) -> bool) -> Vec<String> {
        let mut found = Vec::new();
        for (kind, schema) in schemas() {
            find(&kind, &schema, wanted, &mut found);
        }
        found
    }

    #[test]
    fn the_committed_manifests_are_what_the_types_say() {
        assert_committed("crds/manifests");
    }

    #[test]
    fn the_chart_carries_the_same_manifests() {
        assert_committed("charts/jetwright/files/crds");
    }

    fn assert_committed(folder: &str) {
        let committed: BTreeMap<String, String> =
            fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .map(|path| {
                    let name = path.file_name().unwrap().to_string_lossy().into_owned();
                    (name, fs::read_to_string(path).unwrap())
                })
                .collect();
        let made: BTreeMap<_, _> = files().unwrap().into_iter().collect();
        assert!(committed.keys().eq(made.keys()), "{:?} is not {:?}", committed.keys(), made.keys());
        for (name, text) in made {
            assert!(committed[&name] == text, "{folder}/{name} is out of date: run `make manifests`");
        }
    }

    #[test]
    fn no_definition_is_too_large_for_plain_kubectl_apply() {
        for definition in definitions().unwrap() {
            let size = serde_json::to_string(&definition).unwrap().len();
            assert!(
                size <= LARGEST,
                "{} has {size} bytes, more than {LARGEST}",
                definition.spec.names.plural
            );
        }
    }

    #[test]
    fn every_field_is_described() {
        let undescribed = |path: &str, schema: &Value| {
            let item = path.ends_with(']');
            !item && schema["description"].as_str().is_none_or(str::is_empty)
        };
        assert_eq!(all(&undescribed), [""; 0]);
    }

    #[test]
    fn every_list_is_a_map_or_a_set_and_bounded() {
        let open = |path: &str, schema: &Value| {
            let kind = schema["x-kubernetes-list-type"].as_str().unwrap_or_default();
            // Neither the number nor number and protocol can be the key of ports, and the order of key tokens matters: see the fields.
            let whole = [".service.ports", ".partitions.keyTokens"].iter().any(|end| path.ends_with(end));
            let whole = whole && kind == "atomic";
            let merged = ["map", "set"].contains(&kind) || whole;
            schema["type"] == "array" && (!merged || schema["maxItems"].is_null())
        };
        assert_eq!(all(&open), [""; 0]);
    }

    #[test]
    fn every_text_that_a_user_writes_is_bounded() {
        let open = |path: &str, schema: &Value| {
            // Ports of a Service are Kubernetes' own type, and judged when the Service is applied.
            let users = path.contains(".spec.") && !path.contains(".service.ports[]");
            users && schema["type"] == "string" && schema["maxLength"].is_null() && schema["enum"].is_null()
        };
        assert_eq!(all(&open), [""; 0]);
    }

    #[test]
    fn nothing_may_be_null() {
        assert_eq!(all(&|_, schema| schema["nullable"] == true), [""; 0]);
    }
}
