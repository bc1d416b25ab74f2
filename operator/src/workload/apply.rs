//! In: the built objects. Out: the Deployment as Kubernetes has it then. Writes to Kubernetes where something differs, and decides
//! nothing but that what pods need goes before them.

use std::sync::Arc;

use jetwright_crds::names::WorkloadNames;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};

use super::{build::Objects, status::is_rolled_out};
use crate::kubernetes::{
    apply::{Applier, Error},
    owned::Owned,
};

/// What to do about an object of another owner under a name that the workload needs; None for any other error.
#[must_use]
pub fn remedy(error: &Error) -> Option<&'static str> {
    match error {
        Error::Foreign { kind: "ServiceAccount", .. } => Some(
            "name it in spec.workload.template.spec.serviceAccountName if the pods should use it, else delete it or choose another \
             metadata.name",
        ),
        Error::Foreign { .. } => Some("delete it, or choose another metadata.name"),
        Error::Kubernetes { .. } => None,
    }
}

/// Applies the objects, and removes those that are not declared.
pub async fn apply(
    objects: Objects,
    names: &WorkloadNames,
    applier: &Applier<'_>,
) -> Result<Arc<Owned>, Error> {
    let Objects { bindings, service_account, service, disruption_budget, deployment } = objects;
    let name = &names.workload;
    applier.apply::<ConfigMap>(&names.bindings, &bindings).await?;
    if let Some(account) = &service_account {
        applier.apply::<ServiceAccount>(name, account).await?;
    }
    match service {
        Some(service) => drop(applier.apply::<Service>(name, &service).await?),
        None => applier.remove::<Service>(name).await?,
    }
    applier.apply::<PodDisruptionBudget>(name, &disruption_budget).await?;
    let deployment = applier.apply::<Deployment>(name, &deployment).await?;
    // Until then pods of the old template may have to be replaced, which need it.
    if service_account.is_none() && deployment.deployment.as_deref().is_some_and(is_rolled_out) {
        applier.remove::<ServiceAccount>(name).await?;
    }
    Ok(deployment)
}

/// Removes all objects of a workload that exist, the pods first.
pub async fn delete_workload(names: &WorkloadNames, applier: &Applier<'_>) -> Result<(), Error> {
    let WorkloadNames { workload, bindings } = names;
    applier.remove::<Deployment>(workload).await?;
    applier.remove::<Service>(workload).await?;
    applier.remove::<PodDisruptionBudget>(workload).await?;
    applier.remove::<ServiceAccount>(workload).await?;
    applier.remove::<ConfigMap>(bindings).await?;
    Ok(())
}
