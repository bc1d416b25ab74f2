//! The custom resources that the watches bring, one watch a kind and scope, with indexes. In: events of the API server. Out: the objects, and
//! which of them were touched, deletions included, also those in a gap of the watch.
//!
//! A store proves that an object exists, never that it does not: its watch may lag.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    fmt::Debug,
    sync::Arc,
};

use futures::{Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Resource, ResourceExt,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store, store::Writer},
        watcher::{self, Event},
    },
};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use super::{
    updates::{Update, watch_config},
    watched::Watched,
};

/// Namespace and name of an object.
pub type Name = (String, String);

/// An object before and after an event: None where it did not exist, or does not exist any more.
#[derive(Clone, Debug)]
pub struct Touched<K> {
    pub before: Option<Watched<K>>,
    pub after: Option<Watched<K>>,
}

impl<K> Touched<K> {
    /// The object in both of its forms, as far as they can be read.
    pub fn readable(&self) -> impl Iterator<Item = &Arc<K>> {
        [&self.before, &self.after].into_iter().flatten().filter_map(Watched::valid)
    }
}

/// What objects are found by, within their namespace where it matters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IndexKey {
    /// Name of their stream or consumer in JetStream.
    JetStream(String),
    /// The EventStream that they refer to.
    Stream(Name),
    /// The EventConsumer whose pods they use.
    Workload(Name),
    /// None: those that declare pods with autoscaling.
    Autoscaled,
    /// None: those with ordering PerKey.
    PerKey,
}

/// The names under a key. Most keys have one, for which a set takes half a kilobyte.
enum Named {
    One(Name),
    Several(BTreeSet<Name>),
}

impl Named {
    fn iter(&self) -> impl Iterator<Item = &Name> {
        let (one, some) = match self {
            Self::One(name) => (Some(name), None),
            Self::Several(names) => (None, Some(names)),
        };
        one.into_iter().chain(some.into_iter().flatten())
    }

    fn insert(&mut self, name: Name) {
        match self {
            Self::One(one) if *one == name => {}
            Self::One(one) => *self = Self::Several(BTreeSet::from([std::mem::take(one), name])),
            Self::Several(names) => {
                names.insert(name);
            }
        }
    }

    /// Takes a name out; whether none is left.
    fn remove(&mut self, name: &Name) -> bool {
        match self {
            Self::One(one) => one == name,
            Self::Several(names) => {
                names.remove(name);
                names.is_empty()
            }
        }
    }
}

/// The objects of a kind in one scope.
pub struct Objects<K: Resource<DynamicType = ()> + Clone + 'static> {
    reader: Store<Watched<K>>,
    writer: Mutex<Writer<Watched<K>>>,
    index: Mutex<HashMap<IndexKey, Named>>,
    keys_of: fn(&K) -> Vec<IndexKey>,
}

