//! What wakes a reconcile: changes of its object (not of its status), of objects that it depends on, and of what JetStream has. In: what the
//! watches and the cache report. Out: the names of the objects to reconcile. Pure.

use std::collections::{BTreeSet, HashSet, VecDeque};

use jetwright_crds::{
    EventConsumer, EventStream,
    conditions::{self, CONSUMER_READY, READY, Reason, WORKLOAD_READY},
    labels::{ACCEPT_DATA_LOSS, DEAD_LETTERS_OF},
    names::{consumer_of_partition, dead_letter_object, dead_letter_source},
    stream::Profile,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Resource, ResourceExt};

use super::declarations;
use crate::{
    hash::hash_of,
    jetstream::{
        asset::Stream,
        cache::{Cache, Change},
    },
    kubernetes::{
        scopes::Scope,
        stores::{IndexKey, Name, Touched, name_of},
        watched::Watched,
    },
    object_state::{ObjectKey, ObjectStates},
    outcome::Recorded,
};

/// The objects to reconcile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wakeups {
    pub streams: BTreeSet<Name>,
    pub consumers: BTreeSet<Name>,
}

impl Wakeups {
    /// An EventStream was touched. A consumer waits for its stream to be ready, and for that of its dead letters; the figures in their
    /// statuses do not matter to it.
    pub fn of_stream(&mut self, touched: &Touched<EventStream>, scope: &Scope) {
        if let Some(after) = touched.after.as_ref().filter(|_| declaration_changed(touched)) {
            self.streams.insert(name_of(after));
        }
        let Some(object) = touched.after.as_ref().or(touched.before.as_ref()) else { return };
        if touched.before.as_ref().map(usability) == touched.after.as_ref().map(usability) {
            return;
        }
        let (namespace, name) = name_of(object);
        // It may keep dead letters only while this one owns their stream.
        let keeper = dead_letter_object(&name);
        if scope.event_streams.get(&namespace, &keeper).is_some() {
            self.streams.insert((namespace.clone(), keeper));
        }
        let source = dead_letter_source(&name).map(str::to_owned);
        for reference in [Some(name), source].into_iter().flatten() {
            for consumer in scope.event_consumers.by(&IndexKey::Stream((namespace.clone(), reference))) {
                self.consumers.insert(name_of(consumer.as_ref()));
                // Its events may be handled in the pods of another.
                self.consumers.extend(host_of(&consumer));
            }
        }
    }

    /// An EventConsumer was touched. The one whose pods it uses, and those that use its own, depend on some of its conditions; its
    /// EventStream, where that is being deleted, waits for its end.
    pub fn of_consumer(&mut self, touched: &Touched<EventConsumer>, scope: &Scope) {
        let consumers = &scope.event_consumers;
        if let Some(after) = touched.after.as_ref().filter(|_| declaration_changed(touched)) {
            self.consumers.insert(name_of(after));
        }
        if let Some(after) = touched.after.as_ref().filter(|_| known_changed(touched)) {
            self.consumers.insert(name_of(after));
        }
        if let Some(after) = touched.after.as_ref().filter(|_| got_order(touched)) {
            // Its pods go on without order until they are told.
            self.consumers.insert(name_of(after));
            self.consumers.extend(after.valid().and_then(|object| host_of(object)));
        }
        if touched.before.as_ref().map(applied) != touched.after.as_ref().map(applied) {
            let consumers = touched.readable().flat_map(|object| barred_beside(object, scope));
            self.consumers.extend(consumers);
        }
        if touched.before.as_ref().map(readiness) == touched.after.as_ref().map(readiness) {
            return;
        }
        if touched.after.is_none() {
            self.streams.extend(touched.readable().filter_map(|object| deleted_stream_of(object, scope)));
        }
        for object in touched.readable() {
            self.consumers.extend(host_of(object));
            self.consumers.extend(consumers.names_by(&IndexKey::Workload(name_of(object.as_ref()))));
        }
    }

