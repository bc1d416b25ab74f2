//! Finds deliveries that the client cannot parse, and dead-letters them: JetStream stores any bytes, and the client (async-nats 0.51) closes its
//! connection when it receives some of them, at every delivery.
//!
//! After a connection ended, every delivery that may be unsettled is read in JSON, each event once, before more is pulled;
//! if that takes long, one event is pulled at a time meanwhile, so that another loss of the connection identifies its event. An event that
//! does not parse becomes a dead letter with its bytes unchanged, and its delivery is terminated. If another process has the delivery it
//! does the same, which does no harm.

use std::{
    collections::{HashMap, VecDeque},
    pin::pin,
    sync::atomic::Ordering,
    time::Duration,
};

use jetwright_nats::{ACK_PREFIX, backoff::pause};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::super::{
    ack::{IN_PROGRESS, Settlement},
    attempt,
    observation::ConsumerInfo,
    source::ConsumerLoop,
    suspicion::Scan,
};
use crate::{Error, ErrorKind, Handler, store::RawEvent};

/// Events that are read before any is pulled.
const INITIAL_SCAN_EVENTS: usize = 2_000;
/// Minimum time between two reads.
const MIN_INTERVAL: Duration = Duration::from_micros(500);
/// How long the server may take to confirm a termination.
const TERM_CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum time between two attempts at events whose dead letters could not be written.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Maximum events whose dead letters could not be written and that stay in flight meanwhile. Beyond that nothing is pulled.
const MAX_PENDING: usize = 1_000;
/// Maximum events that ended and are remembered.
const MAX_ENDED: usize = 1_000;

/// Scans whenever an event is suspected. Never returns.
pub(in crate::consumer) async fn run<H: Handler>(consumer: &ConsumerLoop<H>) {
    let (created, scanned_up_to) = (String::new(), HashMap::new());
    let (pending, ended) = (Vec::new(), VecDeque::new());
    let mut scanner = Scanner { consumer, created, scanned_up_to, pending, ended };
    loop {
        tokio::select! {
            () = consumer.suspicion.suspected.notified() => {
                let suspicions = consumer.suspicion.suspicions.load(Ordering::SeqCst);
                scanner.scan_to_the_end().await;
                // It may be suspected again meanwhile.
                if consumer.suspicion.suspicions.load(Ordering::SeqCst) == suspicions {
                    consumer.suspicion.scan.send_replace(Scan::Idle);
                    consumer.capacity_freed.notify_one();
                }
            }
            () = sleep(scanner.hold_interval()), if !scanner.pending.is_empty() => scanner.retry_pending().await,
        }
    }
}

struct Scanner<'a, H> {
    consumer: &'a ConsumerLoop<H>,
    /// The consumer's epoch: events of a recreated stream are others.
    created: String,
    /// By filter. Messages never change, so none is read twice.
    scanned_up_to: HashMap<String, u64>,
    /// Events that the client cannot parse, and whose dead letters could not be written.
    pending: Vec<ForeignEvent>,
    /// Events that ended. They are redelivered if the consumer is reset, or the server forgets the termination.
    ended: VecDeque<ForeignEvent>,
}

/// An event that the client cannot parse.
#[derive(Clone, Copy, Debug)]
struct ForeignEvent {
    sequence: u64,
    /// When it was stored, in nanoseconds since 1970.
    time: i128,
}

/// What became of an event that the client cannot parse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// It is dead-lettered where that is wanted, and its delivery is terminated.
    Terminated,
    /// It is not in the stream any more, or its consumer was recreated: nothing is left to do.
    Gone,
    /// Neither yet.
    Pending,
}

