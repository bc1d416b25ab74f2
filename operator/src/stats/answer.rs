//! In: entries of JetStream's lists. Out: the figures in them, and whose they are. Pure. Only what is exported is read of them: an entry has
//! a kilobyte and more.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::sample::{ConsumerFigures, Intern, StreamFigures};
use crate::jetstream::info::ClusterInfo;

/// A stream of a list.
#[derive(Debug, Deserialize)]
pub struct ListedStream {
    config: StreamConfig,
    state: StreamState,
    cluster: Option<ClusterInfo>,
}

#[derive(Debug, Deserialize)]
struct StreamConfig {
    #[serde(default)]
    name: String,
    #[serde(default)]
    num_replicas: u8,
    #[serde(default)]
    max_msgs: i64,
    #[serde(default)]
    max_bytes: i64,
    #[serde(default)]
    discard: String,
    #[serde(default)]
    metadata: Option<Metadata>,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default, rename = "jetwright.dev/owner")]
    owner: Option<String>,
}

#[derive(Debug, Deserialize)]
struct StreamState {
    messages: u64,
    bytes: u64,
    first_seq: u64,
    last_seq: u64,
    #[serde(default)]
    first_ts: Option<String>,
    #[serde(default)]
    consumer_count: u64,
}

/// What tells the messages in a stream from any others: a message that is added changes the last sequence, one that is removed the count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub messages: u64,
    pub first_sequence: u64,
    pub last_sequence: u64,
}

impl ListedStream {
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The owner that its metadata name, as clusterName/namespace/name.
    pub fn owner(&self) -> Option<&str> {
        owner(self.config.metadata.as_ref())
    }

    pub fn contents(&self) -> Contents {
        let StreamState { messages, first_seq, last_seq, .. } = self.state;
        Contents { messages, first_sequence: first_seq, last_sequence: last_seq }
    }

    /// Servers that keep it, where there are several.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        let cluster = self.cluster.as_ref().filter(|_| self.config.num_replicas > 1);
        cluster.into_iter().flat_map(|cluster| {
            let peers = cluster.replicas.iter().map(|peer| peer.name.as_str());
            cluster.leader.as_deref().into_iter().chain(peers)
        })
    }

    /// Its consumers, those of no object too.
    pub fn consumers(&self) -> u64 {
        self.state.consumer_count
    }

    /// Its figures; those of the servers that keep copies where they are wanted.
    pub fn figures(&self, with_peers: bool, servers: &mut Intern) -> StreamFigures {
        let cluster = self.cluster.as_ref().filter(|cluster| cluster.name.is_some());
        let peers =
            cluster.filter(|_| with_peers).map(|cluster| cluster.replicas.as_slice()).unwrap_or_default();
        StreamFigures {
            messages: self.state.messages,
            bytes: self.state.bytes,
            // An empty stream names a time, too.
            first_at: seconds(self.state.first_ts.as_deref()).filter(|_| self.state.messages > 0),
            last_sequence: self.state.last_seq,
            max_messages: limit(self.config.max_msgs),
            max_bytes: limit(self.config.max_bytes),
            consumers: self.state.consumer_count,
            replicas_wanted: self.config.num_replicas.max(1),
            replicas_current: cluster.map_or(1, ClusterInfo::current),
            is_led: cluster.is_none_or(ClusterInfo::is_led),
            discards_new: self.config.discard == "new",
            leader: cluster.and_then(|cluster| cluster.leader.as_deref()).map(|name| servers.get(name)),
            peers: peers.iter().map(|peer| (servers.get(&peer.name), peer.lag)).collect(),
        }
    }
}

/// A consumer of a list.
#[derive(Debug, Deserialize)]
pub struct ListedConsumer {
    #[serde(default)]
    name: String,
    config: ConsumerConfig,
    #[serde(default)]
    delivered: Position,
    #[serde(default)]
    ack_floor: Position,
    #[serde(default)]
    num_pending: u64,
    #[serde(default)]
    num_ack_pending: u64,
    #[serde(default)]
    num_redelivered: u64,
    #[serde(default)]
    num_waiting: u64,
    #[serde(default)]
    paused: bool,
    #[serde(default)]
    cluster: Option<ClusterInfo>,
}

#[derive(Debug, Deserialize)]
struct ConsumerConfig {
    #[serde(default)]
    max_ack_pending: i64,
    #[serde(default)]
    metadata: Option<Metadata>,
}

/// How far it has come.
#[derive(Debug, Default, Deserialize)]
struct Position {
    #[serde(default)]
    consumer_seq: u64,
    #[serde(default)]
    stream_seq: u64,
    #[serde(default)]
    last_active: Option<String>,
}

