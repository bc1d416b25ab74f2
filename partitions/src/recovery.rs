//! Whether an ordered consumer has all of its deliveries, and what is still owed if it may not. Pure.
//!
//! One process pulls, so its deliveries are numbered without a gap. A gap, a number that goes back, a new connection, an
//! unanswered acknowledgement, or a start after another process: each is a doubt, and each begins the same recovery.
//! Nothing new begins until JetStream reports no unacknowledged deliveries but those in flight here. What arrives meanwhile
//! waits, and then everything continues in the order of the stream.
//!
//! A predecessor that was frozen may wake and acknowledge what is here again since. JetStream no longer counts that, so that a number alone could
//! hide what is still owed. So JetStream is asked before the first pull request ([`Recovery::may_pull`]): what was unacknowledged then has to be here
//! whole, and every delivery since, by its number. Otherwise JetStream must show that it redelivered everything that is unacknowledged
//! ([`redelivery`]). That is due ackWait after the latest of three: the doubt, a change of leader, or a delivery that is seen to be missing. A new
//! leader delivers nothing until it is elected and asked again.
//!
//! Nor does JetStream count an event that is removed from the stream while it waits here, and that could hide what a predecessor had as well. So it
//! has to be here, or JetStream's floor beyond it, and each delivery that was lost since, by its number, has to come again too.
//!
//! What is owed may come after as much that is new as the consumer lets go unacknowledged, so a recovery needs room for all of that.

use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use self::redelivery::RedeliveryProof;
pub use self::{
    cause::RecoveryCause,
    response::{ConsumerState, Delivered, Leadership, Response},
};
use crate::lost::Lost;

mod cause;
mod redelivery;
mod response;

/// How often JetStream is asked for what is still owed.
const INFO_INTERVAL: Duration = Duration::from_millis(250);

/// What is known of an event that is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It was never delivered before.
    New,
    /// It was delivered before, and is here or settled here.
    Known,
    /// It was delivered before, and is not here. Its stream sequence.
    Owed(u64),
}

/// The progress of a recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is no recovery, or the response is older than the doubt.
    Unchanged,
    /// So many deliveries are still to arrive or to be settled.
    Owed(u64),
    /// As far as JetStream counts there is none, but it has yet to show that it redelivered what was due; or its count says nothing, for want of a quorum.
    Unproven,
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
    /// The number that was expected at each doubt, and when JetStream was to be asked; since the question of the last response.
    expectations: Vec<(Instant, u64)>,
    /// How many deliveries were owed by the last response, less those that arrived since.
    owed: u64,
    /// Something arrived.
    has_received: bool,
    lost: Lost,
    /// What others may still acknowledge, from the first response on.
    inherited: Option<Inherited>,
    /// When this was complete the last time everything unacknowledged was here, and each delivery since has come.
    is_whole: bool,
    /// The leader of the newest response.
    leadership: Option<Leadership>,
    /// Since when that is another one than before.
    led_since: Option<Instant>,
    /// That everything which was unacknowledged at the last doubt was redelivered.
    redelivery: Option<RedeliveryProof>,
    /// Number of the newest delivery that JetStream has made and that is not here, and since when.
    missing: Option<(u64, Instant)>,
    /// That the missing delivery was redelivered.
    missing_redelivery: Option<RedeliveryProof>,
}

/// What was delivered to a predecessor.
#[derive(Clone, Copy, Debug)]
struct Inherited {
    /// Stream sequence of its newest delivery: once everything up to it is settled, nothing is left of what it had.
    delivered: u64,
    /// How many were unacknowledged; `None` where something was here already, after another doubt, and after the first recovery.
    unacknowledged: Option<u64>,
}

