//! In: the EventStream that a consumer reads from, and what exists under the name of the one for its dead letters. Out: the EventStream that
//! keeps them, or why there can be none; and what that one's conditions mean for the consumer. Pure.
//!
//! The EventStream is brought to what it has to be in JetStream by its own reconcile, as any other. All consumers of a stream share it, and
//! nothing here ever deletes it: dead letters outlive whoever wrote them.

use jetwright_crds::{
    DeletionPolicy, EventStream, EventStreamSpec,
    conditions::{self, READY, Reason, STALLED},
    labels::{DEAD_LETTERS_OF, JETWRIGHT, MANAGED_BY},
    names::DeadLetterNames,
    stream::{Discard, Limits, Retention},
};
use kube::ResourceExt;

use crate::{
    field_error::{FieldError, join},
    kubernetes::status::{ConditionSummary, Progress},
    outcome::Recorded,
};

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    Apply(Box<EventStream>),
    /// Nothing, for this reason.
    Blocked(ConditionSummary),
}

/// Decides what to do for a consumer of the EventStream of this name.
pub fn plan(reference: &str, source: Option<&EventStream>, current: Option<&EventStream>) -> Plan {
    decide(reference, source, current).map_or_else(Plan::Blocked, |desired| Plan::Apply(Box::new(desired)))
}

/// What is wrong where there is no EventStream of this name.
pub fn missing_stream(reference: &str) -> String {
    format!("spec.streamRef: there is no EventStream {reference} in this namespace: create it")
}

fn decide(
    reference: &str,
    source: Option<&EventStream>,
    current: Option<&EventStream>,
) -> Result<EventStream, ConditionSummary> {
    let Some(source) = source else {
        return Err(ConditionSummary::stalled(Reason::NotFound, missing_stream(reference)));
    };
    let names = DeadLetterNames::of(reference, &source.stream_name()).map_err(|error| {
        let error = FieldError::new("spec.streamRef", error.to_string());
        ConditionSummary::stalled(Reason::Invalid, join(&[error]))
    })?;
    if let Some(current) = current {
        check_adoptable(&names, current)?;
    }
    let is_deleted = source.metadata.deletion_timestamp.is_some();
    let Some(replicas) = Recorded::of_stream(source).replicas.filter(|_| !is_deleted) else {
        let message = format!(
            "waiting for EventStream {reference}: its stream does not exist yet (see its conditions)"
        );
        return Err(ConditionSummary::reconciling(Reason::StreamNotReady, message));
    };
    Ok(build(&names, source, replicas, current))
}

/// Whether what exists under the name may be brought to what it has to be.
fn check_adoptable(names: &DeadLetterNames, current: &EventStream) -> Result<(), ConditionSummary> {
    let DeadLetterNames { source, object, stream, subjects: _ } = names;
    if current.labels().get(DEAD_LETTERS_OF) != Some(source) {
        let message = format!(
            "EventStream {object} was not created for the dead letters of {source} and was not modified: give it and its stream another \
             name, or set spec.deadLetter.policy to Drop"
        );
        return Err(ConditionSummary::stalled(Reason::NameConflict, message));
    }
    let old = current.stream_name();
    if old != *stream {
        let message = format!(
            "EventStream {object} still points at stream {old}. Delete the EventStream (its stream and messages are kept); it is \
             recreated for {stream}"
        );
        return Err(ConditionSummary::stalled(Reason::NameConflict, message));
    }
    if current.metadata.deletion_timestamp.is_some() {
        let message = format!("EventStream {object} is being deleted; then it is recreated");
        return Err(ConditionSummary::reconciling(Reason::Deleting, message));
    }
    Ok(())
}

