//! What was requested from a consumer and has not arrived yet, in messages and in bytes. Pure.
//!
//! A delivery does not name its pull request, and a completely served request ends silently. So requests are spread
//! over a few subscriptions in turn, a second each: what the requests of one turn still owe when the turn comes again is lost (their
//! server died silently), and is not waited for any more.

use std::{collections::VecDeque, time::Duration};

use jetwright_partitions::lease::MAX_PULL;
use tokio::time::Instant;

/// How long a request stays open at the server, where that is not for long.
pub(super) const EXPIRES: Duration = Duration::from_secs(1);
/// How long it does at most.
pub(super) const MAX_EXPIRES: Duration = MAX_PULL;
/// How much later its end may arrive.
pub(super) const NO_ANSWER: Duration = Duration::from_secs(2);
/// Subscriptions over which requests are spread.
pub(super) const TURNS: usize = 4;
const TURN: Duration = Duration::from_secs(1);
/// The duration of a turn where requests may stay open for longer.
const LONG_TURN: Duration = Duration::from_secs(4);
// A turn that comes again has no request open: its last one was sent when it ended, and that one's end has arrived since.
const _: () = assert!((TURNS as u64 - 1) * TURN.as_secs() >= EXPIRES.as_secs() + NO_ANSWER.as_secs());
const _: () =
    assert!((TURNS as u64 - 1) * LONG_TURN.as_secs() >= MAX_EXPIRES.as_secs() + NO_ANSWER.as_secs());

/// One open request, and what it still owes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OpenRequest {
    number: u64,
    turn: usize,
    count: usize,
    bytes: usize,
    allowed_bytes: usize,
}

/// A new request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NewRequest {
    pub(super) number: u64,
    pub(super) turn: usize,
}

/// How much room there is, and how much of it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// Maximum deliveries in flight.
    pub(super) capacity: usize,
    /// Deliveries in flight.
    pub(super) in_flight: usize,
    /// Bytes that may be requested, beside those in flight and owed already.
    pub(super) bytes: usize,
    /// Whether progress depends on an owed delivery: then one more is requested even without room.
    pub(super) is_recovering: bool,
}

/// The account of pull requests at one consumer.
#[derive(Debug)]
pub(super) struct PullCredits {
    /// Oldest first.
    open: VecDeque<OpenRequest>,
    numbers: u64,
    /// Requests up to this number owe nothing any more.
    forgotten: u64,
    turn: usize,
    turn_began: Option<Instant>,
    turn_lasts: Duration,
    /// When the server ends the last of them.
    open_until: Option<Instant>,
}

impl PullCredits {
    /// For requests that stay open for as long as this, at most.
    pub(super) fn new(longest: Duration) -> Self {
        Self {
            open: VecDeque::new(),
            numbers: 0,
            forgotten: 0,
            turn: 0,
            turn_began: None,
            turn_lasts: if longest > EXPIRES { LONG_TURN } else { TURN },
            open_until: None,
        }
    }

    /// A new request for so much, which the server ends at that time.
    pub(super) fn request(&mut self, count: usize, bytes: usize, ends: Instant) -> NewRequest {
        self.numbers += 1;
        let (number, turn) = (self.numbers, self.turn);
        self.open.push_back(OpenRequest { number, turn, count, bytes, allowed_bytes: bytes });
        self.open_until = self.open_until.max(Some(ends));
        NewRequest { number, turn }
    }

    /// Continues with the next turn when this one is over, and writes off what the next one's earlier requests still owe.
    pub(super) fn next_turn(&mut self, now: Instant) {
        if self.turn_began.is_none_or(|began| now >= began + self.turn_lasts) {
            self.turn = (self.turn + 1) % TURNS;
            self.turn_began = Some(now);
            self.open.retain(|request| request.turn != self.turn);
        }
    }

    /// Messages that are owed.
    pub(super) fn outstanding(&self) -> usize {
        self.open.iter().map(|request| request.count).sum()
    }