impl<K> Objects<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    /// No objects yet; `keys_of` says what each is found by.
    #[must_use]
    pub fn new(keys_of: fn(&K) -> Vec<IndexKey>) -> Self {
        let (reader, writer) = reflector::store();
        Self { reader, writer: Mutex::new(writer), index: Mutex::default(), keys_of }
    }

    /// The store as a controller reads it.
    #[must_use]
    pub fn reader(&self) -> Store<Watched<K>> {
        self.reader.clone()
    }

    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Watched<K>> {
        self.reader.get(&ObjectRef::new(name).within(namespace)).map(|watched| watched.as_ref().clone())
    }

    /// Names of the objects under a key.
    #[must_use]
    pub fn names_by(&self, key: &IndexKey) -> Vec<Name> {
        self.index.lock().get(key).into_iter().flat_map(Named::iter).cloned().collect()
    }

    /// The objects under a key that can be read.
    #[must_use]
    pub fn by(&self, key: &IndexKey) -> Vec<Arc<K>> {
        let names = self.names_by(key);
        names.iter().filter_map(|(namespace, name)| self.get(namespace, name)?.valid().cloned()).collect()
    }

    /// All objects that can be read.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<K>> {
        self.reader.state().iter().filter_map(|object| object.valid().cloned()).collect()
    }

    /// Names of all objects.
    #[must_use]
    pub fn names(&self) -> Vec<Name> {
        self.reader.state().iter().map(|object| name_of(object.as_ref())).collect()
    }

    /// Follows the API server for ever. An object that cannot be read does not end the watch of the others.
    pub fn watch(&self, api: Api<DeserializeGuard<K>>) -> impl Stream<Item = Update<Touched<K>>> + Send
    where
        K: DeserializeOwned,
    {
        watcher::watcher(api, watch_config()).default_backoff().map(|event| match event {
            Ok(event) => {
                let synced = matches!(event, Event::InitDone);
                Update::touching(self.handle_event(event), synced)
            }
            Err(error) => Update::failed(&K::kind(&()), &error),
        })
    }

    fn handle_event(&self, event: Event<DeserializeGuard<K>>) -> Vec<Touched<K>> {
        match event {
            Event::Apply(guard) => {
                let after = Watched::from(guard);
                let before = self.stored(&after);
                self.store(&Event::Apply(after.clone()));
                vec![self.touch(before, Some(after))]
            }
            Event::Delete(guard) => {
                let gone = Watched::from(guard);
                let before = self.stored(&gone);
                self.store(&Event::Delete(gone.clone()));
                vec![self.touch(before.or(Some(gone)), None)]
            }
            Event::Init => {
                self.store(&Event::Init);
                Vec::new()
            }
            // Stored together with InitDone.
            Event::InitApply(guard) => {
                let listed = Watched::from(guard);
                // What is the same as before is not held twice.
                let same = self.stored(&listed).filter(|known| is_same(known, &listed));
                self.store(&Event::InitApply(same.unwrap_or(listed)));
                Vec::new()
            }
            Event::InitDone => self.replace(),
        }
    }

    /// Takes over a whole list.
    fn replace(&self) -> Vec<Touched<K>> {
        let mut before: HashMap<_, _> =
            self.reader.state().iter().map(|object| (name_of(object.as_ref()), object.clone())).collect();
        self.store(&Event::InitDone);
        let mut touched = Vec::new();
        for after in self.reader.state() {
            let known = before.remove(&name_of(after.as_ref()));
            touched.push(self.touch(known.map(|known| known.as_ref().clone()), Some(after.as_ref().clone())));
        }
        touched.extend(before.into_values().map(|gone| self.touch(Some(gone.as_ref().clone()), None)));
        touched
    }

    /// Takes over an object as an event of its watch would bring it.
    #[cfg(test)]
    pub fn put(&self, object: Watched<K>) {
        self.store(&Event::Apply(object.clone()));
        self.touch(None, Some(object));
    }

    fn stored(&self, object: &Watched<K>) -> Option<Watched<K>> {
        let (namespace, name) = name_of(object);
        self.get(&namespace, &name)
    }

    fn store(&self, event: &Event<Watched<K>>) {
        self.writer.lock().apply_watcher_event(event);
    }

    /// Brings the index to what an object is now.
    fn touch(&self, before: Option<Watched<K>>, after: Option<Watched<K>>) -> Touched<K> {
        let keys = |object: &Option<Watched<K>>| -> Vec<(IndexKey, Name)> {
            let Some(object) = object.as_ref().and_then(Watched::valid) else { return Vec::new() };
            (self.keys_of)(object).into_iter().map(|key| (key, name_of(object.as_ref()))).collect()
        };
        let mut index = self.index.lock();
        for (key, name) in keys(&before) {
            if index.get_mut(&key).is_some_and(|names| names.remove(&name)) {
                index.remove(&key);
            }
        }
        for (key, name) in keys(&after) {
            match index.entry(key) {
                Entry::Occupied(mut names) => names.get_mut().insert(name),
                Entry::Vacant(vacant) => {
                    vacant.insert(Named::One(name));
                }
            }
        }
        Touched { before, after }
    }
}

