//! The objects that ours control, as the watches bring them and our own writes return them. Of each only a few words are kept, so that
//! thousands of them cost little.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    sync::Arc,
};

use futures::{Stream, StreamExt};
use jetwright_crds::labels::{JETWRIGHT, MANAGED_BY};
use k8s_openapi::{
    NamespaceResourceScope,
    api::apps::v1::{Deployment, DeploymentSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use super::{
    field_manager::is_own_apply,
    stores::Name,
    updates::{Update, watch_config},
};
use crate::{hash::hash_of, object_state::ObjectKey};

/// What is kept of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Owned {
    pub uid: String,
    resource_version: Option<u64>,
    /// Which object controls it.
    controller: Option<OwnerReference>,
    /// Hash of which object it is, and what of it is ours: Kubernetes keeps which fields are, and takes a field from us when another
    /// writer changes or removes it.
    pub managed: u64,
    /// A Deployment's replicas and status, with the metadata that they refer to.
    pub deployment: Option<Box<Deployment>>,
}

impl Owned {
    #[must_use]
    pub fn new(meta: &ObjectMeta) -> Self {
        let controller = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.as_ref().and_then(|version| version.parse().ok()),
            controller: controller.cloned(),
            managed: managed(meta),
            deployment: None,
        }
    }

    #[must_use]
    pub fn of_deployment(object: Deployment) -> Self {
        let owned = Self::new(&object.metadata);
        let replicas = object.spec.and_then(|spec| spec.replicas);
        let pruned = Deployment {
            metadata: ObjectMeta { generation: object.metadata.generation, ..ObjectMeta::default() },
            spec: Some(DeploymentSpec { replicas, ..DeploymentSpec::default() }),
            status: object.status,
        };
        Self { deployment: Some(Box::new(pruned)), ..owned }
    }

    /// metav1.IsControlledBy.
    #[must_use]
    pub fn is_controlled_by(&self, uid: &str) -> bool {
        self.controller.as_ref().is_some_and(|controller| controller.uid == uid)
    }

    /// Whether no object controls it: ours are made with a controller, so that one was taken away, as from the dependents of an object that
    /// is deleted without them.
    #[must_use]
    pub fn is_orphaned(&self) -> bool {
        self.controller.is_none()
    }

    /// Whether it is older than another copy of the same object.
    fn is_older_than(&self, other: &Self) -> bool {
        let versions = self.resource_version.zip(other.resource_version);
        self.uid == other.uid && versions.is_some_and(|(mine, others)| mine < others)
    }
}

/// Which object it is, and what of it is ours.
fn managed(meta: &ObjectMeta) -> u64 {
    let ours = meta.managed_fields.iter().flatten().filter(|entry| is_own_apply(entry));
    let fields: Vec<_> =
        ours.filter_map(|entry| entry.fields_v1.as_ref()).map(|fields| fields.0.to_string()).collect();
    hash_of(&(&meta.uid, fields))
}

/// The objects of all kinds that carry our label. Clones share them.
#[derive(Clone, Default)]
pub struct OwnedObjects(Arc<Mutex<HashMap<ObjectKey, Arc<Owned>>>>);

impl OwnedObjects {
    #[must_use]
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<Owned>> {
        self.0.lock().get(key).cloned()
    }

    /// Takes over a copy, unless a newer one of the same object is known; true where it is news.
    pub fn insert(&self, key: ObjectKey, owned: Owned) -> bool {
        let mut objects = self.0.lock();
        match objects.get(&key) {
            Some(known) if owned.is_older_than(known) || **known == owned => false,
            _ => {
                objects.insert(key, Arc::new(owned));
                true
            }
        }
    }

    /// Drops an object that is gone, unless another one has its name already.
    fn remove(&self, key: &ObjectKey, uid: &str) -> Option<Arc<Owned>> {
        let mut objects = self.0.lock();
        objects.get(key).filter(|known| known.uid == uid)?;
        objects.remove(key)
    }