impl Recovery {
    /// In doubt: another process may have left deliveries unsettled.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            expected: None,
            recovering_since: Some(now),
            began: now,
            next_info: now,
            expectations: Vec::new(),
            owed: 0,
            has_received: false,
            lost: Lost::default(),
            inherited: None,
            is_whole: false,
            leadership: None,
            led_since: None,
            redelivery: None,
            missing: None,
            missing_redelivery: None,
        }
    }

    /// Whether nothing new may begin.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.recovering_since.is_some()
    }

    /// Whether deliveries may be asked for. What was delivered to a predecessor is asked for first: a number of what is unacknowledged
    /// says nothing of what is here already.
    #[must_use]
    pub fn may_pull(&self) -> bool {
        self.inherited.is_some()
    }

    /// How long nothing new has begun.
    #[must_use]
    pub fn took(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    /// A delivery of this number arrived; returns its doubt about the order, if any.
    pub fn received(&mut self, consumer_sequence: u64, arrival: Arrival) -> Option<RecoveryCause> {
        self.has_received = true;
        if arrival == Arrival::New {
            self.proofs().for_each(|proof| proof.received_new(consumer_sequence));
        }
        // What a predecessor had may come for the first time.
        let is_own = |sequence| self.inherited.is_none_or(|inherited| sequence > inherited.delivered);
        let is_owed = matches!(arrival, Arrival::Owed(sequence) if is_own(sequence));
        let has_lost = self.lost.received(consumer_sequence, is_owed);
        if self.owed > 0 {
            self.owed -= 1;
            // This may have been the last one.
            if let (0, Some(recovering_since)) = (self.owed, self.recovering_since) {
                self.next_info = recovering_since;
            }
        }
        match self.expected.replace(consumer_sequence + 1) {
            Some(expected) if consumer_sequence < expected => Some(RecoveryCause::SequenceBack),
            Some(expected) if consumer_sequence > expected => Some(RecoveryCause::SequenceGap),
            // What is lost over a new connection comes again later than what was delivered before.
            None if has_lost => Some(RecoveryCause::SequenceGap),
            _ => None,
        }
    }

    /// Begins a recovery, or makes the current one wait for a newer response. Returns whether it begins.
    pub fn doubt(&mut self, doubt: RecoveryCause, now: Instant) -> bool {
        // Where an acknowledgement was not answered, no delivery is missing.
        let is_of_deliveries = !matches!(doubt, RecoveryCause::UnansweredAck | RecoveryCause::DeniedAck);
        if doubt == RecoveryCause::DeniedAck {
            self.lost.released();
        }
        self.is_whole &= doubt == RecoveryCause::UnansweredAck;
        // Before the first delivery nothing of its own is owed, which what is inherited could hide, and the first number is known.
        if self.has_received && is_of_deliveries {
            if doubt == RecoveryCause::Reconnect {
                self.expected = None;
            }
            if let Some(inherited) = &mut self.inherited {
                inherited.unacknowledged = None;
            }
        }
        let begins = self.recovering_since.is_none();
        if begins {
            self.began = now;
        }
        self.recovering_since = Some(now);
        self.next_info = now;
        self.note_expected(now);
        begins
    }

    /// A later response may show that JetStream has forgotten deliveries.
    fn note_expected(&mut self, now: Instant) {
        if let Some(expected) = self.expected
            && self.expectations.last().is_none_or(|(_, last)| *last != expected)
        {
            self.expectations.push((now, expected));
        }
    }

    /// Whether it is time to ask JetStream.
    pub fn is_info_due(&mut self, now: Instant) -> bool {
        if self.recovering_since.is_none() || now < self.next_info {
            return false;
        }
        self.next_info = now + INFO_INTERVAL;
        self.note_expected(now);
        true
    }

    /// What a predecessor had, as the first response says, also where it is older than another doubt.
    fn inherited(&mut self, response: Response) -> Option<Inherited> {
        if self.inherited.is_none() && response.asked_at >= self.began {
            let ConsumerState { delivered, ack_floor, ack_pending, .. } = response.state;
            let is_first = !self.has_received;
            self.inherited = Some(Inherited {
                // Where nothing is unacknowledged, the floor may lag behind what was delivered.
                delivered: if ack_pending == 0 { ack_floor } else { delivered.stream_sequence },
                unacknowledged: is_first.then_some(ack_pending),
            });
            if is_first {
                self.expected = Some(delivered.consumer_sequence + 1);
                self.lost = Lost::from(self.expected);
            }
        }
        self.inherited
    }

    /// A response names the leader of the consumer. Another one has to be elected first, and pull requests and naks do not reach it.
    pub fn note_leader(&mut self, leadership: &Leadership, now: Instant) {
        if self.leadership.as_ref() != Some(leadership) {
            self.leadership = Some(leadership.clone());
            self.led_since = Some(now);
        }
    }

    /// A leader without a quorum counts acknowledgements that the next one may not know.
    fn observe_without_quorum(&mut self, response: Response) -> Progress {
        if self.recovering_since.is_none_or(|since| response.asked_at < since) {
            return Progress::Unchanged;
        }
        self.proofs().for_each(|proof| proof.observed(response));
        Progress::Unproven
    }

    fn proofs(&mut self) -> impl Iterator<Item = &mut RedeliveryProof> {
        [&mut self.redelivery, &mut self.missing_redelivery].into_iter().flatten()
    }

    /// Whether JetStream has redelivered everything that is unacknowledged, by this response too.
    fn observe_redelivery(&mut self, recovering_since: Instant, response: Response) -> bool {
        let since = self.led_since.map_or(recovering_since, |since| since.max(recovering_since));
        let missing_since = self.missing.map(|(_, since)| since);
        let mut is_complete = true;
        let proofs = [(&mut self.redelivery, Some(since)), (&mut self.missing_redelivery, missing_since)];
        for (proof, since) in proofs {
            *proof = since.map(|since| {
                let due_at = since + response.state.ack_wait;
                let same = proof.filter(|proof| proof.due_at() == due_at);
                let mut proof = same.unwrap_or_else(|| RedeliveryProof::new(due_at));
                proof.observed(response);
                is_complete &= proof.is_complete();
                proof
            });
        }
        is_complete
    }

    /// JetStream was asked, and answered. `in_flight` counts the deliveries of these stream sequences here, without
    /// those for which an acknowledgement was sent: JetStream may count those or not. It does not count what is up to its ack floor,
    /// as after a purge. `newest_waiting` is the highest stream sequence of what has not begun here, if there is any: where JetStream has not
    /// delivered as much, a server that was killed forgot it, and earlier events may still come.
    pub fn observed(
        &mut self,
        response: Response,
        in_flight: impl Fn(&RangeInclusive<u64>) -> u64,
        newest_waiting: Option<u64>,
    ) -> Progress {
        if !response.state.has_quorum {
            return self.observe_without_quorum(response);
        }
        let Some(inherited) = self.inherited(response) else { return Progress::Unchanged };
        let Response { state, asked_at, answered_at } = response;
        let Some(recovering_since) = self.recovering_since.filter(|since| asked_at >= *since) else {
            return Progress::Unchanged;
        };
        let known = self.expectations.iter().rposition(|(at, _)| *at <= asked_at);
        self.expectations.drain(..known.unwrap_or(0));
        let ConsumerState { delivered, ack_floor, ack_pending, .. } = state;
        let counted = ack_floor + 1..=delivered.stream_sequence;
        let is_forgotten = newest_waiting.is_some_and(|newest| newest > delivered.stream_sequence);
        let counted = in_flight(&counted);
        let owed = ack_pending.saturating_sub(counted).max(is_forgotten.into());
        self.owed = owed;
        let is_settled = ack_floor >= inherited.delivered;
        let is_here = |all| in_flight(&(ack_floor + 1..=inherited.delivered)) >= all;
        let has_inherited = is_settled || inherited.unacknowledged.is_some_and(is_here);
        let newest = delivered.consumer_sequence;
        let has_numbers = self.lost.knows(newest);
        self.missing = self.missing.filter(|(number, _)| !has_numbers && *number == newest);
        if !has_numbers {
            self.missing.get_or_insert((newest, answered_at));
        }
        let known = self.expectations.first().filter(|(at, _)| *at <= asked_at);
        let is_forgetful = known.is_some_and(|(_, expected)| newest + 1 < *expected);
        self.is_whole &= !is_forgetful;
        let has_all = (has_inherited || self.is_whole) && has_numbers && self.lost.is_empty();
        let is_redelivered = self.observe_redelivery(recovering_since, response);
        // Without any of them here, none stands for another.
        let is_certain = counted == 0 || has_all || is_redelivered;
        if owed > 0 {
            return Progress::Owed(owed);
        }
        if !is_certain {
            return Progress::Unproven;
        }
        if is_forgetful {
            // It was killed and forgot its last deliveries, whose numbers come again: a gap would not be seen that ends where one was expected.
            self.expected = None;
            self.expectations.clear();
            self.next_info = recovering_since;
            return Progress::Owed(1);
        }
        self.inherited = Some(Inherited { unacknowledged: None, ..inherited });
        self.recovering_since = None;
        self.is_whole = true;
        (self.redelivery, self.missing, self.missing_redelivery) = (None, None, None);
        self.expectations.clear();
        self.owed = 0;
        self.expected = self.expected.max(Some(newest + 1));
        self.lost = Lost::from(self.expected);
        Progress::Complete
    }
}

#[cfg(test)]
mod tests;
