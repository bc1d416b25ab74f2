//! A custom resource as a watch brings it: one that this version cannot read keeps its metadata, so that it can say what is wrong with it.
//! Clones share it.

use std::{borrow::Cow, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Resource,
    core::{DeserializeGuard, error_boundary::InvalidObject},
};

/// Annotation in which `kubectl apply` keeps the object a second time.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

#[derive(Clone, Debug)]
pub enum Watched<K> {
    Valid(Arc<K>),
    Invalid(Arc<InvalidObject>),
}

impl<K> Watched<K> {
    /// The object, where it can be read.
    pub fn valid(&self) -> Option<&Arc<K>> {
        match self {
            Self::Valid(object) => Some(object),
            Self::Invalid(_) => None,
        }
    }
}

impl<K: Resource> From<DeserializeGuard<K>> for Watched<K> {
    /// Leaves out what no reconcile reads and takes most of the memory.
    fn from(guard: DeserializeGuard<K>) -> Self {
        match guard.0 {
            Ok(mut object) => {
                prune(object.meta_mut());
                Self::Valid(Arc::new(object))
            }
            Err(mut invalid) => {
                prune(&mut invalid.metadata);
                Self::Invalid(Arc::new(invalid))
            }
        }
    }
}

fn prune(metadata: &mut ObjectMeta) {
    metadata.managed_fields = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

impl<K: Resource<DynamicType = ()> + Clone> Resource for Watched<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind(dt: &()) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &()) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &()) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &()) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Valid(object) => object.meta(),
            Self::Invalid(invalid) => &invalid.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Valid(object) => Arc::make_mut(object).meta_mut(),
            Self::Invalid(invalid) => &mut Arc::make_mut(invalid).metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use jetwright_crds::EventStream;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_no_reconcile_reads_is_left_out() {
        let object: EventStream = serde_json::from_value(json!({
            "metadata": {
                "name": "orders", "annotations": {LAST_APPLIED: "{}", "team": "red"},
                "managedFields": [{"manager": "kubectl"}],
            },
            "spec": {"subjects": ["orders.>"]},
        }))
        .unwrap();
        let watched = Watched::from(DeserializeGuard(Ok(object)));
        let expected = json!({"name": "orders", "annotations": {"team": "red"}});
        assert_eq!(serde_json::to_value(watched.meta()).unwrap(), expected);
    }
}
