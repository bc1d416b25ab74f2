//! Streams and consumers as JetStream describes them: what they are declared as, and what is in them.

use serde::{Deserialize, Serialize};

use super::{config::Config, stream_config::REPLICAS};
use crate::outcome::CreationTime;

/// A stream as JetStream describes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StreamInfo {
    /// Its configuration.
    pub config: Config,
    /// When it was made, RFC 3339.
    pub created: String,
    /// What is in it.
    pub state: StreamState,
    /// Where it is led, in a cluster.
    pub cluster: Option<ClusterInfo>,
}

impl CreationTime for StreamInfo {
    fn created(&self) -> &str {
        &self.created
    }
}

impl CreationTime for ConsumerInfo {
    fn created(&self) -> &str {
        &self.created
    }
}

impl StreamInfo {
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.config.get("name").and_then(serde_json::Value::as_str)
    }

    /// Server that leads it, in a cluster.
    #[must_use]
    pub fn leader(&self) -> Option<&String> {
        let cluster = self.cluster.as_ref().filter(|cluster| cluster.name.is_some())?;
        cluster.leader.as_ref()
    }

    /// Whether it is kept by servers that are clustered: others never keep more than one copy.
    #[must_use]
    pub fn is_clustered(&self) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| cluster.name.is_some())
    }

    /// How many copies it is to have.
    #[must_use]
    pub fn replicas(&self) -> u8 {
        let replicas = self.config.get(REPLICAS).and_then(serde_json::Value::as_u64);
        replicas.and_then(|replicas| u8::try_from(replicas).ok()).unwrap_or(1)
    }

    /// What an object's status is about; the rest changes without a meaning to anybody.
    #[must_use]
    pub fn status_view(&self) -> impl PartialEq + use<'_> {
        // Servers that are not clustered name themselves as leader in some responses only.
        let cluster = self.cluster.as_ref().filter(|cluster| cluster.name.is_some());
        let copies = cluster.map(|cluster| {
            let peers = cluster.replicas.iter().map(|peer| (&peer.name, peer.current, peer.offline));
            (cluster.leader.as_ref(), cluster.desired.is_some(), peers.collect::<Vec<_>>())
        });
        (&self.config, &self.created, &self.state, copies)
    }
}

impl ConsumerInfo {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What an object's status is about; the rest changes without a meaning to anybody.
    #[must_use]
    pub fn status_view(&self) -> impl PartialEq + use<'_> {
        (&self.config, &self.created, self.num_pending, self.num_ack_pending, self.num_redelivered)
    }
}

/// What is in a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamState {
    /// Messages.
    pub messages: u64,
    /// Bytes.
    pub bytes: u64,
    /// Sequence of the first message.
    pub first_seq: u64,
    /// Sequence of the last message.
    pub last_seq: u64,
    /// Consumers.
    #[serde(default)]
    pub consumer_count: u64,
    /// When the first message came, RFC 3339.
    #[serde(default)]
    pub first_ts: Option<String>,
    /// Subjects that the messages have.
    #[serde(default)]
    pub num_subjects: u64,
}

/// Where a stream is led.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ClusterInfo {
    /// Name of the cluster; servers that are not clustered have none, but name themselves as leader at times.
    #[serde(default)]
    pub name: Option<String>,
    /// Server that leads it, unless an election goes on.
    pub leader: Option<String>,
    /// Servers that keep a copy, beside the one that leads.
    #[serde(default)]
    pub replicas: Vec<Peer>,
    /// Where it is being moved or scaled to, since nats-server 2.15.
    #[serde(default)]
    pub desired: Option<serde_json::Value>,
}

/// A server that keeps a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    #[serde(default)]
    pub name: String,
    /// Whether it has all that is acknowledged, and was heard from lately.
    #[serde(default)]
    pub current: bool,
    #[serde(default)]
    pub offline: bool,
    /// Operations that it is behind.
    #[serde(default)]
    pub lag: u64,
}

/// A consumer as JetStream describes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConsumerInfo {
    /// Stream that it consumes from.
    pub stream_name: String,
    /// Durable name.
    pub name: String,
    /// Its configuration.
    pub config: Config,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Messages not delivered yet.
    #[serde(default)]
    pub num_pending: u64,
    /// Messages delivered and not acknowledged yet.
    #[serde(default)]
    pub num_ack_pending: u64,
    /// Messages delivered more than once and not acknowledged yet.
    #[serde(default)]
    pub num_redelivered: u64,
}
