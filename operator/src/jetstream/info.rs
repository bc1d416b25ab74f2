//! Streams and consumers as JetStream describes them: what they are declared as, and what is in them.

use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use super::{config::Config, stream_config::REPLICAS};
use crate::outcome::CreationTime;

/// How long a leader may not have heard from a server that keeps a copy: they exchange a message a second, and a leader without most of
/// them still answers for 10 to 20 s.
const PEER_SILENCE: Duration = Duration::from_secs(4);

/// Who leads a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// A server, without a name where servers are not clustered; None while there is none.
    pub leader: Option<String>,
    /// Whether another server can take over.
    pub replicated: bool,
    /// Whether it has a leader, and the leader has most of the servers that keep a copy.
    pub is_led: bool,
}

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

    /// Who leads it, and whether anybody does.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let Some(cluster) = self.cluster.as_ref().filter(|cluster| cluster.name.is_some()) else {
            return Standing { leader: Some(String::new()), replicated: false, is_led: true };
        };
        Standing { leader: cluster.leader.clone(), replicated: self.replicas() > 1, is_led: cluster.is_led() }
    }

    /// What an object's status is about; the rest changes without a meaning to anybody.
    #[must_use]
    pub fn status_view(&self) -> impl PartialEq + use<'_> {
        // Servers that are not clustered name themselves as leader in some responses only.
        let cluster = self.cluster.as_ref().filter(|cluster| cluster.name.is_some());
        let copies = cluster.map(|cluster| {
            let peers = cluster.replicas.iter().map(|peer| (&peer.name, peer.current, peer.is_away()));
            (cluster.leader.as_ref(), cluster.desired.is_some(), peers.collect::<Vec<_>>())
        });
        (&self.config, &self.created, &self.state, copies)
    }
}

impl ConsumerInfo {
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

impl ClusterInfo {
    /// Whether there is a leader, and it has most of the servers that keep a copy.
    #[must_use]
    pub fn is_led(&self) -> bool {
        let there = 1 + self.replicas.iter().filter(|peer| !peer.is_away()).count();
        self.leader.is_some() && 2 * there > 1 + self.replicas.len()
    }

    /// Servers whose copy has all that is acknowledged, the leader's included.
    #[must_use]
    pub fn current(&self) -> u8 {
        let others = self.replicas.iter().filter(|peer| peer.current && !peer.is_away()).count();
        u8::try_from(usize::from(self.leader.is_some()) + others).unwrap_or(u8::MAX)
    }
}

/// A server that keeps a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    #[serde(default)]
    pub name: String,
    /// Whether it had all that is acknowledged when the leader heard from it last; where that is longer ago than 10 s, it is never so.
    #[serde(default)]
    pub current: bool,
    /// Whether the servers have given it up: for one that is killed they take 2.5 minutes and more (orphMax in server/server.go of
    /// nats-server).
    #[serde(default)]
    pub offline: bool,
    /// Nanoseconds since the leader heard from it; 0 where it never did, as after an election. Kept no finer than it matters, since it
    /// changes all the time.
    #[serde(default, serialize_with = "coarsely")]
    pub active: u64,
    /// Operations that it is behind.
    #[serde(default)]
    pub lag: u64,
    /// Whether the leaders of other streams do not hear from this server. No answer has it: [`super::servers`] knows.
    #[serde(skip)]
    pub is_missed: bool,
}

impl Peer {
    /// Whether nobody hears from it.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.offline || self.is_missed || Duration::from_nanos(self.active) >= PEER_SILENCE
    }

    /// Whether the leader heard from it since it was elected.
    #[must_use]
    pub fn was_heard(&self) -> bool {
        self.active > 0
    }
}

/// Never, lately, or too long ago.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes what it writes by reference")]
fn coarsely<S: Serializer>(active: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    let silence = u64::try_from(PEER_SILENCE.as_nanos()).unwrap_or(u64::MAX);
    serializer.serialize_u64(if *active >= silence { silence } else { (*active).min(1) })
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
    /// Where the newest delivery is.
    #[serde(default)]
    pub delivered: Position,
    /// Up to where everything is acknowledged.
    #[serde(default)]
    pub ack_floor: Position,
    /// Whether it delivers nothing for now.
    #[serde(default)]
    pub paused: bool,
    /// For how long yet, in nanoseconds.
    #[serde(default)]
    pub pause_remaining: u64,
    /// The partitions whose consumers it stands for; None where it is one consumer of JetStream's.
    #[serde(skip)]
    pub partitions: Option<u32>,
}

/// How far a consumer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Number of the delivery.
    #[serde(default)]
    pub consumer_seq: u64,
    /// Sequence in the stream.
    #[serde(default)]
    pub stream_seq: u64,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn standing(cluster: &serde_json::Value, replicas: u8) -> Standing {
        let info: StreamInfo = serde_json::from_value(json!({
            "config": {"name": "orders", "num_replicas": replicas}, "created": "2026-11-21T10:00:00Z",
            "state": {"messages": 0, "bytes": 0, "first_seq": 0, "last_seq": 0}, "cluster": cluster,
        }))
        .unwrap();
        info.standing()
    }

    #[test]
    fn a_stream_is_led_where_its_leader_hears_from_most_of_its_servers() {
        let peer = |seconds: u64, offline: bool| json!({"name": "n", "current": true, "offline": offline, "active": seconds * 1_000_000_000});
        let led = |leader: Option<&str>, peers: [serde_json::Value; 2]| {
            let standing = standing(&json!({"name": "c", "leader": leader, "replicas": peers}), 3);
            assert!(standing.replicated && standing.leader.as_deref() == leader);
            standing.is_led
        };
        assert!(led(Some("n1"), [peer(0, false), peer(0, false)]));
        assert!(led(Some("n1"), [peer(0, false), peer(60, false)]));
        assert!(!led(Some("n1"), [peer(5, false), peer(60, false)]));
        assert!(!led(Some("n1"), [peer(0, true), peer(0, true)]));
        assert!(!led(None, [peer(0, false), peer(0, false)]));
        let single = standing(&json!({"name": "c", "leader": "n1"}), 1);
        assert_eq!(single, Standing { leader: Some("n1".into()), replicated: false, is_led: true });
    }

    #[test]
    fn what_is_kept_of_a_peer_changes_only_where_it_goes_or_comes() {
        let kept = |active: u64| {
            let peer: Peer =
                serde_json::from_value(json!({"name": "n", "current": true, "active": active})).unwrap();
            let text = serde_json::to_string(&peer).unwrap();
            let read: Peer = serde_json::from_str(&text).unwrap();
            assert_eq!((read.is_away(), read.was_heard()), (peer.is_away(), peer.was_heard()));
            text
        };
        let second = 1_000_000_000;
        assert_eq!(kept(second / 7), kept(3 * second));
        assert_eq!(kept(5 * second), kept(500 * second));
        assert_ne!(kept(3 * second), kept(5 * second));
        assert_ne!(kept(0), kept(second));
    }

    #[test]
    fn a_server_alone_leads_without_a_name() {
        let alone = Standing { leader: Some(String::new()), replicated: false, is_led: true };
        for cluster in [json!(null), json!({"leader": "nats-4222"})] {
            assert_eq!(standing(&cluster, 1), alone);
        }
    }
}
