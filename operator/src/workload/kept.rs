//! In: the Deployment as an operator before this one built it, which left containers beside the program as the template has them. Out: whether
//! its pods run so. Reads from Kubernetes, once for each template.
//!
//! An upgrade of the operator restarts no pods: those that run so go on until something else of their template changes.

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Patch, PatchParams};
use serde_json::Value;

use crate::{
    hash::hash_of,
    kubernetes::{
        apply::{Applier, Error},
        field_manager::FIELD_MANAGER,
    },
};

/// Whether to apply this Deployment would leave the pod template of the one that exists as it is.
///
/// # Errors
///
/// When Kubernetes does not answer.
pub async fn runs_as(name: &str, deployment: &Value, applier: &Applier<'_>) -> Result<bool, Error> {
    let Some(known) = applier.known::<Deployment>(name) else { return Ok(false) };
    let key = applier.key::<Deployment>(name);
    let question = hash_of(&(&known.uid, deployment["spec"]["template"].to_string()));
    if let Some(answer) = applier.states.runs_as(&key, question) {
        return Ok(answer);
    }
    let failed = |source| Error::Kubernetes { kind: key.kind, name: key.name.clone(), source };
    let api = applier.api::<Deployment>();
    let Some(found) = api.get_opt(name).await.map_err(failed)? else { return Ok(false) };
    let mut wanted = deployment.clone();
    wanted["apiVersion"] = "apps/v1".into();
    wanted["kind"] = "Deployment".into();
    wanted["metadata"]["uid"] = known.uid.clone().into();
    let params = PatchParams::apply(FIELD_MANAGER).force().dry_run();
    let answer = match api.patch(name, &params, &Patch::Apply(wanted)).await {
        Ok(outcome) => template(&outcome) == template(&found),
        // It cannot be applied at all, which the apply will say.
        Err(kube::Error::Api(status)) if status.code == 422 => false,
        Err(source) => return Err(failed(source)),
    };
    applier.states.set_runs_as(&key, question, answer);
    Ok(answer)
}

fn template(deployment: &Deployment) -> Option<&k8s_openapi::api::core::v1::PodTemplateSpec> {
    deployment.spec.as_ref().map(|spec| &spec.template)
}