impl ListedConsumer {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The owner that its metadata name, as clusterName/namespace/name.
    pub fn owner(&self) -> Option<&str> {
        owner(self.config.metadata.as_ref())
    }

    /// Deliveries since it was made, redeliveries included.
    pub fn deliveries(&self) -> u64 {
        self.delivered.consumer_seq
    }

    pub fn figures(&self) -> ConsumerFigures {
        let cluster = self.cluster.as_ref().filter(|cluster| cluster.name.is_some());
        ConsumerFigures {
            pending: self.num_pending,
            ack_pending: self.num_ack_pending,
            max_ack_pending: limit(self.config.max_ack_pending),
            redelivered: self.num_redelivered,
            waiting_pulls: self.num_waiting,
            delivered_sequence: self.delivered.stream_seq,
            delivered_at: self.delivered.seconds(),
            ack_floor_sequence: self.ack_floor.stream_seq,
            ack_floor_at: self.ack_floor.seconds(),
            is_paused: self.paused,
            is_led: cluster.is_none_or(|cluster| cluster.leader.is_some()),
        }
    }
}

impl Position {
    /// When it last moved, in seconds since 1970.
    fn seconds(&self) -> Option<f64> {
        seconds(self.last_active.as_deref())
    }
}

/// A time of JetStream's in seconds since 1970.
fn seconds(time: Option<&str>) -> Option<f64> {
    let at: Timestamp = time?.parse().ok()?;
    u64::try_from(at.as_millisecond())
        .ok()
        .map(|milliseconds| Duration::from_millis(milliseconds).as_secs_f64())
}

fn owner(metadata: Option<&Metadata>) -> Option<&str> {
    metadata?.owner.as_deref()
}

/// A limit, which is -1, or 0 where a field is left out, where there is none.
fn limit(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|limit| *limit > 0)
}

#[cfg(test)]
mod tests {
    use jetwright_crds::marks::OWNER;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_mark_is_read_under_its_name() {
        let config: StreamConfig = serde_json::from_value(json!({"metadata": {OWNER: "a/b/c"}})).unwrap();
        assert_eq!(owner(config.metadata.as_ref()), Some("a/b/c"));
    }

    #[test]
    fn figures_of_a_stream_have_no_limits_and_no_leader_where_there_are_none() {
        let listed = |config: serde_json::Value, cluster: serde_json::Value| -> ListedStream {
            let state = json!({
                "messages": 3, "bytes": 30, "first_seq": 1, "first_ts": "1970-01-01T00:00:07Z", "last_seq": 5, "consumer_count": 2,
            });
            serde_json::from_value(json!({"config": config, "state": state, "cluster": cluster})).unwrap()
        };
        let mut servers = Intern::default();
        let alone =
            listed(json!({"name": "a", "max_msgs": -1, "max_bytes": 100, "discard": "new"}), json!(null));
        let expected = StreamFigures {
            messages: 3,
            bytes: 30,
            first_at: Some(7.0),
            last_sequence: 5,
            max_messages: None,
            max_bytes: Some(100),
            consumers: 2,
            replicas_wanted: 1,
            replicas_current: 1,
            is_led: true,
            discards_new: true,
            leader: None,
            peers: Box::default(),
        };
        assert_eq!(alone.figures(true, &mut servers), expected);
        let peers = json!([{"name": "n2", "current": true}, {"name": "n3", "current": false, "lag": 7}]);
        let config = json!({"name": "a", "num_replicas": 3});
        let three = listed(config, json!({"name": "c", "leader": "n1", "replicas": peers}));
        let figures = three.figures(true, &mut servers);
        assert_eq!((figures.replicas_wanted, figures.replicas_current, figures.is_led), (3, 2, true));
        assert_eq!(figures.leader.as_deref(), Some("n1"));
        assert_eq!(figures.peers.as_ref(), [("n2".into(), 0), ("n3".into(), 7)]);
        assert!(three.figures(false, &mut servers).peers.is_empty());
    }

    #[test]
    fn a_consumer_that_never_delivered_has_no_time_of_its_last_delivery() {
        let listed: ListedConsumer = serde_json::from_value(json!({
            "stream_name": "orders", "name": "c", "config": {"max_ack_pending": 1000},
            "delivered": {"consumer_seq": 0, "stream_seq": 4},
            "ack_floor": {"consumer_seq": 0, "stream_seq": 3, "last_active": "1970-01-01T00:00:02.5Z"},
            "num_pending": 9, "num_waiting": 2,
        }))
        .unwrap();
        let figures = listed.figures();
        assert_eq!((figures.delivered_at, figures.ack_floor_at), (None, Some(2.5)));
        assert_eq!((figures.pending, figures.waiting_pulls, figures.max_ack_pending), (9, 2, Some(1000)));
        assert!(figures.is_led && !figures.is_paused);
    }
}
