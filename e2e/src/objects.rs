//! Jetwright's objects, for an API server.

use std::fmt::Debug;

use kube::{Api, Resource, api::PostParams};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// An object of this name with this spec.
///
/// # Panics
///
/// When the kind has no such spec.
#[must_use]
pub fn object<K>(name: &str, spec: &Value) -> K
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let object = json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name}, "spec": spec,
    });
    serde_json::from_value(object).unwrap_or_else(|error| panic!("{name} cannot be declared so: {error}"))
}

/// Creates one.
///
/// # Panics
///
/// When the API server refuses it.
pub async fn declare<K>(api: &Api<K>, name: &str, spec: &Value)
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let created = api.create(&PostParams::default(), &object(name, spec)).await;
    created.unwrap_or_else(|error| panic!("{name} was not created: {error}"));
}
