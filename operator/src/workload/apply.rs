//! In: the built objects. Out: the Deployment as Kubernetes has it then. Writes to Kubernetes: server-side apply, and only on objects
//! that the EventConsumer controls or that do not exist.

use std::fmt::Debug;

use jetwright_crds::EventConsumer;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Pod, Service},
    },
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions, ValidationDirective},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::build::{Objects, WORKLOAD_LABEL, bindings_name};
use crate::{context::Context, kubernetes::status::FIELD_MANAGER, outcome::Category};

/// Why the objects could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An object of the name exists and is not the EventConsumer's.
    #[error(
        "{kind} {name} exists and is not this EventConsumer's: delete it, or choose another metadata.name"
    )]
    Conflict {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// Kubernetes refused.
    #[error("{kind} {name}")]
    Kubernetes {
        /// Kind of the object.
        kind: String,
        /// Name of the object.
        name: String,
        /// What Kubernetes said.
        source: kube::Error,
    },
}

impl Error {
    pub(super) fn category(&self) -> Category {
        match self {
            Self::Conflict { .. } => Category::Refused,
            Self::Kubernetes { source, .. } => Category::of_kubernetes(source),
        }
    }
}

/// Applies the objects, the bindings first, since pods need them.
pub async fn apply(objects: Objects, owner: &EventConsumer, context: &Context) -> Result<Deployment, Error> {
    let Objects { bindings, deployment, service } = objects;
    let name = owner.name_any();
    apply_one(&bindings, &bindings_name(&name), owner, context).await?;
    match service {
        Some(service) => {
            apply_one(&service, &name, owner, context).await?;
        }
        None => remove_one::<Service>(&name, owner, context).await?,
    }
    apply_value::<Deployment>(&deployment, &name, owner, context).await
}

/// Removes all objects of the workload that are there.
pub async fn remove(owner: &EventConsumer, context: &Context) -> Result<(), Error> {
    let name = owner.name_any();
    remove_one::<Deployment>(&name, owner, context).await?;
    remove_one::<Service>(&name, owner, context).await?;
    remove_one::<ConfigMap>(&bindings_name(&name), owner, context).await
}

/// Whether no pod of the workload is left.
pub async fn are_gone(name: &str, owner: &EventConsumer, context: &Context) -> Result<bool, Error> {
    let api: Api<Pod> = api(owner, context);
    let pods = ListParams::default().labels(&format!("{WORKLOAD_LABEL}={name}")).limit(1);
    let pods = api.list_metadata(&pods).await.map_err(|source| failed::<Pod>(name, source))?;
    Ok(pods.items.is_empty())
}

async fn apply_one<K>(object: &K, name: &str, owner: &EventConsumer, context: &Context) -> Result<K, Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    let mut value =
        serde_json::to_value(object).map_err(|error| failed::<K>(name, kube::Error::SerdeError(error)))?;
    value["apiVersion"] = K::api_version(&()).into();
    value["kind"] = K::kind(&()).into();
    apply_value(&value, name, owner, context).await
}

async fn apply_value<K>(
    object: &Value,
    name: &str,
    owner: &EventConsumer,
    context: &Context,
) -> Result<K, Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = api(owner, context);
    // Strict, so that a field that Kubernetes does not know is told rather than dropped.
    let mut params = PatchParams {
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::apply(FIELD_MANAGER)
    };
    let mut object = object.clone();
    if let Some(uid) = controlled(&api, name, owner).await? {
        object["metadata"]["uid"] = uid.into();
        params = params.force();
    }
    api.patch(name, &params, &Patch::Apply(&object)).await.map_err(|source| failed::<K>(name, source))
}

async fn remove_one<K>(name: &str, owner: &EventConsumer, context: &Context) -> Result<(), Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = api(owner, context);
    let uid = match controlled(&api, name, owner).await {
        Ok(Some(uid)) => uid,
        Ok(None) | Err(Error::Conflict { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let preconditions = Preconditions { uid: Some(uid), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
    match api.delete(name, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(source) => Err(failed::<K>(name, source)),
    }
}

/// The uid of the object of this name, if there is one and it is the owner's.
async fn controlled<K>(api: &Api<K>, name: &str, owner: &EventConsumer) -> Result<Option<String>, Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let found = api.get_metadata_opt(name).await.map_err(|source| failed::<K>(name, source))?;
    let Some(found) = found else { return Ok(None) };
    let mut owners = found.owner_references().iter();
    if owners.any(|reference| {
        reference.controller == Some(true) && Some(&reference.uid) == owner.metadata.uid.as_ref()
    }) {
        return Ok(found.uid());
    }
    Err(Error::Conflict { kind: K::kind(&()).into_owned(), name: name.to_owned() })
}

fn api<K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>>(
    owner: &EventConsumer,
    context: &Context,
) -> Api<K> {
    Api::namespaced(context.client.clone(), &owner.namespace().unwrap_or_default())
}

fn failed<K: Resource<DynamicType = ()>>(name: &str, source: kube::Error) -> Error {
    Error::Kubernetes { kind: K::kind(&()).into_owned(), name: name.to_owned(), source }
}
