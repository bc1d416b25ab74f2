//! The finalizer, only on objects whose deletion means deleting something in JetStream. Writes to Kubernetes.

use std::fmt::Debug;

use jetwright_crds::labels::FINALIZER;
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;

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

/// Sets or removes the finalizer; false where it is so already. The write is refused with a conflict if the object changed since it
/// was read, since a list of finalizers is written whole.
///
/// # Errors
///
/// When Kubernetes refuses; an object that is gone is no error.
pub async fn set<K>(api: &Api<K>, object: &K, wanted: bool) -> Result<bool, kube::Error>
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
    let patch = json!({ "metadata": { "finalizers": names, "resourceVersion": object.resource_version() } });
    match api.patch_metadata(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(true),
        Err(error) => Err(error),
    }
}
