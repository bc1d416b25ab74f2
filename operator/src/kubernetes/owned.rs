//! Objects that an object of ours controls, or that were made for it: applied by server-side apply, removed, and never touched where
//! they are somebody else's. Reads from Kubernetes, and writes to it where something differs.
//!
//! What differs Kubernetes itself tells: it keeps which fields are ours, and takes a field from us when somebody else changes or
//! removes it. So as long as we want what we applied last, and the fields that are ours are those of then, there is nothing to do.

use std::{
    any::type_name,
    borrow::Cow,
    fmt::Debug,
    hash::{DefaultHasher, Hash, Hasher},
};

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions, ValidationDirective},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::status::FIELD_MANAGER;
use crate::{
    memory::{Applied, Print},
    outcome::Category,
};

/// Why an object could not be applied or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It exists and is somebody else's.
    #[error("{kind} {name} exists and is not this {owner}'s")]
    Foreign {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Kind of who wanted it.
        owner: String,
    },
    /// Kubernetes refused.
    #[error("{kind} {name}")]
    Kubernetes {
        /// Kind of the object.
        kind: &'static str,
        /// Name of the object.
        name: String,
        /// What Kubernetes said.
        source: kube::Error,
    },
}

impl Error {
    /// What it means for the next try.
    pub fn category(&self) -> Category {
        match self {
            Self::Foreign { .. } => Category::Refused,
            Self::Kubernetes { source, .. } => Category::of_kubernetes(source),
        }
    }
}

/// A kind of objects that can be owned.
pub trait Kind:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned
{
    /// Its name.
    fn kind_name() -> &'static str {
        match Self::kind(&()) {
            Cow::Borrowed(name) => name,
            Cow::Owned(_) => type_name::<Self>(),
        }
    }
}

impl<K> Kind for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
{
}

/// Who owns the objects.
pub struct Owner<'a> {
    client: &'a Client,
    /// What was applied before.
    applied: &'a Applied,
    kind: String,
    namespace: String,
    uid: String,
}

impl<'a> Owner<'a> {
    /// An object that was read from Kubernetes.
    pub fn new<O: Resource<DynamicType = ()>>(client: &'a Client, applied: &'a Applied, object: &O) -> Self {
        Self {
            client,
            applied,
            kind: O::kind(&()).into_owned(),
            namespace: object.namespace().unwrap_or_default(),
            uid: object.uid().unwrap_or_default(),
        }
    }

    /// Brings an object to what is wanted, and returns it as Kubernetes has it then.
    ///
    /// # Errors
    ///
    /// When it is somebody else's, or Kubernetes refuses.
    pub async fn apply<K: Kind>(&self, name: &str, object: &impl Serialize) -> Result<K, Error> {
        let found = self.own::<K>(name).await?;
        self.apply_over(name, object, found).await
    }

    /// The same where what is there was looked at already: None, or an object that may be changed.
    ///
    /// # Errors
    ///
    /// When Kubernetes refuses, as it does where there is another object meanwhile.
    pub async fn apply_over<K: Kind>(
        &self,
        name: &str,
        object: &impl Serialize,
        found: Option<K>,
    ) -> Result<K, Error> {
        let failed = |source| failed::<K>(name, source);
        let mut wanted = serde_json::to_value(object).map_err(kube::Error::SerdeError).map_err(failed)?;
        wanted["apiVersion"] = K::api_version(&()).into();
        wanted["kind"] = K::kind(&()).into();
        let desired = hash(&wanted.to_string());
        let known = self.applied.print(self.key::<K>(name));
        if let Some(found) = &found
            && known == Some(Print { desired, managed: managed(found.meta()) })
        {
            return Ok(found.clone());
        }
        self.applied.clear(&self.key::<K>(name));
        let applied: K = self.patch(name, wanted, found.as_ref()).await.map_err(failed)?;
        self.applied.applied(self.key::<K>(name), Print { desired, managed: managed(applied.meta()) });
        Ok(applied)
    }

    async fn patch<K: Kind>(
        &self,
        name: &str,
        mut wanted: Value,
        found: Option<&K>,
    ) -> Result<K, kube::Error> {
        // Strict, so that a field that Kubernetes does not know is told rather than dropped.
        let mut params = PatchParams {
            field_validation: Some(ValidationDirective::Strict),
            ..PatchParams::apply(FIELD_MANAGER)
        };
        if let Some(uid) = found.and_then(ResourceExt::uid) {
            // Fields that others took are taken back, of this very object alone.
            wanted["metadata"]["uid"] = uid.into();
            params = params.force();
        }
        self.api::<K>().patch(name, &params, &Patch::Apply(wanted)).await
    }

    /// Removes an object where it is there and the owner's.
    ///
    /// # Errors
    ///
    /// When Kubernetes refuses.
    pub async fn remove<K: Kind>(&self, name: &str) -> Result<(), Error> {
        let key = self.key::<K>(name);
        if self.applied.is_absent(key.clone()) {
            return Ok(());
        }
        self.applied.clear(&key);
        let uid = match self.own::<K>(name).await {
            Ok(Some(found)) => found.uid(),
            Ok(None) | Err(Error::Foreign { .. }) => {
                self.applied.absent(key);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let preconditions = Preconditions { uid, resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        match self.api::<K>().delete(name, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
            Err(source) => Err(failed::<K>(name, source)),
        }
    }

    /// The object of this name, if there is one and it is the owner's.
    async fn own<K: Kind>(&self, name: &str) -> Result<Option<K>, Error> {
        let found = self.api::<K>().get_opt(name).await.map_err(|source| failed::<K>(name, source))?;
        let Some(found) = found else { return Ok(None) };
        if controls(&self.uid, found.meta()) {
            return Ok(Some(found));
        }
        Err(Error::Foreign { kind: K::kind_name(), name: name.to_owned(), owner: self.kind.clone() })
    }

    fn api<K: Kind>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn key<K: Kind>(&self, name: &str) -> (&'static str, String, String) {
        (K::kind_name(), self.namespace.clone(), name.to_owned())
    }
}

fn controls(uid: &str, meta: &ObjectMeta) -> bool {
    let mut owners = meta.owner_references.iter().flatten();
    owners.any(|reference| reference.controller == Some(true) && reference.uid == uid)
}

/// Which object it is, and what of it is ours.
fn managed(meta: &ObjectMeta) -> u64 {
    let entries = meta.managed_fields.iter().flatten();
    let ours = entries.filter(|entry| {
        let whole = entry.subresource.as_ref().is_none_or(String::is_empty);
        entry.manager.as_deref() == Some(FIELD_MANAGER)
            && entry.operation.as_deref() == Some("Apply")
            && whole
    });
    let fields: Vec<_> =
        ours.filter_map(|entry| entry.fields_v1.as_ref()).map(|fields| fields.0.to_string()).collect();
    hash(&(&meta.uid, fields))
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn failed<K: Kind>(name: &str, source: kube::Error) -> Error {
    Error::Kubernetes { kind: K::kind_name(), name: name.to_owned(), source }
}
