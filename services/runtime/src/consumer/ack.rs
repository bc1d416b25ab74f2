//! The acknowledgements of a delivery as the server reads them, and for how long each is sent. Pure.

use std::time::Duration;

use bytes::Bytes;
use jetwright_nats::backoff::pause;
use tokio::time::Instant;

use super::observation::ConsumerInfo;

/// How long JetStream may take to confirm before an acknowledgement is sent again; longer each time, up to the maximum.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_CONFIRM_TIMEOUT: Duration = Duration::from_secs(4);
/// How long the first sending of a negative acknowledgement may wait for a connection. Then the event is redelivered anyway.
const NAK_TIMEOUT: Duration = Duration::from_secs(30);

/// How a delivery ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Settlement {
    /// The event is handled.
    Ack,
    /// The event is redelivered, not before this time has passed.
    Nak { after: Duration },
    /// The event is never redelivered.
    Term {
        /// The server includes it in its advisory.
        reason: &'static str,
    },
}

/// For deliveries that a stop leaves no time for: other processes get them at once. It is sent when this process' own pull requests
/// have ended, one of which would receive the event otherwise.
pub(super) const NAK_ON_SHUTDOWN: Settlement = Settlement::Nak { after: Duration::ZERO };

/// The acknowledgement's payload for a delivery that is still being handled (NATS ADR-15).
pub(super) const IN_PROGRESS: &str = "+WPI";

impl Settlement {
    /// The acknowledgement's payload, as the server reads it (NATS ADR-15; the reason of a term goes into its advisory).
    pub(super) fn payload(&self) -> Bytes {
        match self {
            Self::Ack => Bytes::from_static(b"+ACK"),
            Self::Nak { after: Duration::ZERO } => Bytes::from_static(b"-NAK"),
            Self::Nak { after } => format!("-NAK {{\"delay\":{}}}", after.as_nanos()).into(),
            Self::Term { reason } => format!("+TERM jetwright:{reason}").into(),
        }
    }
}

/// An acknowledgement that JetStream has not confirmed yet.
///
/// It is sent until JetStream confirms it, also past ackWait: silence says nothing about what JetStream knows. Only the state of the
/// consumer does ([`observed`](Self::observed)). Only a negative acknowledgement ends when its delay is over: the event
/// may be another attempt by then, which a repetition would end.
#[derive(Debug)]
pub(super) struct PendingAck {
    pub(super) payload: Bytes,
    /// The numbers of the first and the last sending. Each sending has its own, so that a reply for another delivery in the same slot is
    /// not taken for its reply.
    numbers: Option<(u64, u64)>,
    sent: usize,
    is_nak: bool,
    /// When it was last sent.
    sent_at: Option<Instant>,
    /// Sent on the current connection, and not answered.
    is_awaited: bool,
    /// The first sending found no responders at this time.
    unanswered_since: Option<Instant>,
    /// When it is sent again; None while there is no connection, or the consumer that would receive it is unknown.
    next: Option<Instant>,
    /// Of a negative acknowledgement: the deadline of its first sending, and of its repetitions.
    deadlines: Option<(Instant, Instant)>,
    /// How long it may be repeated: then the event may be another attempt.
    repeated_for: Duration,
}

/// The next action for an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AckAction {
    /// Nothing now.
    Wait,
    /// Send it (again).
    Send {
        /// The last sending found no responders.
        unanswered: bool,
    },
    /// It is of no use any more: the event is redelivered.
    GiveUp,
}

/// What the state of the consumer says about an unconfirmed acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AckStatus {
    /// JetStream received it, or it is not needed.
    Settled,
    /// JetStream no longer knows the delivery; the event is redelivered.
    Forgotten,
    /// JetStream may not have received it.
    Unknown,
}

impl PendingAck {
    pub(super) fn new(settlement: &Settlement, now: Instant) -> Self {
        let deadlines = match settlement {
            Settlement::Nak { .. } => Some((now + NAK_TIMEOUT, now + NAK_TIMEOUT)),
            Settlement::Ack | Settlement::Term { .. } => None,
        };
        Self {
            payload: settlement.payload(),
            numbers: None,
            sent: 0,
            sent_at: None,
            is_nak: deadlines.is_some(),
            is_awaited: false,
            unanswered_since: None,
            next: Some(now),
            deadlines,
            repeated_for: match settlement {
                Settlement::Nak { after } => (*after).max(CONFIRM_TIMEOUT),
                Settlement::Ack | Settlement::Term { .. } => Duration::ZERO,
            },
        }
    }

