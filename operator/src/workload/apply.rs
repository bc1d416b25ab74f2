//! In: the built objects. Out: the Deployment as Kubernetes has it then. Writes to Kubernetes where something differs, and decides
//! nothing but that what pods need goes before them.

use jetwright_crds::EventConsumer;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};
use kube::{Api, ResourceExt, api::ListParams};

use super::{
    build::{Objects, WORKLOAD_LABEL},
    names::Names,
    status::is_rolled_out,
};
use crate::{
    context::Context,
    kubernetes::owned::{self, Owner},
    outcome::Category,
};

/// Why the objects could not be applied, removed or looked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One of them could not be applied or removed.
    #[error(transparent)]
    Object(#[from] owned::Error),
    /// The pods could not be listed.
    #[error("the pods of {workload}")]
    Pods {
        /// Whose pods.
        workload: String,
        /// What Kubernetes said.
        source: kube::Error,
    },
}

impl Error {
    pub(super) fn category(&self) -> Category {
        match self {
            Self::Object(error) => error.category(),
            Self::Pods { source, .. } => Category::of_kubernetes(source),
        }
    }

    /// What to do about an object of somebody else's under a name that the workload needs; None for any other error.
    pub(super) fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Object(owned::Error::Foreign { kind: "ServiceAccount", .. }) => Some(
                "name it in spec.workload.template.spec.serviceAccountName if the pods are to have it, else delete it or choose \
                 another metadata.name",
            ),
            Self::Object(owned::Error::Foreign { .. }) => Some("delete it, or choose another metadata.name"),
            Self::Object(owned::Error::Kubernetes { .. }) | Self::Pods { .. } => None,
        }
    }
}

/// Applies the objects, and removes those that are not to be.
pub async fn apply(
    objects: Objects,
    names: &Names,
    object: &EventConsumer,
    context: &Context,
) -> Result<Deployment, Error> {
    let Objects { bindings, service_account, service, disruption_budget, deployment } = objects;
    let (owner, name) = (owner(object, context), &names.workload);
    owner.apply::<ConfigMap>(&names.bindings, &bindings).await?;
    if let Some(account) = &service_account {
        owner.apply::<ServiceAccount>(name, account).await?;
    }
    match service {
        Some(service) => drop(owner.apply::<Service>(name, &service).await?),
        None => owner.remove::<Service>(name).await?,
    }
    owner.apply::<PodDisruptionBudget>(name, &disruption_budget).await?;
    let deployment: Deployment = owner.apply(name, &deployment).await?;
    // Until then pods of before may have to be made anew, which need it.
    if service_account.is_none() && is_rolled_out(&deployment) {
        owner.remove::<ServiceAccount>(name).await?;
    }
    Ok(deployment)
}

/// Removes all objects of the workload that are there, the pods first.
pub async fn remove(object: &EventConsumer, context: &Context) -> Result<(), Error> {
    // Under a name that cannot be there is nothing.
    let Ok(Names { workload, bindings }) = Names::of(&object.name_any()) else { return Ok(()) };
    let owner = owner(object, context);
    owner.remove::<Deployment>(&workload).await?;
    owner.remove::<Service>(&workload).await?;
    owner.remove::<PodDisruptionBudget>(&workload).await?;
    owner.remove::<ServiceAccount>(&workload).await?;
    owner.remove::<ConfigMap>(&bindings).await?;
    Ok(())
}

/// Whether no pod of the workload is left.
pub async fn are_gone(object: &EventConsumer, context: &Context) -> Result<bool, Error> {
    let Ok(Names { workload, .. }) = Names::of(&object.name_any()) else { return Ok(true) };
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &object.namespace().unwrap_or_default());
    let pods = ListParams::default().labels(&format!("{WORKLOAD_LABEL}={workload}")).limit(1);
    let pods = api.list_metadata(&pods).await.map_err(|source| Error::Pods { workload, source })?;
    Ok(pods.items.is_empty())
}

fn owner<'a>(object: &EventConsumer, context: &'a Context) -> Owner<'a> {
    Owner::new(&context.client, &context.applied, object)
}
