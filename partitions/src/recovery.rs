//! Whether an ordered consumer has all of its deliveries, and what is still owed if it may not. Pure.
//!
//! One process pulls, so its deliveries are numbered without a gap. A gap, a number that goes back, a new connection, an
//! unanswered acknowledgement, or a start after another process: each is a doubt, and each begins the same recovery.
//! Nothing new begins until JetStream reports no unacknowledged deliveries but those in flight here. What arrives meanwhile
//! waits, and then everything continues in the order of the stream.
//!
//! A predecessor that was frozen may wake and acknowledge what is here again since. JetStream no longer counts that, so that a number alone could
//! hide what is still owed: what was unacknowledged at the start has to be here whole, or the time is over after which JetStream delivers it again.
//!
//! What is owed may come after as much that is new as the consumer lets go unacknowledged, so a recovery needs room for all of that.

use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};

/// How often JetStream is asked for what is still owed.
const INFO_INTERVAL: Duration = Duration::from_millis(250);
/// How long after ackWait JetStream may deliver again.
const TIMER_SLACK: Duration = Duration::from_secs(1);

/// Why deliveries may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecoveryCause {
    /// The connection was lost and reestablished.
    Reconnect,
    /// A delivery's number is not the one after the last.
    SequenceGap,
    /// A delivery's number is lower than the last: a server that was killed assigns numbers again.
    SequenceBack,
    /// An acknowledgement is unanswered: the consumer may have another leader now.
    UnansweredAck,
    /// The lease of the process was over for a while.
    LeaseOver,
    /// Another process is to have the consumer: nothing more begins here.
    HandOver,
}

impl RecoveryCause {
    /// Its name in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reconnect => "reconnect",
            Self::SequenceGap => "sequence-gap",
            Self::SequenceBack => "sequence-back",
            Self::UnansweredAck => "unanswered-ack",
            Self::LeaseOver => "lease-over",
            Self::HandOver => "hand-over",
        }
    }
}

/// What JetStream counts of a consumer (a part of CONSUMER.INFO).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsumerState {
    /// The newest delivery.
    pub delivered: Delivered,
    /// Stream sequence up to which everything is acknowledged.
    pub ack_floor: u64,
    /// Deliveries that are not acknowledged.
    pub ack_pending: u64,
}

/// A delivery's number and its event's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Number of the delivery.
    pub consumer_sequence: u64,
    /// Sequence of the event in its stream.
    pub stream_sequence: u64,
}

/// The progress of a recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is no recovery, or the response is older than the doubt.
    Unchanged,
    /// So many deliveries are still to arrive or to be settled.
    Owed(u64),
    /// Everything is here.
    Complete,
}

/// The sequence of deliveries of one ordered consumer.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// Number of the next delivery, if known.
    expected: Option<u64>,
    /// Since when there is doubt.
    recovering_since: Option<Instant>,
    began: Instant,
    next_info: Instant,
    /// When JetStream was to be asked, and the number that was expected then; since the last response.
    asked: Vec<(Instant, u64)>,
    /// After which time JetStream has delivered again what is unacknowledged and not here.
    patience: Duration,
    /// What others may still acknowledge, from the first response on.
    inherited: Option<Inherited>,
}

/// What was delivered to a predecessor.
#[derive(Clone, Copy, Debug)]
struct Inherited {
    /// Stream sequence of its newest delivery.
    delivered: u64,
    /// How many were unacknowledged; `None` after another doubt, and after the first recovery.
    unacknowledged: Option<u64>,
}

impl Recovery {
    /// In doubt: another process may have left deliveries unsettled. `ack_wait` is the consumer's.
    #[must_use]
    pub fn new(ack_wait: Duration, now: Instant) -> Self {
        Self {
            expected: None,
            recovering_since: Some(now),
            began: now,
            next_info: now,
            asked: Vec::new(),
            patience: ack_wait + TIMER_SLACK,
            inherited: None,
        }
    }

