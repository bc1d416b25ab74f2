//! A watch: what keys have, and each change. It is delivered, and begins again where a delivery was lost. Where that ends before everything is
//! told, the rest is read, so that nobody can end watches by writing what a client cannot receive.

use std::time::Duration;

use bytes::Bytes;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Bucket, Failure,
    deliveries::{Begin, Deliveries},
    entry::Change,
    reading::Told,
};
use crate::{backoff::pause, jetstream_error::STREAM_NOT_FOUND};

/// Maximum pause between two attempts to begin.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// How often it is read what is new, where it is not delivered.
const READ_INTERVAL: Duration = Duration::from_secs(1);
/// How long nothing is delivered after a message that ends connections: who wrote one may write more.
const CALM: Duration = Duration::from_mins(1);
/// Events that wait to be read. The server waits, too, when there are more.
const CAPACITY: usize = 256;

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// A key has this value. It may be told again, or after a newer one: the revision says which is newer.
    Value {
        /// The key.
        key: String,
        /// Number of the write that stored it.
        revision: u64,
        /// The value.
        value: Bytes,
    },
    /// A key was deleted.
    Deleted {
        /// The key.
        key: String,
        /// Number of the write that deleted it.
        revision: u64,
    },
    /// Everything that there was when the watch began, or began again, is told. What was not is not there.
    Synced,
    /// The bucket does not exist. The watch begins when it does.
    Missing,
    /// Changes may be missed until the next [`Synced`](Self::Synced), and why. The watch begins again by itself.
    Lost(String),
}

impl WatchEvent {
    pub(super) fn of(key: String, revision: u64, change: Change) -> Self {
        match change {
            Change::Value(value) => Self::Value { key, revision, value },
            Change::Deletion => Self::Deleted { key, revision },
        }
    }
}

/// Tells what keys have, until it is dropped.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<WatchEvent>,
    _task: AbortOnDropHandle<()>,
}

impl Watch {
    pub(super) fn begin(bucket: Bucket, filters: &[String]) -> Self {
        let subjects: Vec<_> = filters.iter().map(|filter| format!("{}{filter}", bucket.prefix)).collect();
        let (sender, events) = mpsc::channel(CAPACITY);
        let mut watcher = Watcher { bucket, told: Told::new(&subjects), begin: Begin::WithAll, sender };
        let task = tokio::spawn(async move { watcher.run().await });
        Self { events, _task: AbortOnDropHandle::new(task) }
    }

    /// The next event. Cancel safe.
    pub async fn next(&mut self) -> WatchEvent {
        match self.events.recv().await {
            Some(event) => event,
            // Not while this exists.
            None => std::future::pending().await,
        }
    }
}

/// Why a watch has to begin again.
pub(super) enum Ended {
    Missing,
    Lost(String),
    /// Nobody reads what it tells.
    Unread,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(error) if error.err_code == STREAM_NOT_FOUND => Self::Missing,
            failure => Self::Lost(failure.to_string()),
        }
    }
}

struct Watcher {
    bucket: Bucket,
    told: Told,
    /// How the next deliveries begin.
    begin: Begin,
    sender: mpsc::Sender<WatchEvent>,
}

impl Watcher {
    async fn run(&mut self) {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (was_synced, ended) = self.follow().await;
            if was_synced {
                attempt = 0;
                self.told.forget();
            }
            let may_be_cut = !was_synced && matches!(ended, Ended::Lost(_));
            if self.say(ended).await.is_err() {
                return;
            }
            if may_be_cut
                && let Err(ended) = self.read_rest().await
                && self.say(ended).await.is_err()
            {
                return;
            }
            sleep(pause(attempt, rand::random()).min(MAX_PAUSE)).await;
        }
    }

    /// Tells why it begins again; an error where nobody reads it.
    async fn say(&mut self, ended: Ended) -> Result<(), Ended> {
        match ended {
            Ended::Missing => {
                // The one that takes its place may be another one.
                self.told.forget();
                self.begin = Begin::WithAll;
                self.send(WatchEvent::Missing).await
            }
            Ended::Lost(why) => self.send(WatchEvent::Lost(why)).await,
            Ended::Unread => Err(Ended::Unread),
        }
    }

    /// Tells what is delivered; returns whether everything was told that there was, and why it ended.
    async fn follow(&mut self) -> (bool, Ended) {
        let begin = std::mem::replace(&mut self.begin, Begin::WithAll);
        let mut deliveries = match Deliveries::open(&self.bucket, &self.told, begin).await {
            Ok(deliveries) => deliveries,
            Err(ended) => return (false, ended),
        };
        loop {
            let told = match deliveries.next().await {
                Ok(event) => {
                    if let WatchEvent::Value { revision, .. } | WatchEvent::Deleted { revision, .. } = &event
                    {
                        self.told.note(*revision);
                    }
                    self.send(event).await
                }
                Err(ended) => Err(ended),
            };
            if let Err(ended) = told {
                return (deliveries.is_synced(), ended);
            }
        }
    }

    /// Tells by reading what was not delivered; and as long as there are messages that must not be delivered, also what is written next.
    async fn read_rest(&mut self) -> Result<(), Ended> {
        let mut is_calm = !self.read().await?;
        self.send(WatchEvent::Synced).await?;
        let mut since = Instant::now();
        while !is_calm {
            sleep(READ_INTERVAL).await;
            let newest = self.told.newest();
            if self.read().await? {
                since = Instant::now();
            }
            is_calm = since.elapsed() >= CALM;
            if is_calm {
                self.begin = Begin::After(newest);
            }
        }
        Ok(())
    }

    /// Reads and tells what is not told yet; returns whether something of it must not be delivered.
    async fn read(&mut self) -> Result<bool, Ended> {
        Ok(self.told.read(&self.bucket, &self.sender).await?.report())
    }

    async fn send(&self, event: WatchEvent) -> Result<(), Ended> {
        self.sender.send(event).await.map_err(|_| Ended::Unread)
    }
}