fn is_same<K: Resource<DynamicType = ()> + Clone>(one: &Watched<K>, other: &Watched<K>) -> bool {
    one.uid() == other.uid() && one.resource_version() == other.resource_version()
}

/// Namespace and name of an object.
pub fn name_of(object: &impl ResourceExt) -> Name {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use jetwright_crds::EventConsumer;
    use serde_json::{Value, json};

    use super::*;

    fn consumers() -> Objects<EventConsumer> {
        Objects::new(|consumer| {
            let namespace = consumer.namespace().unwrap_or_default();
            vec![IndexKey::Stream((namespace, consumer.spec.stream_ref.name.clone()))]
        })
    }

    fn consumer(name: &str, stream: &str, version: &str) -> DeserializeGuard<EventConsumer> {
        let object: Value = json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": version},
            "spec": {"streamRef": {"name": stream}},
        });
        serde_json::from_value(object).unwrap()
    }

    fn users(objects: &Objects<EventConsumer>, stream: &str) -> Vec<String> {
        let key = IndexKey::Stream(("shop".into(), stream.into()));
        objects.names_by(&key).into_iter().map(|(_, name)| name).collect()
    }

    /// The resource versions of what was touched, before and after.
    fn versions(touched: Vec<Touched<EventConsumer>>) -> Vec<(String, String)> {
        let version = |object: Option<Watched<_>>| {
            object.and_then(|object| object.resource_version()).unwrap_or_default()
        };
        let mut versions: Vec<_> =
            touched.into_iter().map(|touched| (version(touched.before), version(touched.after))).collect();
        versions.sort();
        versions
    }

    fn pair(before: &str, after: &str) -> (String, String) {
        (before.to_owned(), after.to_owned())
    }

    #[test]
    fn an_object_is_found_by_what_it_refers_to_now() {
        let objects = consumers();
        let touched = objects.handle_event(Event::Apply(consumer("a", "orders", "1")));
        assert_eq!((versions(touched), users(&objects, "orders")), (vec![pair("", "1")], vec!["a".into()]));
        let touched = objects.handle_event(Event::Apply(consumer("a", "users", "2")));
        assert_eq!(versions(touched), [pair("1", "2")]);
        assert_eq!((users(&objects, "orders"), users(&objects, "users")), (Vec::new(), vec!["a".into()]));
        let touched = objects.handle_event(Event::Delete(consumer("a", "users", "3")));
        assert_eq!((versions(touched), users(&objects, "users")), (vec![pair("2", "")], Vec::new()));
        assert!(objects.index.lock().is_empty());
    }

    #[test]
    fn what_went_in_a_gap_of_the_watch_is_touched_and_no_longer_found() {
        let objects = consumers();
        for name in ["a", "b", "c"] {
            objects.handle_event(Event::Apply(consumer(name, "orders", "1")));
        }
        assert!(objects.handle_event(Event::Init).is_empty());
        for listed in [consumer("a", "orders", "1"), consumer("b", "orders", "2")] {
            assert!(objects.handle_event(Event::InitApply(listed)).is_empty());
        }
        assert_eq!(users(&objects, "orders"), ["a", "b", "c"], "until the list is whole");
        let touched = objects.handle_event(Event::InitDone);
        assert_eq!(versions(touched), [pair("1", ""), pair("1", "1"), pair("1", "2")]);
        assert_eq!(users(&objects, "orders"), ["a", "b"]);
    }

    #[test]
    fn an_object_that_cannot_be_read_is_there_and_found_by_its_name_alone() {
        let objects = consumers();
        let unreadable: DeserializeGuard<EventConsumer> = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "shop"}, "spec": {"streamRef": 7},
        }))
        .unwrap();
        objects.handle_event(Event::Apply(unreadable));
        assert!(matches!(objects.get("shop", "a"), Some(Watched::Invalid(_))));
        assert!(objects.index.lock().is_empty());
    }
}