    /// JetStream has something else. An object that failed is not woken before its next try for what it saw when it failed, nor one that
    /// others write, too, before its next write.
    pub fn of_change(&mut self, change: &Change, scope: &Scope, cache: &Cache, states: &ObjectStates) {
        match change {
            Change::Everything => {
                self.streams.extend(scope.event_streams.names());
                self.consumers.extend(scope.event_consumers.names());
            }
            // They are woken in an order of their own: see [`Urgent`].
            Change::Availability(_) => {}
            Change::Stream(name) => {
                let named = scope.event_streams.names_by(&IndexKey::JetStream(name.clone()));
                let seen = || cache.seen::<Stream>(name);
                self.streams
                    .extend(named.into_iter().filter(|name| passes::<EventStream>(name, seen, None, states)));
            }
            Change::Consumer(key) => {
                let named = |name: &str| scope.event_consumers.by(&IndexKey::JetStream(name.to_owned()));
                let partition = consumer_of_partition(&key.name);
                let mut ordered = partition.map(|(consumer, _)| named(consumer)).unwrap_or_default();
                ordered.retain(|object| object.spec.is_per_key());
                let number = partition.map(|(_, number)| number);
                let own = named(&key.name).into_iter().map(|object| (object, None));
                let of_partition = ordered.into_iter().map(|object| (object, number));
                for (object, number) in own.chain(of_partition) {
                    let (name, seen) =
                        (name_of(object.as_ref()), || declarations::seen(&object, scope, cache));
                    if passes::<EventConsumer>(&name, seen, number, states) {
                        self.consumers.insert(name);
                    }
                }
            }
        }
    }
}

/// An object of either kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Object {
    Stream(Name),
    Consumer(Name),
}

/// The objects whose streams JetStream does not answer for, or does again: many at once, in the order in which to say so. Those of
/// streams of the profile Critical come first. Each is there once.
#[derive(Debug, Default)]
pub struct Urgent {
    critical: VecDeque<Object>,
    others: VecDeque<Object>,
    known: HashSet<Object>,
}

impl Urgent {
    /// Adds the objects of some streams in JetStream: the EventStreams, and the EventConsumers that refer to them.
    pub fn add(&mut self, streams: &[String], scope: &Scope) {
        for stream in streams {
            for object in scope.event_streams.by(&IndexKey::JetStream(stream.clone())) {
                let is_critical = object.spec.profile == Some(Profile::Critical);
                let name = name_of(object.as_ref());
                let users = scope.event_consumers.names_by(&IndexKey::Stream(name.clone()));
                let objects =
                    [Object::Stream(name)].into_iter().chain(users.into_iter().map(Object::Consumer));
                let queue = if is_critical { &mut self.critical } else { &mut self.others };
                queue.extend(objects.filter(|object| self.known.insert(object.clone())));
            }
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Takes the next one.
    pub fn next(&mut self) -> Option<Object> {
        let next = self.critical.pop_front().or_else(|| self.others.pop_front())?;
        self.known.remove(&next);
        Some(next)
    }
}

/// Whether a change wakes an object, of whose things it changed the one of this partition, or its only one.
fn passes<K: Resource<DynamicType = ()>>(
    name: &Name,
    seen: impl FnOnce() -> Option<u64>,
    partition: Option<u32>,
    states: &ObjectStates,
) -> bool {
    let key = ObjectKey::new::<K>(&name.0, &name.1);
    !states.backs_off(&key, seen) && !states.is_contested(&key, partition)
}

/// The EventStream that an object refers to, where it is being deleted.
fn deleted_stream_of(object: &EventConsumer, scope: &Scope) -> Option<Name> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), &object.spec.stream_ref.name);
    let stream = scope.event_streams.get(&namespace, name)?;
    stream.meta().deletion_timestamp.is_some().then(|| name_of(&stream))
}