impl<H: Handler> Scanner<'_, H> {
    /// Scans, again if JetStream does not respond.
    async fn scan_to_the_end(&mut self) {
        for attempt in 1.. {
            let observation = self.consumer.discovery.wait_for_consumer().await;
            if observation.info.num_ack_pending == 0 {
                return;
            }
            let Err(error) = self.scan(&observation.info).await else { return };
            let message = "failed to read events that the NATS client may not parse";
            let (binding, partition) = (self.consumer.name(), self.consumer.partition());
            tracing::warn!(binding, partition, %error, "{message}");
            if error.kind() == ErrorKind::Refused {
                return;
            }
            sleep(pause(attempt + 1, rand::random())).await;
        }
    }

    async fn scan(&mut self, info: &ConsumerInfo) -> Result<(), Error> {
        let consumer = self.consumer;
        let (stream, newest) = (&consumer.binding.stream, info.delivered.stream_seq);
        if self.created != info.created {
            self.created.clone_from(&info.created);
            self.scanned_up_to.clear();
            self.pending.clear();
            self.ended.clear();
        }
        let unsettled = info.ack_floor.stream_seq + 1..=newest;
        for event in self.ended.clone() {
            if unsettled.contains(&event.sequence)
                && let Some(event) = consumer.reader.raw(stream, event.sequence).await?
            {
                self.examine(event).await;
            }
        }
        // Most often it is the one that was delivered last.
        if let Some(event) = consumer.reader.raw(stream, newest).await? {
            self.examine(event).await;
        }
        let (mut not_before, mut scanned) = (Instant::now(), 0);
        for filter in info.config.filters() {
            let scanned_up_to = self.scanned_up_to.get(filter).copied().unwrap_or_default();
            let mut next = scanned_up_to.max(info.ack_floor.stream_seq) + 1;
            while next <= newest {
                let Some(event) = consumer.reader.next_raw(stream, filter, next).await? else { break };
                if event.sequence > newest {
                    break;
                }
                next = event.sequence + 1;
                self.scanned_up_to.insert(filter.to_owned(), event.sequence);
                self.examine(event).await;
                scanned += 1;
                if scanned == INITIAL_SCAN_EVENTS {
                    consumer.suspicion.scan.send_replace(Scan::Background);
                }
                not_before += MIN_INTERVAL;
                sleep_until(not_before).await;
            }
        }
        Ok(())
    }

    /// Dead-letters an event that the client cannot parse, now or later.
    async fn examine(&mut self, event: RawEvent) {
        let foreign = ForeignEvent { sequence: event.sequence, time: event.time.as_nanosecond() };
        let is_known = self.pending.iter().any(|pending| pending.sequence == foreign.sequence);
        if event.unparsable().is_none() || is_known {
            return;
        }
        self.pending.push(foreign);
        let ending = self.end_holding(&event).await;
        self.note_end(foreign, ending);
        while self.pending.len() >= MAX_PENDING {
            sleep(self.hold_interval()).await;
            self.retry_pending().await;
        }
    }

    /// Until their dead letters are written their deliveries stay in progress, so that they are not redelivered.
    async fn hold_pending(&self) {
        // Without the lease another process may have them.
        if self.consumer.tenure.as_ref().is_some_and(|tenure| !tenure.may_hold()) {
            return;
        }
        let client = self.consumer.connection.client();
        for event in &self.pending {
            // If it cannot be sent the connection is lost, and everything is read again.
            let _ = client.publish(self.ack_subject(*event), IN_PROGRESS.into()).await;
        }
    }

    async fn retry_pending(&mut self) {
        self.hold_pending().await;
        let stream = &self.consumer.binding.stream;
        for event in self.pending.clone() {
            let ending = match self.consumer.reader.raw(stream, event.sequence).await {
                Ok(Some(raw)) if raw.time.as_nanosecond() == event.time => self.end_holding(&raw).await,
                Ok(_) => Ending::Gone,
                Err(_) => Ending::Pending,
            };
            self.note_end(event, ending);
        }
    }

    fn note_end(&mut self, event: ForeignEvent, ending: Ending) {
        if ending == Ending::Pending {
            return;
        }
        self.pending.retain(|pending| pending.sequence != event.sequence);
        if self.ended.iter().any(|ended| ended.sequence == event.sequence) {
            return;
        }
        if ending == Ending::Terminated {
            attempt::record_foreign(&self.consumer.runner, event.sequence);
        }
        self.ended.push_back(event);
        if self.ended.len() > MAX_ENDED {
            self.ended.pop_front();
        }
    }

    /// How often JetStream gets in-progress acknowledgements of what is pending.
    fn hold_interval(&self) -> Duration {
        RETRY_INTERVAL.min(self.consumer.ack_wait() / 4)
    }

    /// As [`end`](Self::end), while everything that is pending stays in progress.
    async fn end_holding(&self, event: &RawEvent) -> Ending {
        let mut ending = pin!(self.end(event));
        loop {
            self.hold_pending().await;
            tokio::select! {
                ended = &mut ending => return ended,
                () = sleep(self.hold_interval()) => {}
            }
        }
    }

    /// Writes a dead letter and terminates the delivery.
    async fn end(&self, event: &RawEvent) -> Ending {
        // The server compares only names and the sequence: a termination must not reach another consumer.
        let observation = self.consumer.discovery.wait_for_consumer().await;
        if observation.info.created != self.created {
            return Ending::Gone;
        }
        // The next owner of the partition finds the event itself.
        if self.consumer.tenure.as_ref().is_some_and(|tenure| tenure.is_over()) {
            return Ending::Pending;
        }
        let sequence = event.sequence;
        let reason = match attempt::keep_foreign(self.consumer, event).await {
            Ok(reason) => reason,
            Err(error) => {
                let (binding, partition) = (self.consumer.name(), self.consumer.partition());
                tracing::error!(binding, partition, sequence, %error, "failed to write a dead letter, will retry");
                return Ending::Pending;
            }
        };
        let foreign = ForeignEvent { sequence, time: event.time.as_nanosecond() };
        let client = self.consumer.connection.client();
        let termination = client.request(self.ack_subject(foreign), Settlement::Term { reason }.payload());
        if !matches!(timeout(TERM_CONFIRM_TIMEOUT, termination).await, Ok(Ok(_))) {
            tracing::warn!(
                binding = self.consumer.name(),
                partition = self.consumer.partition(),
                sequence,
                "failed to terminate a delivery, will retry"
            );
            return Ending::Pending;
        }
        Ending::Terminated
    }

    /// Its acknowledgement subject.
    fn ack_subject(&self, event: ForeignEvent) -> String {
        let ConsumerLoop { binding, durable, .. } = self.consumer;
        let ForeignEvent { sequence, time } = event;
        format!("{ACK_PREFIX}{}.{durable}.1.{sequence}.1.{time}.0", binding.stream)
    }
}