    /// Bytes that may arrive with them.
    pub(super) fn outstanding_bytes(&self) -> usize {
        self.open.iter().map(|request| request.bytes).sum()
    }

    /// Requests that may be open at the server.
    pub(super) fn open_requests(&self) -> usize {
        self.open.len()
    }

    /// A message of so many bytes arrived over the subscription of this turn.
    pub(super) fn received(&mut self, turn: usize, bytes: usize) {
        let Some(place) = self.open.iter().position(|request| request.turn == turn) else { return };
        let request = &mut self.open[place];
        request.count = request.count.saturating_sub(1);
        let is_limited = request.bytes > 0;
        request.bytes = request.bytes.saturating_sub(bytes);
        // The server ends a request silently when its bytes are used up too.
        if request.count > 0 && (request.bytes > 0 || !is_limited) {
            return;
        }
        // Its remainder may be another one's of this turn: the server serves all open requests.
        let left = self.open.remove(place).map_or(0, |request| request.bytes);
        if let Some(next) = self.open.iter_mut().find(|request| request.turn == turn) {
            next.bytes += left;
        }
    }

    /// A request ended with so many messages unserved; all of it if the server does not say. Returns the bytes that it allowed.
    pub(super) fn ended(&mut self, turn: usize, number: u64, unserved: Option<usize>) -> usize {
        if number <= self.forgotten {
            return 0;
        }
        let place = self.open.iter().position(|request| request.number == number);
        let ended = place.and_then(|place| self.open.remove(place));
        let own = ended.map_or(0, |request| request.count);
        // Arrivals were counted for the oldest request, which may not have been theirs: the sum of the turn is what counts.
        let unserved = unserved.unwrap_or(own);
        let mut rest = unserved.saturating_sub(own);
        let mut owed = own.saturating_sub(unserved);
        for request in self.open.iter_mut().filter(|request| request.turn == turn) {
            let written_off = rest.min(request.count);
            rest -= written_off;
            request.count = request.count - written_off + owed;
            owed = 0;
        }
        self.open.retain(|request| request.count > 0);
        ended.map_or(0, |request| request.allowed_bytes)
    }

    /// Forgets every request.
    pub(super) fn forget(&mut self) {
        self.open.clear();
        self.forgotten = self.numbers;
        self.turn_began = None;
        self.open_until = None;
    }

    /// When the server must have ended every request, and silence means that it does not respond.
    pub(super) fn unanswered_from(&self) -> Option<Instant> {
        self.open_until().map(|until| until + NO_ANSWER)
    }

    /// Until when the server has a request, if it has one.
    pub(super) fn open_until(&self) -> Option<Instant> {
        self.open_until.filter(|_| self.outstanding() > 0)
    }

    /// The deliveries in flight at which there is room enough to request more, if many are owed.
    pub(super) fn room_at(&self, capacity: usize) -> usize {
        capacity.saturating_sub(self.outstanding() + capacity.div_ceil(8))
    }

