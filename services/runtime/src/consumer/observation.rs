//! The newest state of the consumer, for all parts of the loop, and requests for a newer one.

use std::{sync::Arc, time::Duration};

use jetwright_partitions::recovery::{ConsumerState, Delivered, Leadership, Response};
use serde::Deserialize;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

/// Within this time a leader hears from each server that follows it: it asks after 2 s at the latest (`hbInterval` of nats-server 2.15).
const MAX_HEARTBEAT_AGE: Duration = Duration::from_millis(2_500);

/// The state of a consumer in JetStream (a part of NATS ADR-1's `ConsumerInfo`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct ConsumerInfo {
    /// Creation time: a consumer of the same name with another creation time is another one.
    pub(super) created: String,
    /// The newest delivery.
    pub(super) delivered: SequencePair,
    /// Everything up to here is acknowledged.
    pub(super) ack_floor: SequencePair,
    /// Unacknowledged deliveries.
    pub(super) num_ack_pending: u64,
    /// Open pull requests.
    num_waiting: u64,
    /// It delivers nothing for now.
    #[serde(default)]
    paused: bool,
    /// Its servers; empty where the server is in no cluster, and where it has just started.
    #[serde(default)]
    pub(super) cluster: Cluster,
    pub(super) config: ConsumerConfig,
}

impl ConsumerInfo {
    /// What it counts.
    pub(super) fn state(&self) -> ConsumerState {
        let SequencePair { consumer_seq, stream_seq } = self.delivered;
        ConsumerState {
            delivered: Delivered { consumer_sequence: consumer_seq, stream_sequence: stream_seq },
            ack_floor: self.ack_floor.stream_seq,
            ack_pending: self.num_ack_pending,
            ack_wait: self.config.ack_wait(),
            pull_requests: self.num_waiting,
            is_paused: self.paused,
            has_quorum: self.cluster.has_quorum(),
        }
    }
}

/// The servers of a consumer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Cluster {
    #[serde(flatten)]
    pub(super) leadership: Leadership,
    /// Those beside the leader.
    replicas: Vec<Replica>,
}

/// A server that follows the leader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Replica {
    /// How long ago the leader heard from it, in nanoseconds; 0 where it never did, or just now.
    active: u64,
    /// It has what the leader has.
    current: bool,
    /// It does not take part yet, or any more.
    pending: bool,
}

impl Cluster {
    /// Whether the leader has heard lately from so many that they are a majority with it.
    pub(super) fn has_quorum(&self) -> bool {
        let is_heard = |replica: &&&Replica| {
            Duration::from_nanos(replica.active) <= MAX_HEARTBEAT_AGE
                && (replica.active > 0 || replica.current)
        };
        let taking_part: Vec<_> = self.replicas.iter().filter(|replica| !replica.pending).collect();
        let heard = 1 + taking_part.iter().filter(is_heard).count();
        2 * heard > 1 + taking_part.len()
    }
}

/// A delivery's number and its event's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct SequencePair {
    pub(super) consumer_seq: u64,
    pub(super) stream_seq: u64,
}

/// The limits of pull requests, 0 if there are none, and what is delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct ConsumerConfig {
    pub(super) max_batch: i64,
    /// In nanoseconds.
    pub(super) max_expires: i64,
    pub(super) max_bytes: i64,
    pub(super) max_waiting: i64,
    /// 0 where the consumer has as many as its stream.
    num_replicas: i64,
    /// In nanoseconds.
    ack_wait: i64,
    filter_subject: String,
    filter_subjects: Vec<String>,
}

impl ConsumerConfig {
    /// How long a delivery may be unacknowledged before it comes again.
    pub(super) fn ack_wait(&self) -> Duration {
        Duration::from_nanos(u64::try_from(self.ack_wait).unwrap_or_default())
    }

    /// The subjects of the events that it delivers.
    pub(super) fn filters(&self) -> Vec<&str> {
        let several = self.filter_subjects.iter().map(String::as_str);
        let one = Some(self.filter_subject.as_str()).filter(|filter| !filter.is_empty());
        let filters: Vec<_> = several.chain(one).collect();
        if filters.is_empty() { vec![">"] } else { filters }
    }
}

/// A response of JetStream, and when it was requested: what happened later may not be in it.
#[derive(Debug)]
pub(super) struct Observation {
    pub(super) info: ConsumerInfo,
    pub(super) asked_at: Instant,
    pub(super) answered_at: Instant,
    /// How many consumers of this name there have been by now.
    pub(super) consumer_epoch: u64,
}

impl Observation {
    /// What it says of the order of deliveries.
    pub(super) fn response(&self) -> Response {
        let (asked_at, answered_at) = (self.asked_at.into_std(), self.answered_at.into_std());
        Response { state: self.info.state(), asked_at, answered_at }
    }
}

/// The newest response, and requests for a newer one.
#[derive(Debug, Default)]
pub(super) struct Discovery {
    pub(super) wanted: Notify,
    pub(super) latest: watch::Sender<Option<Arc<Observation>>>,
}

