//! In: the replicas that an EventStream asks for, and its stream. Out: the condition Durable: whether as many current copies exist. It never
//! changes Ready. Pure.

use jetwright_crds::{
    conditions::{Reason, State},
    stream::Replicas,
};

use crate::jetstream::info::{Peer, StreamInfo};

/// How far a copy that was current may fall behind while its server is there: every copy is some operations behind while messages come
/// in, and the condition would change with each look.
const MAX_LAG: u64 = 10_000;

/// Makes the condition. `refusal` is why JetStream does not give the stream the replicas that are preferred; `was_durable`, whether the
/// condition was True.
pub fn durable(wish: Replicas, info: &StreamInfo, refusal: Option<&str>, was_durable: bool) -> State {
    let wanted = match wish {
        Replicas::Exactly(replicas) => replicas,
        Replicas::Prefer(replicas) => replicas.max(info.replicas()),
    };
    let peers = info.cluster.as_ref().map(|cluster| cluster.replicas.as_slice()).unwrap_or_default();
    let keeps_up = |peer: &Peer| peer.current || was_durable && peer.was_heard() && peer.lag <= MAX_LAG;
    let follows = |peer: &&Peer| !peer.is_away() && keeps_up(peer);
    let leads = !info.is_clustered() || info.leader().is_some();
    let current = peers.iter().filter(follows).count() + usize::from(leads);
    let copies = format!("{current} of {wanted} copies are current");
    if current >= usize::from(wanted) {
        return State { status: Some(true), reason: Reason::Reconciled, message: copies };
    }
    let (reason, message) = if info.replicas() < wanted {
        let why = match refusal {
            Some(refusal) => format!(
                "{refusal}. {wanted} are tried again at every resync, after a reconnect and when the spec changes"
            ),
            None if info.is_clustered() => "the stream is not scaled yet".to_owned(),
            None => "the server is not clustered. Run three, or set spec.replicas to 1".to_owned(),
        };
        (Reason::TooFewServers, format!("{} of {wanted} copies exist: {why}", info.replicas()))
    } else if let Some(away) = peers.iter().find(|peer| peer.is_away()) {
        (Reason::NotCurrent, format!("{copies}: server {} is away", away.name))
    } else if !leads {
        (Reason::NotCurrent, format!("{copies}: no server leads the stream"))
    } else {
        (Reason::Scaling, format!("{copies}: servers copy what is in the stream"))
    };
    State { status: Some(false), reason, message }
}

