//! What JetStream is told of a delivery, in its words, and for how long. Pure.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::pull::EXPIRES;
use crate::connection::pause;

/// How long JetStream may take to confirm before it is told again.
const ANSWER: Duration = Duration::from_secs(1);
/// So often JetStream may be silent. It answers no settlement of a delivery that it does not know, and after a kill it
/// may have forgotten its newest deliveries: it makes them again, for which there must be room.
const SILENCES: u32 = 3;
/// How long a settlement is repeated at least while JetStream is away; when it is back, a delivery has its whole ackWait
/// again.
const AT_LEAST: Duration = Duration::from_secs(30);

/// How a delivery ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Settlement {
    /// It is done.
    Ack,
    /// It is to be delivered again, not before this time has passed.
    Nak { after: Duration },
    /// It is not to be delivered again.
    Term {
        /// The server tells it in its advisory.
        reason: &'static str,
    },
}

/// What the end of the program leaves no time for: it is for others, and not for a request of this process that is still open.
pub(super) const GIVEN_BACK: Settlement = Settlement::Nak { after: Duration::from_millis(1100) };
const _: () = assert!(EXPIRES.as_millis() < 1100);

/// The acknowledgement's payload that says that a delivery is still being handled (NATS ADR-15).
pub(super) const IN_PROGRESS: &str = "+WPI";

impl Settlement {
    /// The acknowledgement's payload, as the server reads it (NATS ADR-15; the reason of a term goes into its advisory).
    pub(super) fn payload(&self) -> Bytes {
        match self {
            Self::Ack => Bytes::from_static(b"+ACK"),
            Self::Nak { after } => format!("-NAK {{\"delay\":{}}}", after.as_nanos()).into(),
            Self::Term { reason } => format!("+TERM jetwright:{reason}").into(),
        }
    }
}

/// A settlement that JetStream has not confirmed yet.
#[derive(Debug)]
pub(super) struct Unconfirmed {
    pub(super) payload: Bytes,
    /// The numbers of the first and the last telling. Each has another, so that an answer to what was told of another delivery in the
    /// same place is not taken for one.
    numbers: Option<(u64, u64)>,
    told: usize,
    /// It is to be delivered again.
    again: bool,
    /// Told on the connection that there is, and not answered.
    asked: bool,
    silences: u32,
    /// When it is told again; None while there is nobody to tell.
    next: Option<Instant>,
    deadlines: Deadlines,
}

/// What is to be done about a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing now.
    Nothing,
    /// It is to be told (again), and JetStream was silent the last time.
    Tell { silent: bool },
    /// There is no use in it any more: the event is delivered again.
    GiveUp,
}

impl Unconfirmed {
    pub(super) fn new(settlement: &Settlement, ack_wait: Duration, now: Instant) -> Self {
        let deadlines = Deadlines::new(settlement, ack_wait, now);
        let (payload, again) = (settlement.payload(), matches!(settlement, Settlement::Nak { .. }));
        Self { payload, numbers: None, told: 0, again, asked: false, silences: 0, next: Some(now), deadlines }
    }

    /// It is told now under this number.
    pub(super) fn tell(&mut self, number: u64, now: Instant) {
        self.numbers = Some((self.numbers.map_or(number, |(first, _)| first), number));
        self.told += 1;
        self.asked = true;
        self.next = Some(now + ANSWER);
    }

    /// Whether a delivery that comes again is what it asked for.
    pub(super) fn is_done_by_redelivery(&self) -> bool {
        self.again && self.told > 0
    }

    /// Whether the answer of this number is to it, however late.
    pub(super) fn is_answered_by(&self, number: u64) -> bool {
        self.numbers.is_some_and(|(first, last)| (first..=last).contains(&number))
    }

    /// JetStream answered that it cannot take it now.
    pub(super) fn refused(&mut self, now: Instant) {
        self.asked = false;
        self.next = Some(now + pause(self.told + 1, rand::random()));
    }

    /// The connection was lost, and with it the answer.
    pub(super) fn lost(&mut self) {
        self.asked = false;
        self.next = None;
    }

