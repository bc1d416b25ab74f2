//! The load: a stream with partitions, its JetStream consumers, the bucket of the protocol, and events of many keys.

use std::{collections::BTreeMap, time::Duration};

use async_nats::{
    HeaderMap,
    jetstream::{Context, consumer, context::PublishError, publish::PublishAck, stream},
};
use futures::{StreamExt, stream::iter};
use jetwright_partitions::{
    keys::{BUCKET_STREAM, ConsumerId, SUBJECT_PREFIX},
    subjects::Partitions,
};
use jetwright_testing::await_until;
use tokio::{
    sync::oneshot::{self, error::TryRecvError},
    task::JoinHandle,
    time::interval,
};

/// The stream, where nothing else is said.
const STREAM: &str = "orders";
/// Publishes under way at once.
const IN_FLIGHT: usize = 256;
/// What waits is asked for no more often than this.
const MIN_PACE: Duration = Duration::from_millis(20);
/// A stream that lost its leader takes some seconds.
const STORED: Duration = Duration::from_mins(1);

/// What is loaded.
#[derive(Clone, Debug)]
pub struct Load {
    jetstream: Context,
    stream: String,
    replicas: usize,
    partitions: Partitions,
    count: u32,
    /// How many events of each key were stored.
    pub published: BTreeMap<String, u64>,
}

impl Load {
    /// For a stream and consumers that an operator makes, with so many replicas and partitions.
    #[must_use]
    pub fn new(jetstream: Context, replicas: usize, count: u32, keys: u32) -> Self {
        let published = (0..keys).map(|key| (format!("k{key}"), 0)).collect();
        let partitions = partitions_of(STREAM, count);
        Self { jetstream, stream: STREAM.to_owned(), replicas, partitions, count, published }
    }

    /// The same for a stream of another name, whose subjects begin with it.
    #[must_use]
    pub fn of_stream(self, stream: &str) -> Self {
        let partitions = partitions_of(stream, self.count);
        Self { stream: stream.to_owned(), partitions, ..self }
    }

    /// The same with another number of partitions.
    #[must_use]
    pub fn of_partitions(self, count: u32) -> Self {
        let partitions = partitions_of(&self.stream, count);
        Self { partitions, count, ..self }
    }

    /// Makes everything that processes need, with so many replicas and partitions.
    pub async fn prepare(jetstream: Context, replicas: usize, count: u32, keys: u32) -> Self {
        let load = Self::new(jetstream, replicas, count, keys);
        load.create_bucket().await;
        load.create_stream().await;
        load
    }

    /// The consumer, as it is called in keys.
    #[must_use]
    pub fn consumer() -> ConsumerId {
        ConsumerId { stream: STREAM.to_owned(), consumer: "fulfilment".to_owned() }
    }

    /// Its partitions.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Makes the bucket, as the operator would with the first consumer that needs it.
    pub async fn create_bucket(&self) {
        let config = stream::Config {
            name: BUCKET_STREAM.to_owned(),
            subjects: vec![format!("{SUBJECT_PREFIX}>")],
            num_replicas: self.replicas,
            max_messages_per_subject: 1,
            discard: stream::DiscardPolicy::New,
            deny_delete: true,
            deny_purge: true,
            allow_message_ttl: true,
            ..Default::default()
        };
        self.create(config).await;
    }

    async fn create_stream(&self) {
        let config = stream::Config {
            name: self.stream.clone(),
            subjects: vec![self.partitions.transform_source().to_owned()],
            subject_transform: Some(stream::SubjectTransform {
                source: self.partitions.transform_source().to_owned(),
                destination: self.partitions.transform_destination(),
            }),
            num_replicas: self.replicas,
            // Many more than wait at once: a server that starts again reads all that there is.
            max_messages: 200_000,
            ..Default::default()
        };
        let stream = self.create(config).await;
        for partition in 0..self.count {
            let filters = self.partitions.filters_of(partition, &[]);
            let filters = filters.unwrap_or_else(|error| panic!("the filters of a partition: {error}"));
            let config = consumer::pull::Config {
                durable_name: Some(format!("fulfilment-p{partition}")),
                filter_subjects: filters,
                ack_wait: Duration::from_secs(10),
                max_ack_pending: 256,
                num_replicas: self.replicas,
                ..Default::default()
            };
            await_until("a consumer to be made", STORED, async || {
                stream.create_consumer(config.clone()).await
            })
            .await;
        }
    }

    async fn create(&self, config: stream::Config) -> stream::Stream {
        await_until("a stream to be made", STORED, async || {
            self.jetstream.create_stream(config.clone()).await
        })
        .await
    }

