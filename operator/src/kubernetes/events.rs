//! Kubernetes events: what `kubectl describe` shows of what the operator did. A reconcile hands them over and never waits for them; one task
//! writes them to Kubernetes, so many a second.

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use jetwright_crds::text::cut;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{
    error::error_chain,
    jetstream::config::METADATA,
    metrics::Metrics,
    outcome::{Adoption, OperationResult, Reconciled},
    rate_limit::RateLimit,
};

/// Longest note that Kubernetes takes, in bytes (ValidateEventUpdate of its API server counts them so).
const MAX_NOTE_BYTES: usize = 1024;
/// Most events a second, of all objects together.
const EVENTS_PER_SECOND: u32 = 10;
/// Events that may wait: what comes beyond that is only logged.
const MAX_QUEUED: usize = 1024;
/// How long Kubernetes may take to write one: its client alone would try for many minutes, and all others would wait.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Notes that are told apart; with more, events that were the same before are new ones.
const MAX_NOTES: usize = 256;
/// How long the end of the program waits for events that are not written yet.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
const FLUSH_POLL: Duration = Duration::from_millis(50);

/// The client library counts an event up that comes again for the same object and reason, with the note that it had first. Here each note has
/// a recorder of its own, so that no event says what was so before.
struct Recorders {
    client: Client,
    reporter: Reporter,
    by_note: Mutex<HashMap<String, Recorder>>,
}

impl Recorders {
    fn of_note(&self, note: &str) -> Recorder {
        let mut by_note = self.by_note.lock();
        if by_note.len() >= MAX_NOTES && !by_note.contains_key(note) {
            by_note.clear();
        }
        let new = || Recorder::new(self.client.clone(), self.reporter.clone());
        by_note.entry(note.to_owned()).or_insert_with(new).clone()
    }
}

/// Where events are handed over. Clones share the queue.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<(Event, ObjectReference)>,
    metrics: Metrics,
}

impl Events {
    /// Starts the task that writes them, which ends with the last clone.
    #[must_use]
    pub fn start(client: Client, reporter: Reporter, metrics: Metrics) -> Self {
        let (queue, events) = mpsc::channel(MAX_QUEUED);
        let recorders = Arc::new(Recorders { client, reporter, by_note: Mutex::default() });
        tokio::spawn(write_all(events, move |event, object| {
            let recorder = recorders.of_note(event.note.as_deref().unwrap_or_default());
            async move { write(&recorder, &event, &object).await }
        }));
        Self { queue, metrics }
    }

    /// Waits until what was handed over is written, but not for long: the program ends.
    pub async fn flush(&self) {
        let written = async {
            while self.queue.capacity() < self.queue.max_capacity() {
                sleep(FLUSH_POLL).await;
            }
            // The last one may be under way.
            sleep(FLUSH_POLL).await;
        };
        if timeout(FLUSH_TIMEOUT, written).await.is_err() {
            tracing::warn!("ending before all events are written");
        }
    }

    /// Reports something that the operator did.
    pub fn normal(&self, object: &ObjectReference, reason: &str, note: &str) {
        self.publish(object, EventType::Normal, reason, note);
    }

    /// Reports something that a user should look at.
    pub fn warning(&self, object: &ObjectReference, reason: &str, note: &str) {
        self.publish(object, EventType::Warning, reason, note);
    }

    /// Reports what stays behind an object that goes, by what kind of thing that is. Kubernetes takes no event in a namespace that is being deleted, which is where things
    /// are left behind: the log and a metric have it in any case.
    pub fn orphaned(&self, object: &ObjectReference, kind: &'static str, note: &str) {
        self.metrics.orphaned(kind);
        let (namespace, name) = (object.namespace.as_deref(), object.name.as_deref());
        tracing::warn!(namespace, name, kind, note, "left something behind");
        self.warning(object, "Orphaned", note);
    }

    /// Reports what was done in JetStream; `lost` is what was lost with a thing that had to be recreated. Its creation is no event: the
    /// condition says that it is there.
    pub fn reconciled<I>(
        &self,
        object: &ObjectReference,
        kind: &str,
        reconciled: &Reconciled<I>,
        lost: &str,
    ) {
        match &reconciled.result {
            _ if reconciled.recreated => {
                self.warning(object, "Recreated", &format!("the {kind} was gone and was recreated: {lost}"));
            }
            OperationResult::Updated(fields) => {
                self.normal(object, "Updated", &format!("updated {}", fields.join(", ")));
            }
            OperationResult::Corrected(fields) => {
                let note = format!("corrected what another writer had changed: {}", fields.join(", "));
                self.warning(object, "DriftRepaired", &note);
            }
            OperationResult::Adopted { adoption, fields } => {
                let (reason, how) = match adoption {
                    Adoption::Unowned => ("Adopted", format!("adopted the {kind}, which had no owner")),
                    Adoption::TakenFrom(owner) => ("TookOver", format!("took over the {kind} from {owner}")),
                };
                // The mark is always written.
                let changed: Vec<_> = fields.iter().copied().filter(|field| *field != METADATA).collect();
                let note =
                    if changed.is_empty() { how } else { format!("{how}: changed {}", changed.join(", ")) };
                self.normal(object, reason, &note);
            }
            OperationResult::Created | OperationResult::Unchanged | OperationResult::Blocked(_) => {}
        }
    }

    fn publish(&self, object: &ObjectReference, type_: EventType, reason: &str, note: &str) {
        tracing::info!(reason, note, "recording an event");
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(cut(note, MAX_NOTE_BYTES).into_owned()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if self.queue.try_send((event, object.clone())).is_err() {
            tracing::warn!(reason, "dropped an event: too many wait to be written");
        }
    }
}

/// Writes what is queued, in its order, for as long as there is a queue.
async fn write_all<T, F>(mut queue: mpsc::Receiver<(Event, T)>, write: impl Fn(Event, T) -> F)
where
    F: Future<Output = ()>,
{
    let limit = RateLimit::new(EVENTS_PER_SECOND);
    while let Some((event, object)) = queue.recv().await {
        limit.acquire().await;
        write(event, object).await;
    }
}

/// An event that cannot be written is logged and no error: it would only repeat what is done already.
async fn write(recorder: &Recorder, event: &Event, object: &ObjectReference) {
    let reason = &event.reason;
    match timeout(WRITE_TIMEOUT, recorder.publish(event, object)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(reason, error = error_chain(&error), "failed to write an event"),
        Err(_) => tracing::warn!(reason, "failed to write an event: Kubernetes did not answer"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_events_is_handed_over_at_once_and_written_ten_a_second() {
        let (queue, events) = mpsc::channel(MAX_QUEUED);
        let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
        let begun = Instant::now();
        let written = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&written);
        let writing = tokio::spawn(write_all(events, move |event, _| {
            log.lock().push((begun.elapsed(), event.reason));
            // Kubernetes is slow.
            sleep(Duration::from_millis(1))
        }));
        let events = Events { queue, metrics };
        for number in 0..2 * MAX_QUEUED {
            events.warning(&ObjectReference::default(), &number.to_string(), "words");
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        drop(events);
        writing.await.unwrap();
        let written = written.lock();
        assert_eq!(written.len(), MAX_QUEUED);
        for (number, (at, reason)) in (0_u32..).zip(written.iter()) {
            assert_eq!(*reason, number.to_string());
            // A second's worth goes at once.
            assert!(
                *at >= Duration::from_secs(1) / EVENTS_PER_SECOND * number.saturating_sub(EVENTS_PER_SECOND)
            );
        }
    }
}