    /// There is a connection again.
    pub(super) fn found(&mut self, now: Instant) {
        self.next = Some(now);
    }

    /// What is to be done now.
    pub(super) fn due(&mut self, now: Instant) -> Due {
        let deadline = if self.told == 0 { self.deadlines.first } else { self.deadlines.repeated };
        if now >= deadline {
            return Due::GiveUp;
        }
        if self.next.is_none_or(|next| now < next) {
            return Due::Nothing;
        }
        let silent = self.asked;
        self.silences += u32::from(silent);
        if self.silences >= SILENCES { Due::GiveUp } else { Due::Tell { silent } }
    }
}

/// Until when a settlement is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Deadlines {
    /// The first time, which may have to wait for NATS.
    first: Instant,
    /// Each time after.
    repeated: Instant,
}

impl Deadlines {
    /// A retry whose first telling was heard, and its answer lost, is delivered again after its delay: told later than
    /// that, it would start the event once more beside its next attempt.
    fn new(settlement: &Settlement, ack_wait: Duration, now: Instant) -> Self {
        let first = now + ack_wait.max(AT_LEAST);
        let repeated = match settlement {
            Settlement::Nak { after } => first.min(now + *after),
            Settlement::Ack | Settlement::Term { .. } => first,
        };
        Self { first, repeated }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_settlement_is_what_the_server_reads() {
        assert_eq!(Settlement::Ack.payload(), "+ACK");
        let after = Duration::from_millis(1500);
        assert_eq!(Settlement::Nak { after }.payload(), r#"-NAK {"delay":1500000000}"#);
        assert_eq!(Settlement::Term { reason: "last-attempt" }.payload(), "+TERM jetwright:last-attempt");
    }

    #[test]
    fn a_retry_is_not_repeated_when_the_next_attempt_may_have_begun() {
        let now = Instant::now();
        let deadlines = |settlement: &Settlement| {
            let Deadlines { first, repeated } = Deadlines::new(settlement, Duration::from_mins(1), now);
            ((first - now).as_millis(), (repeated - now).as_millis())
        };
        let after = |milliseconds| Settlement::Nak { after: Duration::from_millis(milliseconds) };
        assert_eq!(deadlines(&after(1500)), (60_000, 1500));
        assert_eq!(deadlines(&after(90_000)), (60_000, 60_000));
        assert_eq!(deadlines(&Settlement::Ack), (60_000, 60_000));
    }

    #[test]
    fn what_is_not_confirmed_is_told_again_until_there_is_no_use_in_it() {
        let begun = Instant::now();
        let after = |milliseconds| begun + Duration::from_millis(milliseconds);
        let mut settlement = Unconfirmed::new(&Settlement::Ack, Duration::from_secs(5), begun);
        assert_eq!(settlement.due(begun), Due::Tell { silent: false });
        settlement.tell(1, begun);
        assert_eq!(settlement.due(after(999)), Due::Nothing);
        assert_eq!(settlement.due(after(1000)), Due::Tell { silent: true });
        settlement.tell(2, after(1000));
        assert_eq!([0, 1, 2, 3].map(|number| settlement.is_answered_by(number)), [false, true, true, false]);
        settlement.lost();
        assert_eq!(settlement.due(after(10_000)), Due::Nothing);
        settlement.found(after(10_000));
        assert_eq!(settlement.due(after(10_000)), Due::Tell { silent: false });
        settlement.tell(3, after(10_000));
        assert_eq!(settlement.due(after(11_000)), Due::Tell { silent: true });
        settlement.tell(4, after(11_000));
        assert_eq!(settlement.due(after(12_000)), Due::GiveUp);
    }

    #[test]
    fn what_nobody_could_be_told_is_given_up_in_the_end() {
        let begun = Instant::now();
        let mut settlement = Unconfirmed::new(&Settlement::Ack, Duration::from_secs(5), begun);
        settlement.lost();
        assert_eq!(settlement.due(begun + Duration::from_secs(29)), Due::Nothing);
        assert_eq!(settlement.due(begun + Duration::from_secs(30)), Due::GiveUp);
    }
}
