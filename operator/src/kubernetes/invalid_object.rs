//! Objects that this version of the operator cannot read, such as those of a newer version's schema after a rollback: they must not
//! keep the others from being reconciled, and have to say what is wrong with them. Writes to Kubernetes.

use std::fmt::Debug;

use jetwright_crds::conditions::Reason;
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject},
    core::error_boundary::InvalidObject,
    runtime::controller::Action,
};
use serde_json::json;

use super::{
    events::Events,
    finalizer,
    status::{self, ConditionSummary, StatusUpdate},
};

/// Says in the object's status that it cannot be read; one that is being deleted, and of which not even the names can be read, loses its
/// finalizer.
///
/// # Errors
///
/// When Kubernetes refuses.
pub async fn report<K>(
    invalid: &InvalidObject,
    client: &Client,
    events: &Events,
) -> Result<Action, kube::Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug,
{
    let resource = ApiResource::erase::<K>(&());
    let namespace = invalid.metadata.namespace.clone().unwrap_or_default();
    let name = invalid.metadata.name.clone().unwrap_or_default();
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &resource);
    let Some(object) = api.get_opt(&name).await? else { return Ok(Action::await_change()) };
    let message = format!("this version of the operator cannot read the object: {}", invalid.error);

    if object.metadata.deletion_timestamp.is_some() {
        let note = format!("{message}; what it has in JetStream stays there");
        events.orphaned(&object.object_ref(&resource), "object", &note);
        finalizer::set(&api, &object, false).await?;
        return Ok(Action::await_change());
    }
    let summary = ConditionSummary::stalled(Reason::Invalid, message);
    let update = |object: &DynamicObject| {
        let before = object.data.get("status").cloned().unwrap_or_else(|| json!({}));
        let after = status::with_summary_conditions(before.clone(), &summary, object.metadata.generation);
        if after == before { StatusUpdate::Unchanged } else { StatusUpdate::Write(after) }
    };
    status::write(&api, &object, &resource, update).await?;
    Ok(Action::await_change())
}