    /// Whether nothing new may begin.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.recovering_since.is_some()
    }

    /// How long nothing new has begun.
    #[must_use]
    pub fn took(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    /// A delivery of this number arrived; returns its doubt about the order, if any.
    pub fn received(&mut self, consumer_sequence: u64) -> Option<RecoveryCause> {
        let expected = self.expected.replace(consumer_sequence + 1)?;
        match consumer_sequence {
            sequence if sequence > expected => Some(RecoveryCause::SequenceGap),
            sequence if sequence < expected => Some(RecoveryCause::SequenceBack),
            _ => None,
        }
    }

    /// Begins a recovery, or makes the current one wait for a newer response. Returns whether it begins.
    pub fn doubt(&mut self, doubt: RecoveryCause, now: Instant) -> bool {
        if doubt == RecoveryCause::Reconnect {
            self.expected = None;
        }
        if let Some(inherited) = &mut self.inherited {
            // One of its own may be owed now, which what is inherited could hide.
            inherited.unacknowledged = None;
        }
        let begins = self.recovering_since.is_none();
        if begins {
            self.began = now;
        }
        self.recovering_since = Some(now);
        self.next_info = now;
        begins
    }

    /// Whether it is time to ask JetStream.
    pub fn is_info_due(&mut self, now: Instant) -> bool {
        let due = self.is_active() && now >= self.next_info;
        if due {
            self.next_info = now + INFO_INTERVAL;
            self.asked.extend(self.expected.map(|expected| (now, expected)));
        }
        due
    }

    /// JetStream responded to a question of that time. `in_flight` counts the deliveries of these stream sequences here, without
    /// those for which an acknowledgement was sent: JetStream may count those or not. It does not count what is up to its ack floor,
    /// as after a purge. `newest` is the highest stream sequence of what has not begun here, if there is any: where JetStream has not
    /// delivered as much, a server that was killed forgot it, and earlier events may still come.
    pub fn observed(
        &mut self,
        state: ConsumerState,
        asked_at: Instant,
        in_flight: impl Fn(&RangeInclusive<u64>) -> u64,
        newest: Option<u64>,
    ) -> Progress {
        let Some(recovering_since) = self.recovering_since.filter(|since| asked_at >= *since) else {
            return Progress::Unchanged;
        };
        let known = self.asked.iter().rfind(|(at, _)| *at <= asked_at).copied();
        self.asked.retain(|(at, _)| *at > asked_at);
        let ConsumerState { delivered, ack_floor, ack_pending } = state;
        let counted = ack_floor + 1..=delivered.stream_sequence;
        let is_forgotten = newest.is_some_and(|newest| newest > delivered.stream_sequence);
        let owed = ack_pending.saturating_sub(in_flight(&counted)).max(is_forgotten.into());
        let inherited = self.inherited.get_or_insert(Inherited {
            delivered: delivered.stream_sequence,
            unacknowledged: Some(ack_pending),
        });
        let here = in_flight(&(ack_floor + 1..=inherited.delivered));
        let is_whole = here == 0 || inherited.unacknowledged.is_some_and(|all| here >= all);
        let is_certain = is_whole || asked_at >= recovering_since + self.patience;
        if owed > 0 || !is_certain {
            return Progress::Owed(owed.max(1));
        }
        if known.is_some_and(|(_, expected)| delivered.consumer_sequence + 1 < expected) {
            // It was killed and forgot its last deliveries, whose numbers come again: a gap would not be seen that ends where one was expected.
            self.expected = None;
            self.next_info = recovering_since;
            return Progress::Owed(1);
        }
        inherited.unacknowledged = None;
        self.recovering_since = None;
        self.asked.clear();
        self.expected = self.expected.max(Some(delivered.consumer_sequence + 1));
        Progress::Complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(delivered: u64, ack_pending: u64) -> ConsumerState {
        let delivered = Delivered { consumer_sequence: delivered, stream_sequence: delivered * 10 };
        ConsumerState { delivered, ack_floor: 20, ack_pending }
    }

    const ACK_WAIT: Duration = Duration::from_secs(10);

    /// In order, after ten deliveries.
    fn in_order(now: Instant) -> Recovery {
        let mut recovery = Recovery::new(ACK_WAIT, now);
        assert_eq!(recovery.observed(state(10, 0), now, |_| 0, None), Progress::Complete);
        recovery
    }

    #[test]
    fn deliveries_without_a_hole_raise_no_doubt() {
        let mut recovery = in_order(Instant::now());
        assert!(!recovery.is_active());
        assert_eq!([11, 12, 13].map(|number| recovery.received(number)), [None; 3]);
        assert_eq!(recovery.received(15), Some(RecoveryCause::SequenceGap));
        assert_eq!(recovery.received(16), None);
        assert_eq!(recovery.received(12), Some(RecoveryCause::SequenceBack));
        assert_eq!(recovery.received(13), None);
    }

    #[test]
    fn the_first_delivery_after_a_recovery_is_the_one_after_what_jetstream_delivered() {
        let mut recovery = in_order(Instant::now());
        assert_eq!(recovery.received(12), Some(RecoveryCause::SequenceGap));
    }

    #[test]
    fn it_is_over_when_nothing_is_unacknowledged_but_what_is_here() {
        let now = Instant::now();
        let mut recovery = in_order(now);
        assert!(recovery.doubt(RecoveryCause::SequenceGap, now));
        assert!(!recovery.doubt(RecoveryCause::SequenceGap, now));
        let owed = |recovery: &mut Recovery, in_flight: u64| {
            let in_flight = |counted: &_| if *counted == (21..=140) { in_flight } else { 0 };
            recovery.observed(state(14, 4), now, in_flight, None)
        };
        assert_eq!([owed(&mut recovery, 1), owed(&mut recovery, 3)], [Progress::Owed(3), Progress::Owed(1)]);
        assert!(recovery.is_active());
        assert_eq!(owed(&mut recovery, 4), Progress::Complete);
        assert_eq!(owed(&mut recovery, 4), Progress::Unchanged);
    }

    #[test]
    fn what_a_killed_server_has_not_delivered_again_is_owed() {
        let now = Instant::now();
        let mut recovery = in_order(now);
        recovery.doubt(RecoveryCause::SequenceBack, now);
        let mut progress = |delivered| recovery.observed(state(delivered, 0), now, |_| 0, Some(105));
        assert_eq!([progress(10), progress(11)], [Progress::Owed(1), Progress::Complete]);
    }

    #[test]
    fn an_answer_to_an_older_question_says_nothing() {
        let now = Instant::now();
        let mut recovery = in_order(now);
        recovery.doubt(RecoveryCause::UnansweredAck, now + Duration::from_secs(1));
        assert_eq!(recovery.observed(state(10, 0), now, |_| 0, None), Progress::Unchanged);
        assert!(recovery.is_active());
        let newer = now + Duration::from_secs(2);
        assert_eq!(recovery.observed(state(10, 0), newer, |_| 0, None), Progress::Complete);
    }

    #[test]
    fn after_a_new_connection_numbers_begin_anywhere() {
        let now = Instant::now();
        let mut recovery = in_order(now);
        recovery.doubt(RecoveryCause::Reconnect, now);
        assert_eq!([4, 5].map(|number| recovery.received(number)), [None, None]);
        assert_eq!(recovery.received(7), Some(RecoveryCause::SequenceGap));
        assert_eq!(recovery.observed(state(7, 0), now, |_| 0, None), Progress::Complete);
        assert_eq!(recovery.received(8), None);
    }

    #[test]
    fn jetstream_is_asked_at_once_and_then_from_time_to_time() {
        let now = Instant::now();
        let mut recovery = in_order(now);
        assert!(!recovery.is_info_due(now));
        recovery.doubt(RecoveryCause::SequenceGap, now);
        assert_eq!([now, now, now + INFO_INTERVAL].map(|now| recovery.is_info_due(now)), [true, false, true]);
    }

    #[test]
    fn what_a_woken_predecessor_acknowledges_here_hides_nothing_that_is_owed() {
        let now = Instant::now();
        let mut recovery = Recovery::new(ACK_WAIT, now);
        assert_eq!(recovery.observed(state(10, 2), now, |_| 0, None), Progress::Owed(2));
        // One of the two is here, and acknowledged by the one before.
        assert_eq!(recovery.observed(state(10, 1), now, |_| 1, None), Progress::Owed(1));
        let mut whole = recovery.clone();
        assert_eq!(whole.observed(state(10, 1), now, |_| 2, None), Progress::Complete);
        let later = now + ACK_WAIT + TIMER_SLACK;
        assert_eq!(recovery.observed(state(10, 1), later, |_| 1, None), Progress::Complete);
        // As long as they are here, another doubt takes as long.
        recovery.doubt(RecoveryCause::SequenceGap, later);
        let counts = |counted: &RangeInclusive<u64>| if *counted.end() == 100 { 1 } else { 3 };
        assert_eq!(recovery.observed(state(14, 2), later, counts, None), Progress::Owed(1));
        assert_eq!(
            recovery.observed(state(14, 2), later, |counted| if *counted.end() == 100 { 0 } else { 2 }, None),
            Progress::Complete
        );
    }

    #[test]
    fn where_a_killed_server_forgot_deliveries_their_numbers_are_expected_again() {
        let now = Instant::now();
        let mut recovery = in_order(now);
        recovery.received(11);
        recovery.doubt(RecoveryCause::UnansweredAck, now);
        assert!(recovery.is_info_due(now));
        assert_eq!(recovery.observed(state(10, 0), now, |_| 0, None), Progress::Owed(1));
        assert!(recovery.is_info_due(now));
        assert_eq!(recovery.observed(state(10, 0), now, |_| 0, None), Progress::Complete);
        // The one with number 11 was lost.
        assert_eq!(recovery.received(12), Some(RecoveryCause::SequenceGap));
    }

    #[test]
    fn deliveries_that_come_after_the_question_are_none_that_were_forgotten() {
        let now = Instant::now();
        let mut recovery = in_order(now);
        recovery.doubt(RecoveryCause::UnansweredAck, now);
        assert!(recovery.is_info_due(now));
        recovery.received(11);
        assert_eq!(recovery.observed(state(10, 0), now, |_| 0, None), Progress::Complete);
        assert_eq!(recovery.received(12), None);
    }
}