    /// How much to request now: all the room there is, but not a few at a time while many are owed.
    pub(super) fn wanted(&self, room: Room) -> usize {
        let Room { capacity, in_flight, bytes, .. } = room;
        let outstanding = self.outstanding();
        let free = capacity.saturating_sub(in_flight + outstanding);
        let too_few = outstanding > 0 && (free < capacity.div_ceil(8) || outstanding * 2 > capacity);
        if too_few || bytes == 0 { 0 } else { free }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(in_flight: usize, capacity: usize) -> Room {
        Room { capacity, in_flight, bytes: usize::MAX, is_recovering: false }
    }

    fn request(credits: &mut PullCredits, count: usize) -> NewRequest {
        credits.request(count, count * 10, Instant::now())
    }

    #[test]
    fn no_more_is_asked_for_than_there_is_room() {
        let mut credits = PullCredits::new(EXPIRES);
        assert_eq!(credits.wanted(room(0, 16)), 16);
        let NewRequest { turn, .. } = request(&mut credits, 16);
        assert_eq!(credits.wanted(room(0, 16)), 0);
        (0..12).for_each(|_| credits.received(turn, 10));
        // Twelve are in flight and four are owed: full.
        assert_eq!(credits.wanted(room(12, 16)), 0);
        // Six are done.
        assert_eq!(credits.wanted(room(6, 16)), 6);
        assert_eq!(credits.wanted(Room { bytes: 0, ..room(6, 16) }), 0);
    }

    #[test]
    fn a_single_slot_is_asked_for_only_when_nothing_is_owed() {
        let mut credits = PullCredits::new(EXPIRES);
        assert_eq!(credits.wanted(room(15, 16)), 1);
        let NewRequest { turn, .. } = request(&mut credits, 1);
        assert_eq!(credits.wanted(room(14, 16)), 0);
        credits.received(turn, 10);
        assert_eq!(credits.wanted(room(14, 16)), 2);
        assert_eq!(credits.wanted(room(1, 1)), 0);
    }

    #[test]
    fn what_a_server_calls_off_makes_room_again() {
        let mut credits = PullCredits::new(EXPIRES);
        let first = request(&mut credits, 10);
        (0..3).for_each(|_| credits.received(first.turn, 10));
        assert_eq!((credits.outstanding(), credits.outstanding_bytes()), (7, 70));
        credits.ended(first.turn, first.number, Some(7));
        assert_eq!((credits.outstanding(), credits.outstanding_bytes()), (0, 0));
        let second = request(&mut credits, 5);
        credits.ended(second.turn, second.number, None);
        assert_eq!(credits.outstanding(), 0);
        credits.ended(second.turn, 99, None);
        assert_eq!(credits.unanswered_from(), None);
    }

    #[test]
    fn the_sum_is_right_whichever_request_was_served() {
        let mut credits = PullCredits::new(EXPIRES);
        let (first, second) = (request(&mut credits, 10), request(&mut credits, 10));
        // All of these served the second, and are taken for the first.
        (0..6).for_each(|_| credits.received(first.turn, 10));
        credits.ended(first.turn, first.number, Some(10));
        assert_eq!(credits.outstanding(), 4);
        credits.ended(second.turn, second.number, Some(4));
        assert_eq!(credits.outstanding(), 0);
        // The other way round.
        let (third, _) = (request(&mut credits, 10), request(&mut credits, 10));
        (0..10).for_each(|_| credits.received(third.turn, 10));
        credits.ended(third.turn, third.number, Some(3));
        assert_eq!(credits.outstanding(), 7);
    }

    #[test]
    fn the_end_of_a_forgotten_request_is_not_taken_for_that_of_a_new_one() {
        let mut credits = PullCredits::new(EXPIRES);
        let old = request(&mut credits, 10);
        credits.forget();
        request(&mut credits, 10);
        credits.ended(old.turn, old.number, Some(10));
        assert_eq!(credits.outstanding(), 10);
    }

    #[test]
    fn what_was_lost_while_asking_went_on_makes_room_again() {
        let (mut credits, mut now) = (PullCredits::new(EXPIRES), Instant::now());
        credits.next_turn(now);
        // Six of these are lost with the server that had them, and it says nothing.
        let NewRequest { turn, .. } = credits.request(8, 80, now);
        (0..2).for_each(|_| credits.received(turn, 10));
        for _ in 0..10 {
            now += TURN / 2;
            credits.next_turn(now);
            // Everything later is served at once.
            let count = credits.wanted(room(0, 16));
            let NewRequest { turn, .. } = credits.request(count, 10 * count, now);
            (0..count).for_each(|_| credits.received(turn, 10));
        }
        assert_eq!((credits.outstanding(), credits.wanted(room(0, 16))), (0, 16));
    }
}