    /// Publishes one more event of each key, and returns when all are stored. An event that may have been stored is published again
    /// with the id that it had, so that it is stored once.
    pub async fn publish_round(&mut self) {
        let events: Vec<_> = self.published.iter().map(|(key, number)| (key.clone(), *number)).collect();
        let publishes = events.into_iter().map(|(key, number)| self.store_surely(key, number));
        iter(publishes).buffer_unordered(IN_FLIGHT).collect::<()>().await;
        self.published.values_mut().for_each(|number| *number += 1);
    }

    /// Waits until every event is acknowledged.
    pub async fn await_drained(&self, bound: Duration) {
        await_until("all events to be acknowledged", bound, async || self.ensure_drained().await).await;
    }

    /// Makes sure that every event is acknowledged.
    ///
    /// # Errors
    ///
    /// Some are not, or a consumer is not answered for.
    pub async fn ensure_drained(&self) -> anyhow::Result<()> {
        let unsettled =
            |info: consumer::Info| info.num_pending + u64::try_from(info.num_ack_pending).unwrap_or(0);
        let left: Vec<_> = self.consumers().await?.into_iter().map(unsettled).collect();
        anyhow::ensure!(left.iter().sum::<u64>() == 0, "events that are left, by partition: {left:?}");
        Ok(())
    }

    /// What JetStream counts of each partition's consumer.
    ///
    /// # Errors
    ///
    /// A consumer is not answered for.
    pub async fn consumers(&self) -> anyhow::Result<Vec<consumer::Info>> {
        let stream = self.jetstream.get_stream_no_info(&self.stream).await?;
        let mut infos = Vec::new();
        for partition in 0..self.count {
            infos.push(stream.consumer_info(format!("fulfilment-p{partition}")).await?);
        }
        Ok(infos)
    }

    /// Waits until events of each partition are settled after now.
    pub async fn await_progress(&self, bound: Duration) {
        let floors = async || {
            let infos = self.consumers().await?;
            anyhow::Ok(infos.iter().map(|info| info.ack_floor.stream_sequence).collect::<Vec<_>>())
        };
        let before = await_until("the consumers", bound, floors).await;
        await_until("events of each partition to be handled", bound, async || {
            let now = floors().await?;
            let has_moved = now.iter().zip(&before).all(|(now, before)| now > before);
            anyhow::ensure!(has_moved, "acknowledged up to {now:?}, from {before:?}");
            anyhow::Ok(())
        })
        .await;
    }

    /// Publishes round after round until it is told to stop.
    #[must_use]
    pub fn publish_all_the_time(mut self, pace: Pace) -> Publishing {
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut rounds = interval(if let Pace::Every(time) = pace { time } else { MIN_PACE });
            while stopped.try_recv() == Err(TryRecvError::Empty) {
                rounds.tick().await;
                if self.has_room(pace).await {
                    self.publish_round().await;
                }
            }
            self
        });
        Publishing { stop, task }
    }

    async fn store_surely(&self, key: String, number: u64) {
        await_until("an event to be stored", STORED, async || self.store(&key, number).await).await;
    }

    async fn store(&self, key: &str, number: u64) -> Result<PublishAck, PublishError> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("{key}-{number}"));
        headers.insert("Event-Type", "Numbered");
        let subject = format!("{}.{key}.placed", self.stream);
        self.jetstream.publish_with_headers(subject, headers, number.to_string().into()).await?.await
    }

    async fn has_room(&self, pace: Pace) -> bool {
        let Pace::Within(most) = pace else { return true };
        let infos = self.consumers().await.unwrap_or_default();
        !infos.is_empty() && infos.iter().map(|info| info.num_pending).sum::<u64>() < most
    }
}

/// How fast events are published.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// A round in this time.
    Every(Duration),
    /// As fast as they are stored, while fewer than so many events wait for delivery.
    Within(u64),
}

/// A load that is published all the time.
#[derive(Debug)]
pub struct Publishing {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Load>,
}

impl Publishing {
    /// Ends it after the present round.
    pub async fn stop(self) -> Load {
        let _ = self.stop.send(());
        self.task.await.unwrap_or_else(|error| panic!("publishing failed: {error}"))
    }
}

fn partitions_of(stream: &str, count: u32) -> Partitions {
    Partitions::new(&format!("{stream}.*.*"), &[2], count)
        .unwrap_or_else(|error| panic!("the stream's partitions: {error}"))
}

/// The monotonic clock that all processes of the machine share.
#[must_use]
pub fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
}