/// EventConsumers of the same stream that cannot be as they are: perhaps since they overlapped with what this one had.
fn barred_beside(object: &EventConsumer, scope: &Scope) -> Vec<Name> {
    let stream = (object.namespace().unwrap_or_default(), object.spec.stream_ref.name.clone());
    let mut consumers = scope.event_consumers.by(&IndexKey::Stream(stream));
    consumers.retain(|consumer| {
        let known = consumer.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        consumer.metadata.uid != object.metadata.uid
            && condition(known, CONSUMER_READY).is_some_and(|(_, reason)| reason == Reason::Invalid.as_str())
    });
    consumers.iter().map(|consumer| name_of(consumer.as_ref())).collect()
}

/// Changes when another declaration is applied to an EventConsumer's consumer, or the consumer is gone.
fn applied(object: &Watched<EventConsumer>) -> u64 {
    let status = object.valid().and_then(|object| object.status.as_ref());
    let ready = status.and_then(|status| conditions::get(&status.conditions, CONSUMER_READY));
    let ready = ready.map(|ready| (ready.status.as_str(), ready.observed_generation));
    hash_of(&(&object.meta().uid, ready))
}

/// Whether an EventConsumer's consumer had no order, and has one.
fn got_order(touched: &Touched<EventConsumer>) -> bool {
    let partitions = |object: &Option<Watched<EventConsumer>>| {
        let known = object.as_ref()?.valid()?.status.as_ref()?.consumer.as_ref()?;
        Some(known.partitions)
    };
    partitions(&touched.before) == Some(None) && partitions(&touched.after).flatten().is_some()
}

/// Whether the status says something else of the consumer in JetStream, by which partitions are shared out, or of the pods, which a
/// HorizontalPodAutoscaler reads: somebody else may have written it.
fn known_changed(touched: &Touched<EventConsumer>) -> bool {
    let known = |object: &Option<Watched<EventConsumer>>| {
        let status = object.as_ref()?.valid()?.status.as_ref()?;
        Some((status.consumer.clone(), status.replicas, status.selector.clone()))
    };
    let before = known(&touched.before);
    before.is_some() && before != known(&touched.after)
}

/// The EventConsumer whose pods handle an object's events.
fn host_of(object: &EventConsumer) -> Option<Name> {
    let reference = object.spec.workload_ref.as_ref()?;
    Some((object.namespace().unwrap_or_default(), reference.name.clone()))
}

/// Whether anything but the status and the metadata of others changed.
fn declaration_changed<K: Resource<DynamicType = ()> + Clone>(touched: &Touched<K>) -> bool {
    let declaration = |object: &Watched<K>| {
        let meta = object.meta();
        let deleted = meta.deletion_timestamp.is_some();
        let consent = object.annotations().get(ACCEPT_DATA_LOSS);
        hash_of(&(&meta.uid, meta.generation, &meta.finalizers, deleted, consent))
    };
    touched.before.as_ref().map(declaration) != touched.after.as_ref().map(declaration)
}

/// Changes when an EventStream's declaration changes, when it is reconciled as declared, becomes ready, stops being so, or is being deleted; and
/// with its replicas, which those of its dead letters follow.
fn usability(object: &Watched<EventStream>) -> u64 {
    let known = object.valid().map(|object| object.conditions()).unwrap_or_default();
    let observed = conditions::get(known, READY).map(|ready| ready.observed_generation);
    let ready = (condition(known, READY), observed);
    let recorded = object.valid().map(|object| Recorded::of_stream(object)).unwrap_or_default();
    let meta = object.meta();
    let deleted = meta.deletion_timestamp.is_some();
    let kept_for = object.labels().get(DEAD_LETTERS_OF);
    hash_of(&(&meta.uid, meta.generation, deleted, ready, recorded.created, recorded.replicas, kept_for))
}

/// Changes with what EventConsumers in the same pods depend on.
fn readiness(object: &Watched<EventConsumer>) -> u64 {
    let known = object.valid().map(|object| object.conditions()).unwrap_or_default();
    let meta = object.meta();
    let deleted = meta.deletion_timestamp.is_some();
    let ready = [CONSUMER_READY, WORKLOAD_READY].map(|type_| condition(known, type_));
    let message = conditions::get(known, WORKLOAD_READY).map(|ready| &ready.message);
    hash_of(&(&meta.uid, meta.generation, deleted, ready, message))
}

