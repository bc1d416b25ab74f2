//! The EventStream that is made to see whether the operator acts on it, and deleted in every case. Reads and writes Kubernetes.

use std::time::Duration;

use jetwright_crds::{
    DeletionPolicy, EventStream, EventStreamSpec, Size,
    labels::VERIFY,
    stream::{Limits, Profile, Storage},
};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    error::Error,
    say,
    state::{State, state},
};
use crate::kubernetes::finalizer;

/// First tokens of the subject that the stream has.
const SUBJECT: &str = "jetwright.verify";
/// Accounts can ask of every stream how large it may get.
const MAX_BYTES: Size = Size(64 * 1024);
/// Time between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// How long Kubernetes may take to answer one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the operator may take to remove the finalizer.
const FINALIZER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the object may take to go with nothing left to hold it.
const DELETE_TIMEOUT: Duration = Duration::from_secs(5);

/// How an object went.
#[derive(Debug)]
pub enum Removed {
    /// The operator has cleaned up, or there was nothing to clean up.
    Whole,
    /// The operator did not act. Its status names no stream, so the finalizer was removed without it.
    WithoutOperator,
}

/// An EventStream of this name, in memory, for a subject of its own.
pub fn object(random: u32) -> EventStream {
    let spec = EventStreamSpec {
        stream_name: None,
        profile: Some(Profile::Ephemeral),
        subjects: vec![format!("{SUBJECT}.{random:08x}")],
        partitions: None,
        retention: None,
        storage: Some(Storage::Memory),
        replicas: None,
        limits: Some(Limits { max_bytes: Some(MAX_BYTES), ..Limits::default() }),
        discard: None,
        duplicate_window: None,
        allow_direct: None,
        allow_message_ttl: None,
        monitoring: None,
        deletion_policy: Some(DeletionPolicy::Delete),
        adoption_policy: None,
    };
    let mut object = EventStream::new(&format!("jetwright-verify-{random:08x}"), spec);
    object.metadata.labels = Some([(VERIFY.to_owned(), "install".to_owned())].into());
    object
}

/// Makes the object. Not to be interrupted: nobody would know whether it was made.
///
/// # Errors
///
/// When Kubernetes refuses; None where it does not answer.
pub async fn make(api: &Api<EventStream>, object: &EventStream) -> Result<EventStream, Option<kube::Error>> {
    match timeout(REQUEST_TIMEOUT, api.create(&PostParams::default(), object)).await {
        Ok(created) => created.map_err(Some),
        Err(_) => Err(None),
    }
}

