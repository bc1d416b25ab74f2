//! In: an EventStream, and what there is for its dead letters. Out: the EventStream that is to keep them. Pure.

use jetwright_crds::{
    DeletionPolicy, EventStream, EventStreamSpec,
    stream::{Discard, Limits, Retention},
};
use kube::ResourceExt;

use super::names::{LABEL, Names};
use crate::stream::effective_storage;

/// Makes the EventStream for the dead letters of another that has so many replicas. What is left out here is the user's.
pub fn build(names: &Names, source: &EventStream, replicas: u8, found: Option<&EventStream>) -> EventStream {
    let spec = EventStreamSpec {
        stream_name: Some(names.stream.clone()),
        profile: None,
        subjects: vec![names.subjects.clone()],
        retention: Some(Retention::Limits),
        // JetStream never changes it, and a stream that was deleted and made again may have another one.
        storage: Some(effective_storage(&found.unwrap_or(source).spec)),
        replicas: Some(replicas),
        // The subject tells one dead letter from all others.
        limits: Some(Limits { max_messages_per_subject: Some(1), ..Limits::default() }),
        // Where somebody sets a limit, writers are told that it is reached; nothing goes behind their back.
        discard: Some(Discard::New),
        duplicate_window: None,
        allow_direct: Some(true),
        allow_message_ttl: Some(true),
        deletion_policy: Some(DeletionPolicy::Retain),
    };
    let mut object = EventStream::new(&names.object, spec);
    object.metadata.namespace = source.namespace();
    let labels = [("app.kubernetes.io/managed-by", "jetwright"), (LABEL, &names.source)];
    object.metadata.labels = Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    object
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// An EventStream whose stream has so many replicas, or is not there yet.
    pub fn source(replicas: Option<u8>) -> EventStream {
        let stream = replicas.map(|replicas| {
            json!({
                "name": "orders", "replicas": replicas, "messages": 0, "bytes": 0, "firstSequence": 0, "lastSequence": 0,
                "consumers": 0,
            })
        });
        let mut object = json!({
            "apiVersion": "jetwright.dev/v1alpha1", "kind": "EventStream",
            "metadata": {"name": "orders", "namespace": "shop"},
            "spec": {"profile": "Critical", "subjects": ["orders.*.*"]},
        });
        if let Some(stream) = stream {
            object["status"] = json!({"stream": stream});
        }
        serde_json::from_value(object).unwrap()
    }

    /// The EventStream that keeps the dead letters of orders, whose stream in JetStream has this name.
    pub fn kept(stream: &str, replicas: u8) -> EventStream {
        build(&Names::of("orders", stream).unwrap(), &source(Some(replicas)), replicas, None)
    }

    fn json_of(object: &EventStream) -> Value {
        serde_json::to_value(object).unwrap()
    }

    #[test]
    fn nothing_that_is_kept_goes_unless_it_is_old() {
        assert_eq!(
            json_of(&kept("ORDERS", 3)),
            json!({
                "apiVersion": "jetwright.dev/v1alpha1", "kind": "EventStream",
                "metadata": {
                    "name": "orders-dlq", "namespace": "shop",
                    "labels": {"app.kubernetes.io/managed-by": "jetwright", "jetwright.dev/dead-letters-of": "orders"},
                },
                "spec": {
                    "streamName": "ORDERS-dlq", "subjects": ["jetwright.dlq.ORDERS.>"], "retention": "Limits",
                    "storage": "File", "replicas": 3, "limits": {"maxMessagesPerSubject": 1}, "discard": "New",
                    "allowDirect": true, "allowMessageTtl": true, "deletionPolicy": "Retain",
                },
            })
        );
    }

    #[test]
    fn it_is_stored_as_the_events_are_and_stays_so() {
        let names = Names::of("orders", "orders").unwrap();
        let mut in_memory = source(Some(1));
        in_memory.spec = serde_saphyr::from_str("{profile: Ephemeral, subjects: [orders.*.*]}").unwrap();
        let made = build(&names, &in_memory, 1, None);
        assert_eq!(json_of(&made)["spec"]["storage"], "Memory");
        // Made again on file, the stream has other dead letters than before, in the same place.
        assert_eq!(json_of(&build(&names, &source(Some(3)), 3, Some(&made)))["spec"]["storage"], "Memory");
        assert_eq!(json_of(&build(&names, &source(Some(3)), 3, Some(&made)))["spec"]["replicas"], 3);
    }
}