/// Status and reason of a condition.
fn condition<'a>(known: &'a [Condition], type_: &str) -> Option<(&'a str, &'a str)> {
    conditions::get(known, type_).map(|condition| (condition.status.as_str(), condition.reason.as_str()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
    use kube::core::DeserializeGuard;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    fn watched<K: Resource + DeserializeOwned>(name: &str, spec: &str, status: &Value) -> Watched<K> {
        let spec: Value = serde_saphyr::from_str(spec).unwrap();
        let object: K = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name, "generation": 1}, "spec": spec, "status": status,
        }))
        .unwrap();
        DeserializeGuard(Ok(object)).into()
    }

    fn with_condition(type_: &str, status: &str, reason: &str) -> Value {
        json!({"conditions": [{
            "type": type_, "status": status, "reason": reason, "message": "words",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]})
    }

    /// Two consumers of orders, the second in the pods of a third, and one of another stream.
    fn consumers() -> Scope {
        let scope = Scope::new(None);
        for (name, spec) in [
            ("billing", "streamRef: {name: orders}"),
            ("mails", "{streamRef: {name: orders}, workloadRef: {name: host}}"),
            ("other", "streamRef: {name: users}"),
        ] {
            scope.event_consumers.put(watched(name, spec, &Value::Null));
        }
        scope
    }

    fn names<const N: usize>(names: [&str; N]) -> BTreeSet<Name> {
        names.map(|name| ("shop".to_owned(), name.to_owned())).into()
    }

    /// What is woken by an EventStream that has one status, and then another; None where it does not exist. Dead letters of orders are kept.
    fn woken_by_stream(name: &str, before: Option<&Value>, after: Option<&Value>) -> Wakeups {
        let stream = |status: &Value| watched(name, "subjects: [a]", status);
        let mut wakeups = Wakeups::default();
        let touched = Touched { before: before.map(stream), after: after.map(stream) };
        let scope = consumers();
        scope.event_streams.put(watched("orders-dlq", "subjects: [a]", &Value::Null));
        wakeups.of_stream(&touched, &scope);
        wakeups
    }

    #[test]
    fn a_stream_that_comes_to_be_usable_wakes_its_consumers_the_pods_that_handle_their_events_and_its_dead_letters()
     {
        let (none, ready) = (Value::Null, with_condition("Ready", "True", "Reconciled"));
        let consumers = names(["billing", "mails", "host"]);
        let created = woken_by_stream("orders", None, Some(&none));
        let streams = names(["orders", "orders-dlq"]);
        assert_eq!(created, Wakeups { streams, consumers: consumers.clone() });
        for (name, before, after, streams) in [
            ("orders", Some(&none), Some(&ready), names(["orders-dlq"])),
            ("orders", Some(&ready), None, names(["orders-dlq"])),
            ("orders-dlq", Some(&none), Some(&ready), names([])),
        ] {
            let woken = woken_by_stream(name, before, after);
            assert_eq!(woken, Wakeups { streams, consumers: consumers.clone() }, "{name}");
        }
    }

    #[test]
    fn critical_streams_and_their_consumers_say_first_that_they_are_away_and_each_says_it_once() {
        let scope = consumers();
        for (name, spec) in [
            ("users", "{streamName: USERS, subjects: [users.*]}"),
            ("orders", "{subjects: [orders.*], profile: Critical}"),
        ] {
            scope.event_streams.put(watched(name, spec, &Value::Null));
        }
        let mut urgent = Urgent::default();
        urgent.add(&["USERS".to_owned(), "orders".to_owned(), "unknown".to_owned()], &scope);
        urgent.add(&["USERS".to_owned()], &scope);
        let name = |name: &str| ("shop".to_owned(), name.to_owned());
        let expected = [
            Object::Stream(name("orders")),
            Object::Consumer(name("billing")),
            Object::Consumer(name("mails")),
            Object::Stream(name("users")),
            Object::Consumer(name("other")),
        ];
        assert_eq!(std::iter::from_fn(|| urgent.next()).collect::<Vec<_>>(), expected);
        assert!(urgent.is_empty());
    }

    #[test]
    fn a_consumer_that_got_its_order_and_its_host_are_woken_to_tell_their_pods() {
        let consumer = |partitions: Value| {
            let consumer = json!({"stream": "orders", "name": "mails", "partitions": partitions});
            let spec = "{streamRef: {name: orders}, ordering: PerKey, workloadRef: {name: host}}";
            Some(watched::<EventConsumer>("mails", spec, &json!({"consumer": consumer})))
        };
        let woken = |before, after| {
            let mut wakeups = Wakeups::default();
            wakeups.of_consumer(&Touched { before, after }, &consumers());
            wakeups.consumers.into_iter().map(|(_, name)| name).collect::<Vec<_>>()
        };
        assert_eq!(woken(consumer(Value::Null), consumer(json!(4))), ["host", "mails"]);
        assert_eq!(
            woken(consumer(json!(4)), consumer(json!(8))),
            ["mails"],
            "somebody else may have written it"
        );
        assert_eq!(woken(consumer(json!(4)), consumer(json!(4))), [""; 0]);
    }

    #[test]
    fn figures_in_a_status_wake_nobody() {
        let status = |lag: u64| json!({"lag": lag, "observedGeneration": 1});
        let mut wakeups = Wakeups::default();
        let [before, after] = [1, 2].map(|lag| {
            let spec = "{streamRef: {name: orders}, workloadRef: {name: host}}";
            Some(watched::<EventConsumer>("mails", spec, &status(lag)))
        });
        wakeups.of_consumer(&Touched { before, after }, &consumers());
        assert_eq!(wakeups, Wakeups::default());
        let of = |messages: u64| json!({"highestSequence": messages});
        assert_eq!(woken_by_stream("orders", Some(&of(1)), Some(&of(2))), Wakeups::default());
    }

    #[test]
    fn a_consumer_that_moves_to_other_pods_wakes_both_and_one_whose_pods_change_wakes_its_guests() {
        let mut wakeups = Wakeups::default();
        let [before, after] = ["host", "another"].map(|host| {
            let spec = format!("{{streamRef: {{name: orders}}, workloadRef: {{name: {host}}}}}");
            let mut consumer: Watched<EventConsumer> = watched("mails", &spec, &Value::Null);
            consumer.meta_mut().generation = Some(i64::from(host == "another"));
            Some(consumer)
        });
        wakeups.of_consumer(&Touched { before, after }, &consumers());
        assert_eq!(wakeups.consumers, names(["mails", "host", "another"]));
        let mut wakeups = Wakeups::default();
        let statuses = [Value::Null, with_condition("WorkloadReady", "True", "Reconciled")];
        let [before, after] = statuses
            .map(|status| Some(watched::<EventConsumer>("host", "streamRef: {name: users}", &status)));
        let touched = Touched { before, after };
        wakeups.of_consumer(&touched, &consumers());
        assert_eq!(wakeups.consumers, names(["mails"]));
    }

    #[test]
    fn a_consumer_that_is_gone_wakes_the_stream_that_is_deleted_after_it() {
        let scope = consumers();
        let gone = || {
            let before = Some(watched::<EventConsumer>("billing", "streamRef: {name: orders}", &Value::Null));
            let mut wakeups = Wakeups::default();
            wakeups.of_consumer(&Touched { before, after: None }, &scope);
            wakeups.streams
        };
        let mut stream: Watched<EventStream> = watched("orders", "subjects: [a]", &Value::Null);
        scope.event_streams.put(stream.clone());
        assert_eq!(gone(), names([]));
        stream.meta_mut().deletion_timestamp = Some(Time(Timestamp::now()));
        scope.event_streams.put(stream);
        assert_eq!(gone(), names(["orders"]));
    }
}