/// Makes the EventStream for the dead letters of another whose stream has so many replicas. What is left out here is the user's.
fn build(
    names: &DeadLetterNames,
    source: &EventStream,
    replicas: u8,
    current: Option<&EventStream>,
) -> EventStream {
    let spec = EventStreamSpec {
        stream_name: Some(names.stream.clone()),
        profile: None,
        subjects: vec![names.subjects.clone()],
        partitions: None,
        retention: Some(Retention::Limits),
        // JetStream never changes it, and a source that was deleted and recreated may have another one.
        storage: Some(current.unwrap_or(source).spec.effective_storage()),
        replicas: Some(replicas),
        // The subject tells one dead letter from all others.
        limits: Some(Limits { max_messages_per_subject: Some(1), ..Limits::default() }),
        // Where a user sets a limit, writers are refused when it is reached; nothing goes behind their back.
        discard: Some(Discard::New),
        duplicate_window: None,
        allow_direct: Some(true),
        allow_message_ttl: Some(true),
        monitoring: None,
        deletion_policy: Some(DeletionPolicy::Retain),
        // Dead letters go with their stream.
        adoption_policy: source.spec.adoption_policy,
    };
    let mut object = EventStream::new(&names.object, spec);
    object.metadata.namespace = source.namespace();
    let labels = [(MANAGED_BY, JETWRIGHT), (DEAD_LETTERS_OF, &names.source)];
    object.metadata.labels = Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    object
}