    /// Follows the metadata of a kind for ever, in one namespace or all. What is touched are the names of the `owner` kind's objects that
    /// control something that changed.
    pub fn watch<O, K>(
        &self,
        api: Api<PartialObjectMeta<K>>,
        namespace: Option<String>,
    ) -> impl Stream<Item = Update<Name>> + Send
    where
        O: Resource<DynamicType = ()>,
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        let follower = self.follower::<O, K>(namespace);
        let events = watcher::watcher(api, selected());
        follow(events, follower, K::kind(&()).into_owned(), |object| Owned::new(object.meta()))
    }

    /// The same of Deployments, whose status matters too.
    pub fn watch_deployments<O: Resource<DynamicType = ()>>(
        &self,
        api: Api<Deployment>,
        namespace: Option<String>,
    ) -> impl Stream<Item = Update<Name>> + Send {
        let follower = self.follower::<O, Deployment>(namespace);
        follow(watcher::watcher(api, selected()), follower, "Deployment".to_owned(), Owned::of_deployment)
    }

    fn follower<O, K>(&self, namespace: Option<String>) -> Follower
    where
        O: Resource<DynamicType = ()>,
        K: Resource<DynamicType = ()>,
    {
        let key_of = |namespace: &str, name: &str| ObjectKey::new::<K>(namespace, name);
        let owner = O::kind(&()).into_owned();
        Follower { objects: self.clone(), namespace, owner, key_of, listed: HashSet::new() }
    }
}

fn selected() -> watcher::Config {
    watch_config().labels(&format!("{MANAGED_BY}={JETWRIGHT}"))
}

fn follow<W>(
    events: impl Stream<Item = Result<Event<W>, watcher::Error>> + Send,
    mut follower: Follower,
    kind: String,
    keep: fn(W) -> Owned,
) -> impl Stream<Item = Update<Name>> + Send
where
    W: ResourceExt + Send,
{
    events.default_backoff().map(move |event| match event {
        Ok(event) => {
            let synced = matches!(event, Event::InitDone);
            Update::touching(follower.handle_event(event, keep), synced)
        }
        Err(error) => Update::failed(&kind, &error),
    })
}

/// One watch's part of the objects.
struct Follower {
    objects: OwnedObjects,
    /// None for all namespaces.
    namespace: Option<String>,
    /// Kind of the objects that control ours.
    owner: String,
    key_of: fn(&str, &str) -> ObjectKey,
    /// What a list that is under way has named.
    listed: HashSet<ObjectKey>,
}

impl Follower {
    fn handle_event<W: ResourceExt>(&mut self, event: Event<W>, keep: fn(W) -> Owned) -> Vec<Name> {
        match event {
            Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                let key = self.key(&object);
                self.listed.insert(key.clone());
                self.apply(key, keep(object))
            }
            Event::Apply(object) => self.apply(self.key(&object), keep(object)),
            Event::Delete(object) => self.delete(&self.key(&object), &object.uid().unwrap_or_default()),
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let kind = (self.key_of)("", "").kind;
                let known: Vec<_> = {
                    let objects = self.objects.0.lock();
                    let within = |key: &&ObjectKey| {
                        key.kind == kind
                            && self.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
                    };
                    let gone = objects.keys().filter(within).filter(|key| !listed.contains(key));
                    gone.filter_map(|key| Some((key.clone(), objects.get(key)?.uid.clone()))).collect()
                };
                known.iter().flat_map(|(key, uid)| self.delete(key, uid)).collect()
            }
        }
    }

    fn key(&self, object: &impl ResourceExt) -> ObjectKey {
        (self.key_of)(&object.namespace().unwrap_or_default(), &object.name_any())
    }

    fn apply(&self, key: ObjectKey, owned: Owned) -> Vec<Name> {
        let before = self.objects.get(&key);
        let owners = [before.as_deref(), Some(&owned)]
            .into_iter()
            .flatten()
            .filter_map(|owned| self.owner_of(&key, owned))
            .collect::<HashSet<_>>();
        if self.objects.insert(key, owned) { owners.into_iter().collect() } else { Vec::new() }
    }

    fn delete(&self, key: &ObjectKey, uid: &str) -> Vec<Name> {
        let gone = self.objects.remove(key, uid);
        gone.and_then(|gone| self.owner_of(key, &gone)).into_iter().collect()
    }

    fn owner_of(&self, key: &ObjectKey, owned: &Owned) -> Option<Name> {
        let controller = owned.controller.as_ref().filter(|controller| controller.kind == self.owner)?;
        Some((key.namespace.clone(), controller.name.clone()))
    }
}