    /// It was sent just now under this number. What was asked before, JetStream may have answered without it.
    pub(super) fn send(&mut self, number: u64, now: Instant) {
        self.numbers = Some((self.numbers.map_or(number, |(first, _)| first), number));
        if self.sent == 0 {
            self.deadlines = self.deadlines.map(|(first, _)| (first, now + self.repeated_for));
        }
        self.sent += 1;
        self.sent_at = Some(now);
        self.is_awaited = true;
        let timeout = CONFIRM_TIMEOUT.saturating_mul(u32::try_from(self.sent).unwrap_or(u32::MAX));
        self.next = Some(now + timeout.min(MAX_CONFIRM_TIMEOUT));
    }

    /// Whether a redelivery is what it asked for.
    pub(super) fn is_done_by_redelivery(&self) -> bool {
        self.is_nak && self.sent > 0
    }

    /// Whether its event is never redelivered.
    pub(super) fn ends_event(&self) -> bool {
        !self.is_nak
    }

    /// Whether the reply of this number is its own, however late.
    pub(super) fn is_answered_by(&self, number: u64) -> bool {
        self.numbers.is_some_and(|(first, last)| (first..=last).contains(&number))
    }

    /// JetStream replied that it cannot take it now.
    pub(super) fn refused(&mut self, now: Instant) {
        self.is_awaited = false;
        self.next = Some(now + pause(self.sent + 1, rand::random()));
    }

    /// No server can receive it, or the consumer that would receive it is unknown.
    pub(super) fn suspend(&mut self) {
        self.is_awaited = false;
        self.next = None;
    }

    /// A server can receive it again.
    pub(super) fn resume(&mut self, now: Instant) {
        self.next.get_or_insert(now);
    }

    /// Sends it again at once: the event was redelivered, so JetStream did not receive it.
    pub(super) fn repeat(&mut self, now: Instant) {
        self.is_awaited = false;
        self.next = Some(now);
    }

    /// The next action.
    pub(super) fn due(&mut self, now: Instant) -> AckAction {
        if let Some((first, again)) = self.deadlines
            && now >= if self.sent == 0 { first } else { again }
        {
            return AckAction::GiveUp;
        }
        if self.next.is_none_or(|next| now < next) {
            return AckAction::Wait;
        }
        let unanswered = self.is_awaited;
        if unanswered {
            self.unanswered_since.get_or_insert(now);
        }
        AckAction::Send { unanswered }
    }

