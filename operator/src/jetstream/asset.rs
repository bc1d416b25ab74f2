//! What a stream and a consumer have in common: they are read, created, updated and deleted by name, and their configuration is a table
//! of fields. Asks JetStream and decides nothing.

use std::{fmt::Debug, future::Future, hash::Hash};

use jetwright_crds::{AdoptionPolicy, stream::Replicas};
use jetwright_nats::{Api, ApiError};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    config::{Config, Field},
    consumer_config,
    info::{ConsumerInfo, Standing, StreamInfo},
    ownership::Owner,
    stream_config,
};
use crate::outcome::CreationTime;

/// A kind of things in JetStream.
pub trait Asset: Debug + Send + Sync + Sized + 'static {
    /// What the kind is called, which is also what its name in a spec begins with.
    const KIND: &'static str;
    const FIELDS: &'static [Field];
    /// What to do where a field would have to change that never does.
    const REMEDY: &'static str;

    type Key: Clone + Debug + Eq + Hash + Send + Sync;
    type Info: Clone + Debug + CreationTime + Serialize + DeserializeOwned + Send + Sync;

    fn name(key: &Self::Key) -> &str;
    /// The thing in words.
    fn describe(key: &Self::Key) -> String;
    fn config(info: &Self::Info) -> &Config;
    /// Whether servers that are clustered keep it.
    fn is_clustered(info: &Self::Info) -> bool;
    /// Sequence of a stream's last message.
    fn last_sequence(info: &Self::Info) -> Option<u64>;
    /// Who leads a stream.
    fn standing(_: &Self::Info) -> Option<Standing> {
        None
    }
    /// Whether an object's status would be the same; the rest changes without a meaning to anybody.
    fn same_status(one: &Self::Info, other: &Self::Info) -> bool;

    fn info(api: &Api, key: &Self::Key) -> impl Future<Output = Result<Option<Self::Info>, ApiError>> + Send;
    fn create(
        api: &Api,
        key: &Self::Key,
        config: &Config,
    ) -> impl Future<Output = Result<Self::Info, ApiError>> + Send;
    fn update(
        api: &Api,
        key: &Self::Key,
        config: &Config,
    ) -> impl Future<Output = Result<Self::Info, ApiError>> + Send;
    fn delete(api: &Api, key: &Self::Key) -> impl Future<Output = Result<bool, ApiError>> + Send;
}

/// One thing in JetStream as an object declares it.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired<A: Asset> {
    pub key: A::Key,
    pub owner: Owner,
    /// What to do where there is one that is not the owner's.
    pub adoption: AdoptionPolicy,
    /// Whole, but for what the servers may limit, and the owner's marks.
    pub config: Config,
    /// Servers that keep a copy; None where the server decides, as for consumers, which have as many as their stream.
    pub replicas: Option<Replicas>,
    /// Messages that may be unacknowledged at once, where the spec does not say and servers may allow fewer; None where it says, and where
    /// the server decides.
    pub max_ack_pending: Option<u32>,
}

/// What servers may limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    pub replicas: Option<u8>,
    pub max_ack_pending: Option<u32>,
}

impl<A: Asset> Desired<A> {
    /// The whole configuration, with what is granted.
    #[must_use]
    pub fn stamped(&self, granted: Granted) -> Config {
        let mut config = self.config.clone();
        if let Some(replicas) = granted.replicas {
            config = config.with(stream_config::REPLICAS, replicas);
        }
        if let Some(most) = granted.max_ack_pending {
            config = config.with(consumer_config::MAX_ACK_PENDING, most);
        }
        self.owner.stamp(config, A::FIELDS)
    }
}

/// Streams, by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Stream;

impl Asset for Stream {
    const KIND: &'static str = "stream";
    const FIELDS: &'static [Field] = stream_config::FIELDS;
    const REMEDY: &'static str = "back up what is in the stream and delete it: it is recreated as declared";

    type Key = String;
    type Info = StreamInfo;

    fn name(key: &String) -> &str {
        key
    }

    fn describe(key: &String) -> String {
        format!("stream {key}")
    }

    fn config(info: &StreamInfo) -> &Config {
        &info.config
    }

    fn is_clustered(info: &StreamInfo) -> bool {
        info.is_clustered()
    }

    fn last_sequence(info: &StreamInfo) -> Option<u64> {
        Some(info.state.last_seq)
    }

    fn standing(info: &StreamInfo) -> Option<Standing> {
        Some(info.standing())
    }

    fn same_status(one: &StreamInfo, other: &StreamInfo) -> bool {
        one.status_view() == other.status_view()
    }

    async fn info(api: &Api, key: &String) -> Result<Option<StreamInfo>, ApiError> {
        api.stream_info(key).await
    }

    async fn create(api: &Api, key: &String, config: &Config) -> Result<StreamInfo, ApiError> {
        api.create_stream(key, config).await
    }

    async fn update(api: &Api, key: &String, config: &Config) -> Result<StreamInfo, ApiError> {
        api.update_stream(key, config).await
    }

    async fn delete(api: &Api, key: &String) -> Result<bool, ApiError> {
        api.delete_stream(key).await
    }
}

/// Durable consumers, by stream and name.
#[derive(Clone, Debug, PartialEq)]
pub struct Consumer;

/// Names a durable consumer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConsumerKey {
    pub stream: String,
    pub name: String,
}

impl Asset for Consumer {
    const KIND: &'static str = "consumer";
    const FIELDS: &'static [Field] = consumer_config::FIELDS;
    const REMEDY: &'static str =
        "delete the consumer: it is recreated as declared, beginning where spec.deliverPolicy says";

    type Key = ConsumerKey;
    type Info = ConsumerInfo;

    fn name(key: &ConsumerKey) -> &str {
        &key.name
    }

    fn describe(key: &ConsumerKey) -> String {
        format!("consumer {} of stream {}", key.name, key.stream)
    }

    fn config(info: &ConsumerInfo) -> &Config {
        &info.config
    }

    fn is_clustered(_: &ConsumerInfo) -> bool {
        false
    }

    fn last_sequence(_: &ConsumerInfo) -> Option<u64> {
        None
    }

    fn same_status(one: &ConsumerInfo, other: &ConsumerInfo) -> bool {
        one.status_view() == other.status_view()
    }

    async fn info(api: &Api, key: &ConsumerKey) -> Result<Option<ConsumerInfo>, ApiError> {
        api.consumer_info(&key.stream, &key.name).await
    }

    async fn create(api: &Api, key: &ConsumerKey, config: &Config) -> Result<ConsumerInfo, ApiError> {
        api.create_consumer(&key.stream, &key.name, config).await
    }

    async fn update(api: &Api, key: &ConsumerKey, config: &Config) -> Result<ConsumerInfo, ApiError> {
        api.update_consumer(&key.stream, &key.name, config).await
    }

    async fn delete(api: &Api, key: &ConsumerKey) -> Result<bool, ApiError> {
        api.delete_consumer(&key.stream, &key.name).await
    }
}
