//! Lists whole, page by page, with the objects that this version cannot read left out. Reads from Kubernetes.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource,
    api::ListParams,
    core::{DeserializeGuard, ObjectList, PartialObjectMeta},
};
use serde::de::DeserializeOwned;

/// Objects that one request asks for.
const PAGE: u32 = 500;

/// Every object of a kind in a namespace that can be read; the reconcile of one that cannot says so.
///
/// # Errors
///
/// When Kubernetes refuses.
pub async fn readable<K>(client: &Client, namespace: &str) -> Result<Vec<K>, kube::Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api: Api<DeserializeGuard<K>> = Api::namespaced(client.clone(), namespace);
    let api = &api;
    let guards = whole(|page| async move { api.list(&page).await }).await?;
    Ok(guards.into_iter().filter_map(|guard| guard.0.ok()).collect())
}

/// The metadata of every object, those that cannot be read included.
///
/// # Errors
///
/// When Kubernetes refuses.
pub async fn metadata<K>(api: &Api<K>) -> Result<Vec<PartialObjectMeta<K>>, kube::Error>
where
    K: Clone + Debug + DeserializeOwned,
{
    whole(|page| async move { api.list_metadata(&page).await }).await
}

async fn whole<T, F>(list: impl Fn(ListParams) -> F) -> Result<Vec<T>, kube::Error>
where
    T: Clone,
    F: Future<Output = Result<ObjectList<T>, kube::Error>>,
{
    let mut objects = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let listed = list(page.clone()).await?;
        objects.extend(listed.items);
        match listed.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(objects),
        }
    }
}