impl Discovery {
    /// Requests a response as of now or later.
    pub(super) fn recheck(&self) {
        self.wanted.notify_one();
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Arc<Observation>>> {
        self.latest.subscribe()
    }

    /// How many consumers of this name there have been by now.
    pub(super) fn consumer_epoch(&self) -> u64 {
        self.latest.borrow().as_ref().map_or(0, |latest| latest.consumer_epoch)
    }

    /// Waits for a response as of now or later.
    pub(super) async fn wait_for_consumer(&self) -> Arc<Observation> {
        let asked = Instant::now();
        let mut latest = self.subscribe();
        self.recheck();
        loop {
            if let Some(found) = latest.borrow_and_update().as_ref().filter(|found| found.asked_at >= asked) {
                return Arc::clone(found);
            }
            if latest.changed().await.is_err() {
                // Not while this exists.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether a response is of a server that starts: until it takes part in the consumer's Raft group it names no leader, and has the state of a new
    /// consumer (`jsConsumerInfoRequest` of nats-server 2.15). The first response of all may be one, and is believed.
    pub(super) fn is_of_starting_server(&self, info: &ConsumerInfo) -> bool {
        let names_leader = |info: &ConsumerInfo| !info.cluster.leadership.leader.is_empty();
        let before = self.latest.borrow().clone();
        let was_named = before.is_some_and(|before| names_leader(&before.info));
        !names_leader(info) && (was_named || info.config.num_replicas > 1)
    }

    /// JetStream responded to a request of that time.
    pub(super) fn publish(&self, info: ConsumerInfo, asked_at: Instant) {
        self.latest.send_modify(|latest| {
            let consumer_epoch = match latest.as_ref() {
                None => 1,
                Some(before) => before.consumer_epoch + u64::from(before.info.created != info.created),
            };
            let answered_at = Instant::now();
            *latest = Some(Arc::new(Observation { info, asked_at, answered_at, consumer_epoch }));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(created: &str) -> ConsumerInfo {
        let json = format!(
            r#"{{"created": "{created}", "delivered": {{"consumer_seq": 3, "stream_seq": 9}},
                "ack_floor": {{"consumer_seq": 1, "stream_seq": 4}}, "num_ack_pending": 2, "num_waiting": 1,
                "config": {{"max_batch": 5}}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn a_consumer_that_was_made_at_another_time_has_another_epoch() {
        let discovery = Discovery::default();
        let consumer_epoch = |created| {
            discovery.publish(info(created), Instant::now());
            discovery.subscribe().borrow().as_ref().map(|found| found.consumer_epoch)
        };
        assert_eq!(["a", "a", "b", "a"].map(consumer_epoch), [Some(1), Some(1), Some(2), Some(3)]);
    }

    #[test]
    fn a_response_without_a_leader_is_of_a_starting_server_where_there_is_a_cluster() {
        let of = |created, leader: &str, num_replicas| {
            let mut info = info(created);
            info.cluster.leadership.leader = leader.to_owned();
            info.config.num_replicas = num_replicas;
            info
        };
        let discovery = Discovery::default();
        assert!(!discovery.is_of_starting_server(&of("a", "", 0)), "it may be in no cluster");
        assert!(discovery.is_of_starting_server(&of("a", "", 3)));
        assert!(!discovery.is_of_starting_server(&of("a", "n1", 3)));
        discovery.publish(of("a", "", 0), Instant::now());
        assert!(!discovery.is_of_starting_server(&of("a", "", 0)));
        discovery.publish(of("a", "n1", 0), Instant::now());
        assert!(discovery.is_of_starting_server(&of("a", "", 0)));
        assert!(!discovery.is_of_starting_server(&of("a", "n2", 0)));
    }

    #[test]
    fn a_leader_that_hears_from_too_few_has_no_quorum() {
        let has_quorum = |active: &[u64]| {
            let replica = |active: &u64| Replica { active: *active * 1_000_000, ..Replica::default() };
            Cluster { replicas: active.iter().map(replica).collect(), ..Cluster::default() }.has_quorum()
        };
        assert!(has_quorum(&[]) && has_quorum(&[1, 1]) && has_quorum(&[1_000, 9_000]));
        for silent in [&[3_000, 4_000][..], &[0, 0], &[3_000], &[1, 1, 5_000, 5_000, 5_000][1..]] {
            assert!(!has_quorum(silent), "{silent:?}");
        }
        let json = r#"{"leader": "n1", "replicas": [{"active": 0, "current": true}, {"active": 0, "pending": true}, {"active": 9000000000}]}"#;
        let cluster: Cluster = serde_json::from_str(json).unwrap();
        assert!(cluster.has_quorum(), "one was heard just now, and one takes no part");
        let json = r#"{"leader": "n1", "leader_since": "x", "replicas": [{"name": "n2", "current": true, "active": 5}]}"#;
        let cluster: Cluster = serde_json::from_str(json).unwrap();
        assert_eq!((cluster.leadership.leader.as_str(), cluster.replicas.len()), ("n1", 1));
    }

    #[test]
    fn filters_are_one_several_or_everything() {
        let filters = |json| serde_json::from_str::<ConsumerConfig>(json).unwrap().filters().join(" ");
        assert_eq!(filters(r#"{"filter_subject": "a"}"#), "a");
        assert_eq!(filters(r#"{"filter_subjects": ["a", "b"]}"#), "a b");
        assert_eq!(filters("{}"), ">");
    }
}
