//! Asks JetStream for the consumer: waits until it is there, learns which one it is and what it still owes. One question is under way at
//! a time, for all parts of the loop. Never gives up.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use jetwright_nats::{Connection, Request, RequestError, backoff::pause};
use serde::Deserialize;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};

use super::super::ConsumerLoop;
use crate::{Error, Handler};

/// How long one question may take.
const INFO_TIMEOUT: Duration = Duration::from_secs(5);
/// Shortest time between two questions.
const INFO_INTERVAL: Duration = Duration::from_millis(20);

/// What JetStream says of a consumer (NATS ADR-1's `ConsumerInfo`, of which this is a part).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(in crate::consumer) struct ConsumerInfo {
    /// When it was made: one of the same name that was made at another time is another one.
    pub(in crate::consumer) created: String,
    /// The newest delivery.
    pub(in crate::consumer) delivered: SequencePair,
    /// Everything up to here is acknowledged.
    pub(in crate::consumer) ack_floor: SequencePair,
    /// Deliveries that are not settled.
    pub(in crate::consumer) num_ack_pending: u64,
    pub(in crate::consumer) config: ConsumerConfig,
}

/// A delivery's number and its event's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(in crate::consumer) struct SequencePair {
    pub(in crate::consumer) consumer_seq: u64,
    pub(in crate::consumer) stream_seq: u64,
}

/// The limits of pull requests, 0 where there are none, and what is delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(in crate::consumer) struct ConsumerConfig {
    pub(in crate::consumer) max_batch: i64,
    /// In nanoseconds.
    pub(in crate::consumer) max_expires: i64,
    pub(in crate::consumer) max_bytes: i64,
    pub(in crate::consumer) max_waiting: i64,
    /// In nanoseconds.
    pub(in crate::consumer) ack_wait: i64,
    filter_subject: String,
    filter_subjects: Vec<String>,
}

impl ConsumerConfig {
    /// The subjects of the events that it delivers.
    pub(in crate::consumer) fn filters(&self) -> Vec<&str> {
        let several = self.filter_subjects.iter().map(String::as_str);
        let one = Some(self.filter_subject.as_str()).filter(|filter| !filter.is_empty());
        let filters: Vec<_> = several.chain(one).collect();
        if filters.is_empty() { vec![">"] } else { filters }
    }
}

/// An answer of JetStream, and when it was asked for: what happened later may not be in it.
#[derive(Debug)]
pub(in crate::consumer) struct Observation {
    pub(in crate::consumer) info: ConsumerInfo,
    pub(in crate::consumer) asked_at: Instant,
    /// How many consumers of this name there have been by now.
    pub(in crate::consumer) incarnation: u64,
}

/// Where the newest answer is, and where another one is asked for.
#[derive(Debug, Default)]
pub(in crate::consumer) struct Discovery {
    wanted: Notify,
    latest: watch::Sender<Option<Arc<Observation>>>,
}

impl Discovery {
    /// Asks for an answer to a question that is put from now on.
    pub(in crate::consumer) fn recheck(&self) {
        self.wanted.notify_one();
    }

    pub(in crate::consumer) fn subscribe(&self) -> watch::Receiver<Option<Arc<Observation>>> {
        self.latest.subscribe()
    }

    /// How many consumers of this name there have been by now.
    pub(in crate::consumer) fn incarnation(&self) -> u64 {
        self.latest.borrow().as_ref().map_or(0, |latest| latest.incarnation)
    }

    /// Waits for the answer to a question that is put from now on.
    pub(in crate::consumer) async fn wait_for_consumer(&self) -> Arc<Observation> {
        let asked = Instant::now();
        let mut latest = self.subscribe();
        self.recheck();
        loop {
            if let Some(found) = latest.borrow_and_update().as_ref().filter(|found| found.asked_at >= asked) {
                return Arc::clone(found);
            }
            if latest.changed().await.is_err() {
                // Not while this is there to be asked.
                std::future::pending::<()>().await;
            }
        }
    }

    fn publish(&self, info: ConsumerInfo, asked_at: Instant) {
        self.latest.send_modify(|latest| {
            let incarnation = match latest.as_ref() {
                None => 1,
                Some(before) => before.incarnation + u64::from(before.info.created != info.created),
            };
            *latest = Some(Arc::new(Observation { info, asked_at, incarnation }));
        });
    }
}

/// Answers who asks for the consumer. Until it is there the gate says what is missing. Never returns.
pub(in crate::consumer) async fn run<H: Handler>(consumer: &ConsumerLoop<H>) {
    let mut logged = String::new();
    loop {
        consumer.discovery.wanted.notified().await;
        for attempt in 1.. {
            let asked_at = Instant::now();
            match ask(&consumer.connection, &consumer.binding.stream, &consumer.binding.consumer).await {
                Ok(info) => {
                    if !logged.is_empty() && consumer.is_serving.load(Ordering::Relaxed) {
                        consumer.gate.open();
                    }
                    logged.clear();
                    consumer.discovery.publish(info, asked_at);
                    break;
                }
                Err(why) => {
                    consumer.unavailable(&why);
                    if why != logged {
                        tracing::warn!(binding = consumer.name(), why, "waiting for the consumer");
                        logged = why;
                    }
                    sleep(pause(attempt + 1, rand::random())).await;
                }
            }
        }
        sleep(INFO_INTERVAL).await;
    }
}

async fn ask(connection: &Connection, stream: &str, consumer: &str) -> Result<ConsumerInfo, String> {
    let object = format!("consumer {consumer} of stream {stream}");
    let request = Request {
        subject: connection.api_subjects().consumer_info(stream, consumer),
        payload: bytes::Bytes::new(),
        deadline: Instant::now() + INFO_TIMEOUT,
    };
    match connection.request(request).await {
        Ok(info) => Ok(info),
        // 10059 and 10014: not found; the description says which.
        Err(RequestError::Refused(error)) => Err(format!("{object}: {error}")),
        Err(other) => Err(Error::of_request(object, &other).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(created: &str) -> ConsumerInfo {
        let json = format!(
            r#"{{"created": "{created}", "delivered": {{"consumer_seq": 3, "stream_seq": 9}},
                "ack_floor": {{"consumer_seq": 1, "stream_seq": 4}}, "num_ack_pending": 2, "config": {{"max_batch": 5}}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn a_consumer_that_was_made_at_another_time_is_another_incarnation() {
        let discovery = Discovery::default();
        let incarnation = |created| {
            discovery.publish(info(created), Instant::now());
            discovery.subscribe().borrow().as_ref().map(|found| found.incarnation)
        };
        assert_eq!(["a", "a", "b", "a"].map(incarnation), [Some(1), Some(1), Some(2), Some(3)]);
    }

    #[test]
    fn filters_are_one_several_or_everything() {
        let filters = |json| serde_json::from_str::<ConsumerConfig>(json).unwrap().filters().join(" ");
        assert_eq!(filters(r#"{"filter_subject": "a"}"#), "a");
        assert_eq!(filters(r#"{"filter_subjects": ["a", "b"]}"#), "a b");
        assert_eq!(filters("{}"), ">");
    }
}
