//! Ends recoveries with JetStream's responses: releases what JetStream has forgotten, and puts everything else into its place.

use std::{
    mem,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use jetwright_partitions::recovery::{ConsumerState, Progress};
use tokio::time::Instant;

use super::{Dispatcher, Held, Observation, State};
use crate::{Handler, consumer::source::ConsumerLoop};

/// How long a recovery may take before the log shows what it waits for, and how often.
const RECOVERY_LOG_INTERVAL: Duration = Duration::from_secs(10);

impl<H: Handler> Dispatcher<H> {
    /// JetStream reported what is still owed: when that is nothing, everything continues in the order of the stream.
    pub(super) fn go_on_with_recovery(&mut self, observation: &Arc<Observation>) {
        let Some(order) = &mut self.order else { return };
        let (now, response) = (Instant::now(), observation.response());
        order.recovery.note_leader(&observation.info.cluster.leadership, now.into_std());
        if order.recovery.is_active() && response.state.has_quorum {
            self.release_forgotten(observation);
        }
        let Some(order) = &mut self.order else { return };
        let in_flight = |counted: &_| self.in_flight.unsettled_within(counted);
        let newest = self.in_flight.newest_waiting();
        match order.recovery.observed(response, in_flight, newest) {
            Progress::Unchanged => {}
            progress @ (Progress::Owed(_) | Progress::Unproven) => {
                let took = order.recovery.took(now.into_std());
                if took >= self.recovery_logged_at + RECOVERY_LOG_INTERVAL {
                    self.recovery_logged_at = took;
                    log_recovery(&self.consumer, progress, response.state, took);
                }
            }
            Progress::Complete => {
                let took = order.recovery.took(now.into_std());
                self.recovery_logged_at = Duration::ZERO;
                tracing::info!(
                    binding = self.consumer.name(),
                    partition = self.consumer.partition(),
                    ?took,
                    in_flight = self.in_flight.len(),
                    "recovered the order of events"
                );
                self.requeue();
                self.consumer.recovering.store(false, Ordering::Relaxed);
                // From now on what is owed is on its way.
                self.hurries = false;
                if let Some(tenure) = &self.consumer.tenure {
                    tenure.recovered();
                }
            }
        }
    }

    /// A killed server may have lost its last deliveries, and the next leader delivers them again. Those that have not begun are released, so
    /// that their events come again in the order of the stream. What was delivered after the request was sent comes from the next leader.
    fn release_forgotten(&mut self, observation: &Observation) {
        let delivered = observation.info.delivered.stream_seq;
        let is_forgotten = |held: &Held| {
            held.has_not_begun()
                && !held.is_orphan
                && held.sequence > delivered
                && held.delivered_at < observation.asked_at
        };
        let forgotten = self.in_flight.in_order(is_forgotten);
        if !forgotten.is_empty() {
            tracing::info!(
                binding = self.consumer.name(),
                partition = self.consumer.partition(),
                count = forgotten.len(),
                "released deliveries that JetStream has forgotten and makes again"
            );
        }
        for slot in forgotten {
            if let Some(Held { state: State::Paused(_, timer), .. }) = self.in_flight.get(slot) {
                self.paused.remove(timer);
            }
            self.release(slot);
        }
    }

    /// Puts everything that has not begun, or waits for its next attempt, into its place in the order of the stream.
    fn requeue(&mut self) {
        if let Some(order) = &mut self.order {
            order.queue.clear_waiting();
        }
        for slot in self.in_flight.in_order(Held::has_not_begun) {
            let Some(held) = self.in_flight.get_mut(slot) else { continue };
            let key = held.key;
            if let State::Paused(_, timer) = &held.state {
                self.paused.remove(timer);
                if let State::Paused(delivery, _) = mem::replace(&mut held.state, State::Running) {
                    held.state = State::Waiting(delivery);
                }
            }
            self.enqueue(slot, key);
        }
    }
}

/// Logs what a recovery waits for.
fn log_recovery<H>(consumer: &ConsumerLoop<H>, progress: Progress, state: ConsumerState, took: Duration) {
    let (binding, partition) = (consumer.name(), consumer.partition());
    if let Progress::Owed(owed) = progress {
        let message = "waiting for deliveries that are unacknowledged elsewhere, to keep the order of events";
        tracing::warn!(binding, partition, owed, ?took, "{message}");
    } else {
        let ConsumerState { pull_requests, is_paused, has_quorum, .. } = state;
        let message =
            "waiting until JetStream shows that it redelivered what was due, to keep the order of events";
        tracing::warn!(binding, partition, pull_requests, is_paused, has_quorum, ?took, "{message}");
    }
}
