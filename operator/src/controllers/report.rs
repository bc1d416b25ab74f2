//! What is said of an object whose pipeline does not come to its status: one that is being deleted, or whose reconcile takes too long. Writes to
//! Kubernetes.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, Resource};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    context::Context,
    kubernetes::status::{self, ConditionSummary, StatusUpdate, StatusWrite},
};

/// Says it in the object's status, and by an event where it takes a change by somebody.
///
/// # Errors
///
/// When the status cannot be written.
pub async fn report_summary<K>(
    api: &Api<K>,
    object: &K,
    summary: &ConditionSummary,
    context: &Context,
) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let status_of = |object: &K| json!(object).get("status").cloned().unwrap_or_else(|| json!({}));
    context.report_trouble(object, &conditions(&status_of(object)), summary);
    let update = |object: &K| {
        let before = status_of(object);
        let after = status::with_summary_conditions(before.clone(), summary, object.meta().generation);
        if after == before { StatusUpdate::Unchanged } else { StatusUpdate::Write(after) }
    };
    if let StatusWrite::Written(_) = context.write_status(api, object, update).await? {
        tracing::info!(reason = summary.reason.as_str(), message = summary.message, "wrote a status");
    }
    Ok(())
}

fn conditions(status: &Value) -> Vec<Condition> {
    let conditions = status.get("conditions").cloned().unwrap_or_default();
    serde_json::from_value(conditions).unwrap_or_default()
}
