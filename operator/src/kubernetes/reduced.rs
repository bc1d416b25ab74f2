//! In: an object that this version cannot read, as JSON. Out: what its deletion needs of it: its metadata, and the names of what it has in
//! JetStream. Whether that is its own, its mark in JetStream says. Pure, but for [`get`].

use jetwright_crds::{EventConsumer, EventStream};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject},
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// Reads an object from Kubernetes as far as it can be read; None where it does not exist.
///
/// # Errors
///
/// When Kubernetes refuses, or not even the names can be read.
pub async fn get<K>(client: &Client, namespace: &str, name: &str) -> Result<Option<K>, kube::Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Reduced,
{
    let resource = ApiResource::erase::<K>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let found = api.get_opt(name).await?;
    found.map(|object| K::reduced(&object)).transpose().map_err(kube::Error::SerdeError)
}

/// An object of which its names can be read where the rest cannot.
pub trait Reduced: DeserializeOwned {
    /// # Errors
    ///
    /// When not even these can be read.
    fn reduced(object: &DynamicObject) -> Result<Self, serde_json::Error>;
}

impl Reduced for EventStream {
    fn reduced(object: &DynamicObject) -> Result<Self, serde_json::Error> {
        let mut spec = texts_of(object, "/spec", &["streamName"]);
        if let Some(name) = object.data.pointer("/status/stream/name").and_then(Value::as_str) {
            spec.entry("streamName").or_insert(json!(name));
        }
        spec.insert("subjects".into(), json!([]));
        spec.insert("deletionPolicy".into(), policy(object));
        read(object, &spec, &Value::Null)
    }
}

impl Reduced for EventConsumer {
    fn reduced(object: &DynamicObject) -> Result<Self, serde_json::Error> {
        let mut spec = texts_of(object, "/spec", &["consumerName"]);
        for reference in ["streamRef", "workloadRef"] {
            let name = texts_of(object, &format!("/spec/{reference}"), &["name"]);
            if !name.is_empty() {
                spec.insert(reference.into(), Value::Object(name));
            }
        }
        spec.entry("streamRef").or_insert(json!({"name": ""}));
        spec.insert("deletionPolicy".into(), policy(object));
        let mut consumer = texts_of(object, "/status/consumer", &["stream", "name"]);
        let is_known = consumer.len() == 2;
        let partitions = object.data.pointer("/status/consumer/partitions").and_then(Value::as_u64);
        if let Some(partitions) = partitions.and_then(|partitions| u32::try_from(partitions).ok()) {
            consumer.insert("partitions".into(), json!(partitions));
        }
        let status = if is_known { json!({ "consumer": consumer }) } else { Value::Null };
        read(object, &spec, &status)
    }
}

/// The policy, where it is one that this version knows; what another one means is not to delete anything.
fn policy(object: &DynamicObject) -> Value {
    match object.data.pointer("/spec/deletionPolicy") {
        None | Some(Value::Null) => Value::Null,
        Some(word) if word == "Delete" => word.clone(),
        Some(_) => json!("Retain"),
    }
}

/// The fields of an object within that are texts.
fn texts_of(object: &DynamicObject, path: &str, fields: &[&str]) -> Map<String, Value> {
    let within = object.data.pointer(path).and_then(Value::as_object);
    let texts = within
        .into_iter()
        .flatten()
        .filter(|(name, value)| fields.contains(&name.as_str()) && value.is_string());
    texts.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn read<T: DeserializeOwned>(
    object: &DynamicObject,
    spec: &Map<String, Value>,
    status: &Value,
) -> Result<T, serde_json::Error> {
    serde_json::from_value(json!({ "metadata": object.metadata, "spec": spec, "status": status }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(spec: &Value, status: &Value) -> DynamicObject {
        serde_json::from_value(json!({
            "metadata": {"name": "orders", "namespace": "shop", "uid": "u1"}, "spec": spec, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_stream_is_known_by_its_names_and_policy_whatever_else_is_in_it() {
        let of = |spec: Value, status: Value| {
            let stream = EventStream::reduced(&object(&spec, &status)).unwrap();
            (stream.stream_name(), stream.spec.deletes())
        };
        let named = json!({"streamName": "ORDERS", "profile": "Golden", "deletionPolicy": "Delete"});
        assert_eq!(of(named, Value::Null), ("ORDERS".into(), true));
        let policy = json!({"streamName": 7, "deletionPolicy": "Archive"});
        assert_eq!(of(policy, json!({"stream": {"name": "KNOWN"}})), ("KNOWN".into(), false));
        assert_eq!(of(json!({"subjects": "all"}), json!([])), ("orders".into(), false));
    }

    #[test]
    fn a_consumer_is_known_by_its_names_and_references() {
        let spec = json!({
            "streamRef": {"name": "orders", "future": 1}, "consumerName": "c", "ackWait": {"seconds": 1},
            "workloadRef": {"name": "host"},
        });
        let status = json!({"consumer": {"stream": "ORDERS", "name": "c", "created": 5, "partitions": 8}});
        let consumer = EventConsumer::reduced(&object(&spec, &status)).unwrap();
        assert_eq!((consumer.consumer_name(), consumer.spec.deletes()), ("c".into(), true));
        assert_eq!(consumer.spec.stream_ref.name, "orders");
        assert_eq!(consumer.spec.workload_ref.unwrap().name, "host");
        let known = consumer.status.unwrap().consumer.unwrap();
        assert_eq!((known.stream.as_str(), known.partitions), ("ORDERS", Some(8)));
        let bare = EventConsumer::reduced(&object(&json!({"streamRef": 7}), &Value::Null)).unwrap();
        assert_eq!((bare.consumer_name(), bare.spec.stream_ref.name), ("orders".into(), String::new()));
    }
}
