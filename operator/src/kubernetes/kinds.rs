//! The kinds of objects that the operator reads and writes.

use std::fmt::Debug;

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Service, ServiceAccount},
        policy::v1::PodDisruptionBudget,
    },
};
use kube::Resource;
use serde::{Serialize, de::DeserializeOwned};

use super::owned::Owned;

/// A kind of objects in namespaces that can be read and written.
pub trait Kind:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned
{
}

impl<K> Kind for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
{
}

/// A kind of objects that an object of ours controls, and that is watched.
pub trait OwnedKind: Kind {
    /// The part of an object that is the operator's whole where another writer's fields exclude those that are declared.
    const DECLARED: &'static str = "/spec";

    /// What is kept of an object.
    fn keep(self) -> Owned {
        Owned::new(self.meta())
    }
}

impl OwnedKind for ConfigMap {}
impl OwnedKind for Service {}
impl OwnedKind for ServiceAccount {}
impl OwnedKind for PodDisruptionBudget {}
impl OwnedKind for Deployment {
    const DECLARED: &'static str = "/spec/template";

    fn keep(self) -> Owned {
        Owned::of_deployment(self)
    }
}
