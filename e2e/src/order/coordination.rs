//! The operator's part of the protocol, for tests that need no operator: the same decisions, over a client of its own.

use std::{
    future::pending,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_nats::{
    Client, HeaderMap, header,
    jetstream::{self, stream},
};
use jetwright_partitions::{
    actions::{Action, Value},
    coordinator::{Coordinator, Declared},
    keys::{BUCKET_STREAM, ConsumerId, Key, SUBJECT_PREFIX},
    lease::Clocks,
    write::Answer,
};
use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{interval, timeout},
};

const POLL_INTERVAL: Duration = Duration::from_millis(50);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// A leader, until it is dropped.
#[derive(Debug)]
pub struct Coordination {
    task: JoinHandle<()>,
    ended: mpsc::UnboundedSender<(String, u64)>,
}

impl Drop for Coordination {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Coordination {
    /// Leads, with what is declared of one consumer at each moment.
    #[must_use]
    pub fn lead(client: Client, consumer: ConsumerId, declared: watch::Receiver<Declared>) -> Self {
        let (ended, ended_containers) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let jetstream = jetstream::new(client.clone());
            let Ok(bucket) = jetstream.get_stream_no_info(BUCKET_STREAM).await else { return };
            let coordinator = Coordinator::new("test", "east.1", clocks());
            let leader =
                Leader { client, bucket, coordinator, consumer, declared, ended_containers, newest: 0 };
            leader.run().await;
        });
        Self { task, ended }
    }

    /// Kubernetes reports that the container of this pod ended now.
    pub fn container_ended(&self, uid: &str) {
        // Times are of whole seconds, and a member that joined in this one is meant too.
        drop(self.ended.send((uid.to_owned(), clocks().wall.as_secs() + 1)));
    }
}

struct Leader {
    client: Client,
    bucket: stream::Stream<()>,
    coordinator: Coordinator,
    consumer: ConsumerId,
    declared: watch::Receiver<Declared>,
    ended_containers: mpsc::UnboundedReceiver<(String, u64)>,
    /// The newest revision that was seen.
    newest: u64,
}

#[derive(Deserialize)]
struct Stored {
    seq: u64,
}

impl Leader {
    async fn run(mut self) {
        let mut polls = interval(POLL_INTERVAL);
        loop {
            polls.tick().await;
            let declared = self.declared.borrow().clone();
            self.coordinator.declare(self.consumer.clone(), declared);
            self.follow().await;
            while let Ok((uid, ended_at)) = self.ended_containers.try_recv() {
                self.coordinator.container_ended(&uid, ended_at);
            }
            for action in self.coordinator.poll(clocks()) {
                self.carry_out(action).await;
            }
        }
    }

    /// Reads what changed, from the leader of the bucket's stream.
    async fn follow(&mut self) {
        let subject = format!("{SUBJECT_PREFIX}>");
        loop {
            let next = self.bucket.get_first_raw_message_by_subject(&subject, self.newest + 1);
            match timeout(REQUEST_TIMEOUT, next).await {
                Ok(Ok(message)) => {
                    self.newest = message.sequence;
                    let Some(key) = message.subject.strip_prefix(SUBJECT_PREFIX) else { continue };
                    let Ok(key) = key.parse::<Key>() else { continue };
                    let value = Value::Bytes(message.sequence, &message.payload);
                    drop(self.coordinator.observed(&key, value, clocks()));
                }
                Ok(Err(error)) if error.kind() == stream::LastRawMessageErrorKind::NoMessageFound => {
                    return self.coordinator.synced();
                }
                _ => return,
            }
        }
    }

    async fn carry_out(&mut self, action: Action) {
        match action {
            Action::Put { key, value } => self.write(key, value, None).await,
            Action::Write { key, value, expected } => self.write(key, value, Some(expected)).await,
            Action::Read(key) => {
                let found =
                    timeout(REQUEST_TIMEOUT, self.bucket.get_last_raw_message_by_subject(&key.subject()))
                        .await;
                let value = match &found {
                    Ok(Ok(message)) => Value::Bytes(message.sequence, &message.payload),
                    Ok(Err(error)) if error.kind() == stream::LastRawMessageErrorKind::NoMessageFound => {
                        Value::Absent(0)
                    }
                    _ => Value::Unavailable,
                };
                drop(self.coordinator.read(&key, value, clocks()));
            }
            _ => pending().await,
        }
    }

    async fn write(&mut self, key: Key, value: String, expected: Option<u64>) {
        let mut headers = HeaderMap::new();
        if let Some(expected) = expected {
            headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
        }
        let request = self.client.request_with_headers(key.subject(), headers, value.into());
        let stored = match timeout(REQUEST_TIMEOUT, request).await {
            Ok(Ok(answer)) => serde_json::from_slice::<Stored>(&answer.payload).ok(),
            _ => None,
        };
        let answer = stored.map_or(Answer::Unsure, |stored| Answer::Stored(stored.seq));
        self.coordinator.answered(&key, answer, clocks());
    }
}

fn clocks() -> Clocks {
    let boot = clock_gettime(ClockId::Boottime);
    let boot = Duration::new(boot.tv_sec.unsigned_abs(), u32::try_from(boot.tv_nsec).unwrap_or_default());
    Clocks { boot, wall: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() }
}
