//! Objects that this version of the operator cannot read, such as those of a newer version's schema after a rollback: they must not
//! keep the others from being reconciled, and have to say what is wrong with them. Writes to Kubernetes.

use std::fmt::Debug;

use jetwright_crds::conditions::Reason;
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Resource,
    api::{ApiResource, DynamicObject},
    core::error_boundary::InvalidObject,
    runtime::controller::Action,
};
use serde_json::json;

use crate::{
    context::Context,
    kubernetes::{
        events, finalizer,
        status::{self, Next, Verdict},
    },
};

/// Says in the object's status that it cannot be read; one that is being deleted is let go, since nobody knows any more what belongs
/// to it.
///
/// # Errors
///
/// When Kubernetes refuses.
pub async fn tell<K>(invalid: &InvalidObject, context: &Context) -> Result<Action, kube::Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug,
{
    let resource = ApiResource::erase::<K>(&());
    let namespace = invalid.metadata.namespace.clone().unwrap_or_default();
    let name = invalid.metadata.name.clone().unwrap_or_default();
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &namespace, &resource);
    let Some(object) = api.get_opt(&name).await? else { return Ok(Action::await_change()) };
    let message = format!("this version of the operator cannot read the object: {}", invalid.error);

    if object.metadata.deletion_timestamp.is_some() {
        let note = format!("{message}; what it has in JetStream is left behind");
        events::warning(&context.recorder, &object.object_ref(&resource), "LeftBehind", note).await;
        finalizer::set(&api, &object, false).await?;
        return Ok(Action::await_change());
    }
    let verdict = Verdict::stalled(Reason::Invalid, message);
    let next = |object: &DynamicObject| {
        let before = object.data.get("status").cloned().unwrap_or_else(|| json!({}));
        let after = status::concluded(before.clone(), &verdict, object.metadata.generation);
        if after == before { Next::Same } else { Next::Write(after) }
    };
    status::write(&api, &object, &resource, next).await?;
    Ok(Action::await_change())
}
