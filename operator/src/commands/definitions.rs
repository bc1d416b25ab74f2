//! Whether the API server's definitions know every field that this version knows. It publishes them to everybody who may use its API
//! at all, so that no right is needed to read them.

use std::time::Duration;

use jetwright_crds::{GROUP, manifests};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use serde_json::Value;
use tokio::time::{Instant, sleep};

/// Schemas are published some moments after they are served.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two reads.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Missing fields that a message names.
const NAMED: usize = 5;

/// What came of the comparison.
#[derive(Debug, PartialEq, Eq)]
pub enum Compared {
    /// Every field is known.
    Same,
    /// These are not.
    Older(Vec<String>),
    /// The definitions cannot be read, for this reason.
    Unknown(String),
}

/// Compares what the API server has with what this version brings; looks again until then, if they differ.
pub async fn compare(client: &Client, end: Instant) -> Compared {
    let known = match manifests::definitions() {
        Ok(known) => known,
        Err(error) => return Compared::Unknown(error.to_string()),
    };
    let end = end.min(Instant::now() + PUBLISH_TIMEOUT);
    loop {
        let compared = match published(client, &known).await {
            Ok(document) => judge(&known, &document),
            Err(error) => Compared::Unknown(crate::error::error_chain(&error)),
        };
        if compared == Compared::Same || Instant::now() >= end {
            return compared;
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// The OpenAPI document of the group, in the version that this program knows.
async fn published(client: &Client, known: &[CustomResourceDefinition]) -> Result<Value, kube::Error> {
    let version = known.first().and_then(|definition| definition.spec.versions.first());
    let version = version.map(|version| version.name.as_str()).unwrap_or_default();
    let request = http::Request::get(format!("/openapi/v3/apis/{GROUP}/{version}")).body(Vec::new());
    client.request(request.map_err(kube::Error::HttpError)?).await
}

fn judge(known: &[CustomResourceDefinition], document: &Value) -> Compared {
    let mut lacking = Vec::new();
    for definition in known {
        let kind = &definition.spec.names.kind;
        let schema = serde_json::to_value(&definition.spec.versions).unwrap_or_default();
        let schema = &schema[0]["schema"]["openAPIV3Schema"];
        match schema_of(document, kind) {
            Some(published) => lacks(kind, schema, published, &mut lacking),
            None => return Compared::Unknown(format!("the API server publishes no schema of {kind}")),
        }
    }
    if lacking.is_empty() { Compared::Same } else { Compared::Older(lacking) }
}

fn schema_of<'a>(document: &'a Value, kind: &str) -> Option<&'a Value> {
    let is_of = |schema: &&Value| {
        let kinds = schema["x-kubernetes-group-version-kind"].as_array();
        kinds.into_iter().flatten().any(|of| of["group"] == GROUP && of["kind"] == kind)
    };
    document["components"]["schemas"].as_object()?.values().find(is_of)
}

/// Collects the paths of fields, and of values among which one chooses, that are in the one schema and not in the other.
fn lacks(path: &str, known: &Value, published: &Value, lacking: &mut Vec<String>) {
    for (name, field) in known["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match published["properties"].get(name) {
            Some(published) => lacks(&path, field, published, lacking),
            None => lacking.push(path),
        }
    }
    let values = |schema: &Value| schema["enum"].as_array().cloned().unwrap_or_default();
    let others = values(published);
    for value in values(known).iter().filter(|value| !others.is_empty() && !others.contains(value)) {
        lacking.push(format!("{path}={}", value.as_str().unwrap_or_default()));
    }
    for below in ["items", "additionalProperties"] {
        if let (Some(known), Some(published)) = (known.get(below), published.get(below)) {
            lacks(&format!("{path}[]"), known, published, lacking);
        }
    }
}

/// The first few of them.
pub fn named(fields: &[String]) -> String {
    let named = fields.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match fields.len().checked_sub(NAMED) {
        Some(more @ 1..) => format!("{named} and {more} more"),
        _ => named,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A document as the API server would publish it of these definitions.
    fn document(known: &[CustomResourceDefinition]) -> Value {
        let schemas = known.iter().map(|definition| {
            let kind = definition.spec.names.kind.clone();
            let mut schema =
                serde_json::to_value(&definition.spec.versions[0].schema).unwrap()["openAPIV3Schema"].clone();
            schema["properties"]["metadata"] =
                json!({"allOf": [{"$ref": "#/components/schemas/ObjectMeta"}]});
            schema["x-kubernetes-group-version-kind"] =
                json!([{"group": GROUP, "kind": kind, "version": "v1alpha1"}]);
            (format!("dev.jetwright.v1alpha1.{kind}"), schema)
        });
        json!({"components": {"schemas": schemas.collect::<serde_json::Map<_, _>>()}})
    }

    fn spec_of_streams(document: &mut Value) -> &mut Value {
        &mut document["components"]["schemas"]["dev.jetwright.v1alpha1.EventStream"]["properties"]["spec"]
    }

    #[test]
    fn definitions_of_the_same_version_lack_nothing_and_newer_ones_neither() {
        let known = manifests::definitions().unwrap();
        let mut document = document(&known);
        assert_eq!(judge(&known, &document), Compared::Same);
        spec_of_streams(&mut document)["properties"]["later"] = json!({"type": "string"});
        assert_eq!(judge(&known, &document), Compared::Same);
    }

    #[test]
    fn older_definitions_are_told_by_the_fields_and_values_that_they_lack() {
        let known = manifests::definitions().unwrap();
        let mut document = document(&known);
        let spec = spec_of_streams(&mut document);
        spec["properties"].as_object_mut().unwrap().remove("deletionPolicy");
        spec["properties"]["limits"]["properties"].as_object_mut().unwrap().remove("maxAge");
        spec["properties"]["storage"]["enum"] = json!(["File"]);
        let wanted = [
            "EventStream.spec.deletionPolicy",
            "EventStream.spec.limits.maxAge",
            "EventStream.spec.storage=Memory",
        ];
        assert_eq!(judge(&known, &document), Compared::Older(wanted.map(str::to_owned).to_vec()));
    }

    #[test]
    fn a_kind_that_is_not_published_is_not_held_to_be_older() {
        let known = manifests::definitions().unwrap();
        let unknown = Compared::Unknown("the API server publishes no schema of EventConsumer".to_owned());
        assert_eq!(judge(&known, &json!({})), unknown);
    }

    #[test]
    fn few_fields_are_named_and_the_others_counted() {
        let fields: Vec<_> = (1..=7).map(|number| format!("a{number}")).collect();
        assert_eq!(named(&fields), "a1, a2, a3, a4, a5 and 2 more");
        assert_eq!(named(&fields[..5]), "a1, a2, a3, a4, a5");
    }
}