    /// The consumer's state as of that time, which decides about a sequence only if everything before or after it is settled or unknown to
    /// JetStream. A leader without a quorum counts acknowledgements that the next one may not know.
    pub(super) fn observed(&self, sequence: u64, info: &ConsumerInfo, asked_at: Instant) -> AckStatus {
        if self.unanswered_since.is_none_or(|since| asked_at < since) || !info.cluster.has_quorum() {
            AckStatus::Unknown
        } else if sequence > info.delivered.stream_seq {
            // What was sent since may arrive when the event has been delivered again, and would settle what waits here then.
            let is_ignored = self.sent_at.is_none_or(|sent_at| sent_at <= asked_at);
            if is_ignored { AckStatus::Forgotten } else { AckStatus::Unknown }
        } else if sequence <= info.ack_floor.stream_seq {
            AckStatus::Settled
        } else {
            AckStatus::Unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn info(floor: u64, delivered: u64) -> ConsumerInfo {
        let pair = |sequence: u64| serde_json::json!({"consumer_seq": 1, "stream_seq": sequence});
        serde_json::from_value(serde_json::json!({
            "created": "a", "delivered": pair(delivered), "ack_floor": pair(floor), "num_ack_pending": 1, "num_waiting": 0, "config": {},
        }))
        .unwrap()
    }

    #[test]
    fn each_settlement_is_what_the_server_reads() {
        assert_eq!(Settlement::Ack.payload(), "+ACK");
        let after = Duration::from_millis(1500);
        assert_eq!(Settlement::Nak { after }.payload(), r#"-NAK {"delay":1500000000}"#);
        assert_eq!(NAK_ON_SHUTDOWN.payload(), "-NAK");
        assert_eq!(Settlement::Term { reason: "last-attempt" }.payload(), "+TERM jetwright:last-attempt");
    }

    #[test]
    fn what_is_not_confirmed_is_sent_again_ever_less_often_and_without_end() {
        let mut now = Instant::now();
        let mut ack = PendingAck::new(&Settlement::Ack, now);
        assert_eq!(ack.due(now), AckAction::Send { unanswered: false });
        for (number, seconds) in [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4), (6, 4)] {
            ack.send(number, now);
            now += SECOND * seconds;
            assert_eq!(ack.due(now - Duration::from_millis(1)), AckAction::Wait);
            assert_eq!(ack.due(now), AckAction::Send { unanswered: true });
        }
        assert_eq!(ack.due(now + SECOND * 3600), AckAction::Send { unanswered: true });
        assert_eq!([0, 1, 6, 7].map(|number| ack.is_answered_by(number)), [false, true, true, false]);
    }

    #[test]
    fn a_negative_acknowledgement_is_not_repeated_when_the_next_attempt_may_have_begun() {
        let now = Instant::now();
        let given_up = |after, sent: bool| {
            let mut nak = PendingAck::new(&Settlement::Nak { after }, now);
            if sent {
                nak.send(1, now);
            }
            (0..=60).find(|seconds| nak.due(now + SECOND * *seconds) == AckAction::GiveUp)
        };
        assert_eq!([given_up(SECOND * 5, true), given_up(Duration::ZERO, true)], [Some(5), Some(1)]);
        assert_eq!([given_up(SECOND * 5, false), given_up(Duration::ZERO, false)], [Some(30), Some(30)]);
    }

    #[test]
    fn only_a_negative_acknowledgement_that_was_sent_is_done_by_a_redelivery() {
        let now = Instant::now();
        let mut nak = PendingAck::new(&NAK_ON_SHUTDOWN, now);
        let mut ack = PendingAck::new(&Settlement::Ack, now);
        assert!(!nak.is_done_by_redelivery());
        nak.send(1, now);
        ack.send(2, now);
        assert!(nak.is_done_by_redelivery() && !ack.is_done_by_redelivery());
    }

    #[test]
    fn what_no_server_could_receive_is_sent_when_one_can() {
        let now = Instant::now();
        let mut ack = PendingAck::new(&Settlement::Ack, now);
        ack.send(1, now);
        ack.suspend();
        assert_eq!(ack.due(now + SECOND * 60), AckAction::Wait);
        ack.resume(now + SECOND * 60);
        assert_eq!(ack.due(now + SECOND * 60), AckAction::Send { unanswered: false });
        ack.send(2, now);
        ack.resume(now);
        assert_eq!(ack.due(now), AckAction::Wait);
        ack.repeat(now);
        assert_eq!(ack.due(now), AckAction::Send { unanswered: false });
        ack.send(3, now);
        ack.refused(now);
        assert_eq!(ack.due(now + SECOND * 10), AckAction::Send { unanswered: false });
    }

    #[test]
    fn only_jetstreams_later_word_of_its_consumer_ends_an_acknowledgement() {
        let now = Instant::now();
        let mut ack = PendingAck::new(&Settlement::Ack, now);
        ack.send(1, now);
        let later = now + SECOND;
        assert_eq!(ack.observed(7, &info(9, 9), later), AckStatus::Unknown);
        ack.due(later);
        assert_eq!(ack.observed(7, &info(9, 9), now), AckStatus::Unknown);
        let fates = [(7, 9), (6, 9), (0, 7), (0, 6)]
            .map(|(floor, delivered)| ack.observed(7, &info(floor, delivered), later));
        assert_eq!(fates, [AckStatus::Settled, AckStatus::Unknown, AckStatus::Unknown, AckStatus::Forgotten]);
        ack.send(2, later + SECOND);
        let fates = [later, later + SECOND].map(|asked_at| ack.observed(7, &info(0, 6), asked_at));
        assert_eq!(fates, [AckStatus::Unknown, AckStatus::Forgotten], "it may settle the next delivery");
        let alone = serde_json::json!({"leader": "n1", "replicas": [{"active": 9_000_000_000_u64}, {"active": 9_000_000_000_u64}]});
        let without_quorum = |floor, delivered| {
            let mut info = info(floor, delivered);
            info.cluster = serde_json::from_value(alone.clone()).unwrap();
            info
        };
        for (floor, delivered) in [(9, 9), (0, 6)] {
            assert_eq!(
                ack.observed(7, &without_quorum(floor, delivered), later + SECOND),
                AckStatus::Unknown
            );
        }
    }
}
