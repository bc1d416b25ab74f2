//! Asks JetStream for the consumer: waits until it exists, and learns its creation time and what it still owes. One request is in flight
//! at a time, for all parts of the loop. Never stops.

use std::{sync::atomic::Ordering, time::Duration};

use jetwright_nats::{Connection, Request, RequestError, backoff::pause};
use tokio::time::{Instant, sleep};

use super::super::{observation::ConsumerInfo, source::ConsumerLoop};
use crate::{Error, Handler};

/// Timeout of one request.
const INFO_TIMEOUT: Duration = Duration::from_secs(5);
/// Minimum time between two requests.
const INFO_INTERVAL: Duration = Duration::from_millis(20);

/// Answers all parts that ask for the consumer. Until it exists the gate says what is missing. Never returns.
pub(in crate::consumer) async fn run<H: Handler>(consumer: &ConsumerLoop<H>) {
    let mut logged = String::new();
    loop {
        consumer.discovery.wanted.notified().await;
        for attempt in 1.. {
            let asked_at = Instant::now();
            match ask(&consumer.connection, &consumer.binding.stream, &consumer.durable).await {
                // It counts nothing yet.
                Ok(info) if consumer.discovery.is_of_starting_server(&info) => {
                    sleep(pause(attempt, rand::random())).await;
                }
                Ok(info) => {
                    if !logged.is_empty() && consumer.is_serving.load(Ordering::Relaxed) {
                        consumer.gate.open();
                    }
                    logged.clear();
                    consumer.runner.templates.set(&published(consumer, info.config.filters()));
                    consumer.discovery.publish(info, asked_at);
                    break;
                }
                Err(why) => {
                    consumer.unavailable(&why);
                    if why != logged {
                        tracing::warn!(
                            binding = consumer.name(),
                            partition = consumer.partition(),
                            why,
                            "waiting for the consumer"
                        );
                        logged = why;
                    }
                    sleep(pause(attempt + 1, rand::random())).await;
                }
            }
        }
        sleep(INFO_INTERVAL).await;
    }
}

/// The filters as they are of subjects without the number of a partition.
fn published<'f, H>(consumer: &ConsumerLoop<H>, filters: Vec<&'f str>) -> Vec<&'f str> {
    let Some(partitions) = consumer.partitions() else { return filters };
    filters.into_iter().map(|filter| partitions.published_filter(filter)).collect()
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
