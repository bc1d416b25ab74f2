//! The finalizer, only on objects whose deletion means deleting something in JetStream. Writes to Kubernetes.

use std::fmt::Debug;

use jetwright_crds::labels::FINALIZER;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
    core::Status,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The finalizer of the API server on an object that is deleted without its dependents, as by `kubectl delete --cascade=orphan`
/// (metav1.FinalizerOrphanDependents).
const ORPHAN: &str = "orphan";

/// Whether an object is deleted without its dependents.
pub fn is_orphaning<K: Resource>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some() && object.finalizers().iter().any(|name| name == ORPHAN)
}

/// Whether an object has the finalizer.
pub fn is_set<K: Resource>(object: &K) -> bool {
    object.finalizers().iter().any(|name| name == FINALIZER)
}

/// What of an object's metadata the finalizer is decided on: others may change the rest all the time.
const DECLARATION: [&str; 3] = ["uid", "generation", "finalizers"];
/// The same, with everything else of the object.
const WHOLE: [&str; 3] = ["uid", "resourceVersion", "finalizers"];

/// Sets or removes the finalizer; false where it is so already. It is a conflict where the object was declared otherwise, or got other
/// finalizers, since it was read.
///
/// # Errors
///
/// When Kubernetes refuses; an object that is gone is no error.
pub async fn set<K>(api: &Api<K>, object: &K, wanted: bool) -> Result<bool, kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    write(api, object, wanted, &DECLARATION).await
}

/// Removes the finalizer. It is a conflict where anything of the object, its status too, changed since it was read.
///
/// # Errors
///
/// When Kubernetes refuses; an object that is gone is no error.
pub async fn remove_from_unchanged<K>(api: &Api<K>, object: &K) -> Result<bool, kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    write(api, object, false, &WHOLE).await
}

async fn write<K>(api: &Api<K>, object: &K, wanted: bool, decisive: &[&str]) -> Result<bool, kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    if is_set(object) == wanted {
        return Ok(false);
    }
    let mut names: Vec<_> = object.finalizers().iter().filter(|name| *name != FINALIZER).cloned().collect();
    if wanted {
        names.push(FINALIZER.to_owned());
    }
    let path = |field: &str| format!("/metadata/{field}");
    let tests = values(object.meta(), decisive)
        .into_iter()
        .zip(decisive)
        .map(|(value, field)| json!({"op": "test", "path": path(field), "value": value}));
    // The list is written whole.
    let change = json!({"op": "add", "path": path("finalizers"), "value": names});
    let change = tests.chain([change]).collect();
    let change = Patch::Json::<()>(serde_json::from_value(change).map_err(kube::Error::SerdeError)?);
    match api.patch_metadata(&object.name_any(), &PatchParams::default(), &change).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 422 && has_changed(api, object, decisive).await? => {
            Err(kube::Error::Api(Box::new(Status { code: 409, ..*status })))
        }
        Err(error) => Err(error),
    }
}

fn values(meta: &ObjectMeta, fields: &[&str]) -> Vec<Value> {
    let whole = json!(meta);
    fields.iter().map(|field| whole.get(field).cloned().unwrap_or_default()).collect()
}

async fn has_changed<K>(api: &Api<K>, object: &K, decisive: &[&str]) -> Result<bool, kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let found = api.get_metadata_opt(&object.name_any()).await?;
    Ok(found.is_none_or(|found| values(&found.metadata, decisive) != values(object.meta(), decisive)))
}