/// Dead letters are kept once the EventStream is Ready as it was applied last.
pub fn summarize(kept: &EventStream) -> ConditionSummary {
    let name = kept.name_any();
    let newest = |type_| {
        let condition = conditions::get(kept.conditions(), type_)?;
        (condition.observed_generation == kept.metadata.generation).then_some(condition)
    };
    let Some(ready) = newest(READY) else {
        let message = format!("EventStream {name} is not reconciled yet");
        return ConditionSummary::reconciling(Reason::StreamNotReady, message);
    };
    let stalled = newest(STALLED).is_some_and(|stalled| stalled.status == "True");
    let unready = |status| ConditionSummary {
        ready: status,
        reason: Reason::named(&ready.reason).unwrap_or(Reason::StreamNotReady),
        message: format!("EventStream {name}: {}", ready.message),
        progress: if stalled { Progress::Stalled } else { Progress::Reconciling },
    };
    match ready.status.as_str() {
        "True" => ConditionSummary::ready(format!("dead letters are kept in stream {}", kept.stream_name())),
        "False" => unready(Some(false)),
        _ => unready(None),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// An EventStream whose stream has so many replicas, or is not there yet.
    fn source(replicas: Option<u8>) -> EventStream {
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
    fn kept(stream: &str, replicas: u8) -> EventStream {
        build(&DeadLetterNames::of("orders", stream).unwrap(), &source(Some(replicas)), replicas, None)
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
        let names = DeadLetterNames::of("orders", "orders").unwrap();
        let mut in_memory = source(Some(1));
        in_memory.spec = serde_saphyr::from_str("{profile: Ephemeral, subjects: [orders.*.*]}").unwrap();
        let made = build(&names, &in_memory, 1, None);
        assert_eq!(json_of(&made)["spec"]["storage"], "Memory");
        // Made again on file, the stream has other dead letters than before, in the same place.
        assert_eq!(json_of(&build(&names, &source(Some(3)), 3, Some(&made)))["spec"]["storage"], "Memory");
        assert_eq!(json_of(&build(&names, &source(Some(3)), 3, Some(&made)))["spec"]["replicas"], 3);
    }

    fn planned(
        source: Option<&EventStream>,
        found: Option<&EventStream>,
    ) -> Result<EventStream, (Reason, String)> {
        match plan("orders", source, found) {
            Plan::Apply(kept) => Ok(*kept),
            Plan::Blocked(ConditionSummary { reason, message, ready, .. }) => {
                assert_eq!(ready, Some(false));
                Err((reason, message))
            }
        }
    }

    fn reason(source: Option<&EventStream>, found: Option<&EventStream>) -> Reason {
        planned(source, found).unwrap_err().0
    }

    #[test]
    fn one_is_made_once_the_stream_is_there_and_kept_as_it_is_to_be() {
        let made = planned(Some(&source(Some(3))), None).unwrap();
        assert_eq!(made, kept("orders", 3));
        assert_eq!(planned(Some(&source(Some(3))), Some(&made)).unwrap(), kept("orders", 3));
        assert_eq!(reason(None, None), Reason::NotFound);
        assert_eq!(reason(Some(&source(None)), None), Reason::StreamNotReady);
    }

    #[test]
    fn a_stream_that_is_being_deleted_gets_none() {
        let mut deleted = source(Some(3));
        deleted.metadata.deletion_timestamp = Some(crate::kubernetes::status::now());
        assert_eq!(reason(Some(&deleted), None), Reason::StreamNotReady);
    }

    #[test]
    fn what_was_not_created_for_it_is_not_modified() {
        let mut unlabelled = kept("orders", 3);
        unlabelled.metadata.labels = None;
        let (reason, message) = planned(Some(&source(Some(3))), Some(&unlabelled)).unwrap_err();
        assert_eq!(reason, Reason::NameConflict);
        assert!(
            message.contains("EventStream orders-dlq") && message.contains("policy to Drop"),
            "{message}"
        );
        let mut of_others = kept("orders", 3);
        of_others.labels_mut().insert(DEAD_LETTERS_OF.to_owned(), "others".to_owned());
        assert_eq!(planned(Some(&source(Some(3))), Some(&of_others)).unwrap_err().0, Reason::NameConflict);
    }

    #[test]
    fn one_for_another_stream_is_left_and_named() {
        let (reason, message) = planned(Some(&source(Some(3))), Some(&kept("before", 3))).unwrap_err();
        assert_eq!(reason, Reason::NameConflict);
        assert!(
            message.contains("points at stream before-dlq") && message.contains("Delete the EventStream"),
            "{message}"
        );
    }

    #[test]
    fn one_that_is_being_deleted_is_awaited() {
        let mut deleted = kept("orders", 3);
        deleted.metadata.deletion_timestamp = Some(crate::kubernetes::status::now());
        assert_eq!(reason(Some(&source(Some(3))), Some(&deleted)), Reason::Deleting);
    }

    /// What is told of an EventStream of generation 2 that has these conditions (type, status, reason).
    fn summary_of(generation: i64, conditions: &[(&str, &str, &str)]) -> ConditionSummary {
        let condition = |(type_, status, reason): &(&str, &str, &str)| -> Value {
            json!({
                "type": type_, "status": status, "reason": reason, "message": "words", "observedGeneration": generation,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            })
        };
        let conditions: Vec<_> = conditions.iter().map(condition).collect();
        let mut kept = kept("orders", 1);
        kept.metadata.generation = Some(2);
        kept.status = Some(serde_json::from_value(json!({"conditions": conditions})).unwrap());
        summarize(&kept)
    }

    #[test]
    fn dead_letters_are_kept_once_their_stream_is_ready() {
        let ready = ConditionSummary::ready("dead letters are kept in stream orders-dlq");
        assert_eq!(summary_of(2, &[("Ready", "True", "Reconciled")]), ready);
        let coming = ConditionSummary::reconciling(
            Reason::StreamNotReady,
            "EventStream orders-dlq is not reconciled yet",
        );
        assert_eq!(summary_of(2, &[]), coming);
        assert_eq!(summary_of(1, &[("Ready", "True", "Reconciled")]), coming, "of an older generation");
    }

    #[test]
    fn what_is_wrong_with_their_stream_is_wrong_with_them() {
        let words = "EventStream orders-dlq: words";
        assert_eq!(
            summary_of(2, &[("Ready", "False", "Refused"), ("Stalled", "True", "Refused")]),
            ConditionSummary::stalled(Reason::Refused, words)
        );
        assert_eq!(
            summary_of(2, &[("Ready", "False", "Failed"), ("Stalled", "False", "Reconciled")]),
            ConditionSummary::reconciling(Reason::Failed, words)
        );
        assert_eq!(
            summary_of(2, &[("Ready", "Unknown", "Disconnected")]),
            ConditionSummary { ready: None, ..ConditionSummary::reconciling(Reason::Disconnected, words) }
        );
    }
}