#[cfg(test)]
mod tests {
    use jetwright_crds::EventConsumer;
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn config_map(name: &str, uid: &str, version: &str) -> ConfigMap {
        serde_json::from_value(json!({"metadata": {
            "name": name, "namespace": "shop", "uid": uid, "resourceVersion": version,
            "ownerReferences": [{
                "apiVersion": "jetwright.dev/v1alpha1", "kind": "EventConsumer", "name": "fulfilment", "uid": "u", "controller": true,
            }],
        }}))
        .unwrap()
    }

    fn owned(name: &str, uid: &str, version: &str) -> Owned {
        Owned::new(&config_map(name, uid, version).metadata)
    }

    fn handle(follower: &mut Follower, event: Event<ConfigMap>) -> Vec<Name> {
        follower.handle_event(event, |object| Owned::new(&object.metadata))
    }

    fn fulfilment() -> Vec<Name> {
        vec![("shop".into(), "fulfilment".into())]
    }

    #[test]
    fn an_object_that_changes_or_goes_touches_its_owner_and_our_own_write_does_not() {
        let objects = OwnedObjects::default();
        let mut follower = objects.follower::<EventConsumer, ConfigMap>(None);
        let key = ObjectKey::new::<ConfigMap>("shop", "a");
        // What an apply returned is known before the watch brings it, and the watch may lag.
        assert!(objects.insert(key.clone(), owned("a", "1", "12")));
        for version in ["11", "12"] {
            assert!(handle(&mut follower, Event::Apply(config_map("a", "1", version))).is_empty());
        }
        assert_eq!(objects.get(&key).unwrap().resource_version, Some(12));
        assert_eq!(handle(&mut follower, Event::Apply(config_map("a", "1", "13"))), fulfilment());
        // The end of one that has been replaced is no end of its successor.
        assert!(objects.insert(key.clone(), owned("a", "2", "15")));
        assert!(handle(&mut follower, Event::Delete(config_map("a", "1", "14"))).is_empty());
        assert_eq!(handle(&mut follower, Event::Delete(config_map("a", "2", "16"))), fulfilment());
        assert_eq!(objects.get(&key), None);
    }

    #[test]
    fn what_a_list_does_not_name_is_gone_in_its_namespace_alone() {
        let objects = OwnedObjects::default();
        let mut follower = objects.follower::<EventConsumer, ConfigMap>(Some("shop".into()));
        for name in ["a", "b"] {
            handle(&mut follower, Event::Apply(config_map(name, name, "1")));
        }
        let elsewhere = ObjectKey::new::<ConfigMap>("bank", "a");
        objects.insert(elsewhere.clone(), owned("a", "3", "1"));
        let service = ObjectKey { kind: "Service", ..ObjectKey::new::<ConfigMap>("shop", "a") };
        objects.insert(service.clone(), owned("a", "4", "1"));
        handle(&mut follower, Event::Init);
        handle(&mut follower, Event::InitApply(config_map("a", "a", "1")));
        assert_eq!(handle(&mut follower, Event::InitDone), fulfilment());
        let known = |name| objects.get(&ObjectKey::new::<ConfigMap>("shop", name)).is_some();
        assert_eq!((known("a"), known("b")), (true, false));
        assert!(objects.get(&elsewhere).is_some() && objects.get(&service).is_some());
    }
}