/// Waits for the object to be ready, and says what it waits for; what it last came to, where that is something else.
pub async fn await_ready(api: &Api<EventStream>, name: &str, end: Instant) -> Result<(), State> {
    let mut last = State::Unseen;
    loop {
        if let Ok(Ok(object)) = timeout(REQUEST_TIMEOUT, api.get(name)).await {
            let state = state(&object);
            match &state {
                State::Ready => return Ok(()),
                State::NotReady { reason, message } if state != last => {
                    say(format_args!("waiting: it is not ready ({reason}): {message}"));
                }
                State::NotReady { .. } | State::Unseen => {}
            }
            last = state;
        }
        if Instant::now() >= end {
            return Err(last);
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Deletes an object and waits until it is gone, for about 20 s at most.
///
/// # Errors
///
/// When it is still there.
pub async fn remove(api: &Api<EventStream>, namespace: &str, name: &str) -> Result<Removed, Error> {
    match delete(api, name, FINALIZER_TIMEOUT).await {
        Deletion::Gone => return Ok(Removed::Whole),
        Deletion::Pending(object) if is_unmade(&object) => {
            // A conflict, or no answer, leaves the object there, which is reported below.
            let _ = timeout(REQUEST_TIMEOUT, finalizer::remove_from_unchanged(api, &object)).await;
        }
        Deletion::Pending(_) => return Err(Error::Terminating { name: name.to_owned() }),
        Deletion::Failed(None) => {}
        Deletion::Failed(Some(source)) => return Err(undeleted(namespace, name, source)),
    }
    match delete(api, name, DELETE_TIMEOUT).await {
        Deletion::Gone => Ok(Removed::WithoutOperator),
        Deletion::Pending(_) => Err(Error::Terminating { name: name.to_owned() }),
        Deletion::Failed(Some(source)) => Err(undeleted(namespace, name, source)),
        Deletion::Failed(None) => {
            Err(Error::PerhapsLeft { name: name.to_owned(), namespace: namespace.to_owned() })
        }
    }
}

fn undeleted(namespace: &str, name: &str, source: kube::Error) -> Error {
    Error::Undeleted { name: name.to_owned(), namespace: namespace.to_owned(), source }
}

/// Whether no status ever named a stream of this object.
fn is_unmade(object: &EventStream) -> bool {
    object.status.as_ref().is_none_or(|status| status.stream.is_none())
}

/// What became of a deletion.
enum Deletion {
    Gone,
    Pending(Box<EventStream>),
    Failed(Option<kube::Error>),
}

/// Asks for the deletion until the object is gone: the answer has the object as it is, so that no right to read is needed.
async fn delete(api: &Api<EventStream>, name: &str, bound: Duration) -> Deletion {
    let end = Instant::now() + bound;
    loop {
        let last = match timeout(REQUEST_TIMEOUT, api.delete(name, &DeleteParams::default())).await {
            Ok(Ok(answer)) => match answer.left() {
                Some(object) => Deletion::Pending(Box::new(object)),
                None => Deletion::Gone,
            },
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Deletion::Gone,
            Ok(Err(error)) => Deletion::Failed(Some(error)),
            Err(_) => Deletion::Failed(None),
        };
        if matches!(last, Deletion::Gone) || Instant::now() >= end {
            return last;
        }
        sleep(POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The object at generation 2, with what an operator said of it.
    fn seen(condition: &serde_json::Value) -> EventStream {
        let mut object = object(0x2a);
        object.metadata.generation = Some(2);
        object.status = serde_json::from_value(json!({"conditions": [condition]})).unwrap();
        object
    }

    fn ready(status: &str, reason: &str, generation: i64) -> serde_json::Value {
        json!({
            "type": "Ready", "status": status, "reason": reason, "message": "words", "observedGeneration": generation,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    }

    #[test]
    fn the_stream_is_in_memory_bounded_and_of_a_subject_of_its_own() {
        let made = serde_json::to_value(object(0x2a)).unwrap();
        let wanted = json!({
            "apiVersion": "jetwright.dev/v1alpha1",
            "kind": "EventStream",
            "metadata": {"name": "jetwright-verify-0000002a", "labels": {"jetwright.dev/verify": "install"}},
            "spec": {
                "profile": "Ephemeral", "storage": "Memory", "subjects": ["jetwright.verify.0000002a"],
                "limits": {"maxBytes": "64Ki"}, "deletionPolicy": "Delete",
            },
        });
        assert_eq!(made, wanted);
    }

    #[test]
    fn only_what_is_said_of_the_newest_generation_counts() {
        assert_eq!(state(&object(0x2a)), State::Unseen);
        assert_eq!(state(&seen(&ready("True", "Reconciled", 1))), State::Unseen);
        assert_eq!(state(&seen(&ready("True", "Reconciled", 2))), State::Ready);
        let not_ready = State::NotReady { reason: "Disconnected".into(), message: "words".into() };
        assert_eq!(state(&seen(&ready("Unknown", "Disconnected", 2))), not_ready);
    }

    #[test]
    fn an_object_is_let_go_without_the_operator_only_where_no_stream_was_told_of() {
        let mut told = seen(&ready("False", "Failed", 2));
        assert!(is_unmade(&told) && is_unmade(&object(0x2a)));
        told.status = serde_json::from_value(json!({"stream": {
            "name": "s", "replicas": 1, "messages": 0, "bytes": 0, "firstSequence": 0, "lastSequence": 0, "consumers": 0,
        }}))
        .unwrap();
        assert!(!is_unmade(&told));
    }
}