/// Whether the stream must be polled until its copies are current: no advisory says that a copy has caught up. The return of a missed server is
/// heard from the leaders of other streams, so it needs no poll.
pub fn is_to_be_watched(durable: &State, info: &StreamInfo) -> bool {
    let peers = info.cluster.as_ref().map(|cluster| cluster.replicas.as_slice()).unwrap_or_default();
    match durable.reason {
        Reason::Scaling => true,
        Reason::NotCurrent => info.leader().is_some() && !peers.iter().any(|peer| peer.is_missed),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const CURRENT: &str = r#"{"current": true, "active": 1}"#;
    const BEHIND: &str = r#"{"current": false, "lag": 5, "active": 1}"#;
    const AWAY: &str = r#"{"current": false, "offline": true}"#;
    /// As nats-server describes a server that was killed a few seconds ago, and one that is away since before the leader was elected.
    const SILENT: [&str; 2] = [
        r#"{"name": "n3", "current": true, "active": 5000000000}"#,
        r#"{"name": "n3", "current": false, "lag": 5, "active": 60000000000}"#,
    ];
    const NEVER_HEARD: &str = r#"{"current": false, "lag": 5, "active": 0}"#;

    fn info(replicas: u8, cluster: &Value) -> StreamInfo {
        serde_json::from_value(json!({
            "config": {"name": "orders", "num_replicas": replicas}, "created": "2026-11-21T10:00:00Z",
            "state": {"messages": 0, "bytes": 0, "first_seq": 0, "last_seq": 0}, "cluster": cluster,
        }))
        .unwrap()
    }

    /// A stream of a cluster, with these servers beside the one that leads.
    fn with_peers(peers: &[&str]) -> StreamInfo {
        let peers: Vec<Value> = peers.iter().map(|peer| serde_json::from_str(peer).unwrap()).collect();
        info(
            u8::try_from(peers.len() + 1).unwrap(),
            &json!({"name": "east", "leader": "n1", "replicas": peers}),
        )
    }

    fn of(wish: Replicas, info: &StreamInfo, was_durable: bool) -> (Option<bool>, Reason) {
        let State { status, reason, .. } = durable(wish, info, None, was_durable);
        (status, reason)
    }

    #[test]
    fn as_many_current_copies_as_are_declared_or_preferred_are_durable() {
        let (yes, three) = ((Some(true), Reason::Reconciled), with_peers(&[CURRENT, CURRENT]));
        for wish in [Replicas::Exactly(3), Replicas::Prefer(3), Replicas::Prefer(1)] {
            assert_eq!(of(wish, &three, false), yes);
        }
        let alone = info(1, &json!({"leader": "n1"}));
        assert_eq!(of(Replicas::Prefer(1), &alone, false), yes);
        assert_eq!(of(Replicas::Prefer(1), &info(1, &Value::Null), false), yes);
        assert_eq!(of(Replicas::Prefer(3), &alone, false), (Some(false), Reason::TooFewServers));
    }

    #[test]
    fn a_copy_that_is_not_current_yet_is_scaling_and_one_that_was_may_be_a_little_behind() {
        let behind = with_peers(&[CURRENT, BEHIND]);
        assert_eq!(of(Replicas::Prefer(3), &behind, false), (Some(false), Reason::Scaling));
        assert_eq!(of(Replicas::Prefer(3), &behind, true), (Some(true), Reason::Reconciled));
        let far = with_peers(&[CURRENT, r#"{"current": false, "lag": 20000, "active": 1}"#]);
        assert_eq!(of(Replicas::Prefer(3), &far, true), (Some(false), Reason::Scaling));
    }

    #[test]
    fn a_server_that_is_away_is_named_and_what_a_stream_has_counts_beyond_what_is_preferred() {
        for wish in [Replicas::Prefer(1), Replicas::Prefer(3), Replicas::Exactly(3)] {
            assert_eq!(of(wish, &with_peers(&[CURRENT, AWAY]), true), (Some(false), Reason::NotCurrent));
        }
        let mut leaderless = with_peers(&[CURRENT, CURRENT]);
        leaderless.cluster.as_mut().unwrap().leader = None;
        assert_eq!(of(Replicas::Exactly(3), &leaderless, true), (Some(false), Reason::NotCurrent));
    }

    #[test]
    fn a_server_that_its_leader_does_not_hear_from_keeps_no_copy_however_little_it_is_behind() {
        for silent in SILENT {
            let killed = with_peers(&[CURRENT, silent]);
            let State { status, reason, message } = durable(Replicas::Exactly(3), &killed, None, true);
            assert_eq!((status, reason), (Some(false), Reason::NotCurrent), "{silent}");
            assert_eq!(message, "2 of 3 copies are current: server n3 is away");
        }
        let never = with_peers(&[CURRENT, NEVER_HEARD]);
        assert_eq!(of(Replicas::Exactly(3), &never, true), (Some(false), Reason::Scaling));
        let mut missed = with_peers(&[CURRENT, CURRENT]);
        missed.cluster.as_mut().unwrap().replicas[0].is_missed = true;
        assert_eq!(of(Replicas::Exactly(3), &missed, true), (Some(false), Reason::NotCurrent));
    }

    #[test]
    fn a_stream_is_asked_about_while_nothing_else_says_when_its_copies_are_current() {
        let watched =
            |info: &StreamInfo| is_to_be_watched(&durable(Replicas::Exactly(3), info, None, false), info);
        assert!(watched(&with_peers(&[CURRENT, BEHIND])));
        let mut silent = with_peers(&[CURRENT, SILENT[0]]);
        assert!(watched(&silent));
        silent.cluster.as_mut().unwrap().replicas[1].is_missed = true;
        assert!(!watched(&silent));
        assert!(!watched(&with_peers(&[CURRENT, CURRENT])));
    }

    #[test]
    fn the_message_has_what_jetstream_said() {
        let one = info(1, &json!({"name": "east", "leader": "n1"}));
        let told = durable(Replicas::Prefer(3), &one, Some("JetStream refused: no room"), false);
        assert_eq!(told.reason, Reason::TooFewServers);
        assert!(
            told.message.starts_with("1 of 3 copies exist: JetStream refused: no room."),
            "{}",
            told.message
        );
    }
}
