use super::{Arrival::New, redelivery::MAX_REDELIVERY_DELAY, *};

fn state(delivered: u64, ack_pending: u64) -> ConsumerState {
    let delivered = Delivered { consumer_sequence: delivered, stream_sequence: delivered * 10 };
    ConsumerState {
        delivered,
        ack_floor: 20,
        ack_pending,
        ack_wait: ACK_WAIT,
        pull_requests: 1,
        is_paused: false,
        has_quorum: true,
    }
}

/// All of what is here, so much, was delivered since.
fn since_then(count: u64) -> impl Fn(&RangeInclusive<u64>) -> u64 {
    move |counted| if *counted.end() == 100 { 0 } else { count }
}

const ACK_WAIT: Duration = Duration::from_secs(10);
/// An event that no predecessor had, delivered again.
const AGAIN: Arrival = Arrival::Owed(101);

impl Recovery {
    /// Asks once, and has the response at once.
    fn asked(
        &mut self,
        state: ConsumerState,
        at: Instant,
        in_flight: impl Fn(&RangeInclusive<u64>) -> u64,
        newest_waiting: Option<u64>,
    ) -> Progress {
        self.observed(Response { state, asked_at: at, answered_at: at }, in_flight, newest_waiting)
    }

    /// Asks as often as it takes JetStream to show that it redelivered what was due then.
    fn asked_again(
        &mut self,
        state: ConsumerState,
        due_at: Instant,
        in_flight: impl Fn(&RangeInclusive<u64>) -> u64,
        newest_waiting: Option<u64>,
    ) -> Progress {
        for step in 0..4 {
            let progress =
                self.asked(state, due_at + step * MAX_REDELIVERY_DELAY / 2, &in_flight, newest_waiting);
            assert_ne!(progress, Progress::Complete);
        }
        self.asked(state, due_at + 2 * MAX_REDELIVERY_DELAY, in_flight, newest_waiting)
    }
}

/// In order, after ten deliveries.
fn in_order(now: Instant) -> Recovery {
    let mut recovery = Recovery::new(now);
    assert_eq!(recovery.asked(state(10, 0), now, |_| 0, None), Progress::Complete);
    recovery
}

/// After ten deliveries of a predecessor, which left so many unacknowledged.
fn inheriting(unacknowledged: u64, now: Instant) -> Recovery {
    let mut recovery = Recovery::new(now);
    let progress = recovery.asked(state(10, unacknowledged), now, |_| 0, None);
    assert_eq!(progress, Progress::Owed(unacknowledged));
    recovery
}

#[test]
fn deliveries_without_a_hole_raise_no_doubt() {
    let mut recovery = in_order(Instant::now());
    assert!(!recovery.is_active());
    assert_eq!([11, 12, 13].map(|number| recovery.received(number, New)), [None; 3]);
    assert_eq!(recovery.received(15, New), Some(RecoveryCause::SequenceGap));
    assert_eq!(recovery.received(16, New), None);
    assert_eq!(recovery.received(12, New), Some(RecoveryCause::SequenceBack));
    assert_eq!(recovery.received(13, New), None);
}

#[test]
fn the_first_delivery_after_a_recovery_is_the_one_after_what_jetstream_delivered() {
    let mut recovery = in_order(Instant::now());
    assert_eq!(recovery.received(12, New), Some(RecoveryCause::SequenceGap));
}

#[test]
fn it_is_over_when_nothing_is_unacknowledged_but_what_is_here() {
    let now = Instant::now();
    let mut recovery = in_order(now);
    assert!(recovery.doubt(RecoveryCause::SequenceGap, now));
    assert!(!recovery.doubt(RecoveryCause::SequenceGap, now));
    recovery.received(14, New);
    let owed = |recovery: &mut Recovery, delivered: u64, in_flight: u64| {
        let range = 21..=delivered * 10;
        let in_flight = |counted: &_| if *counted == range { in_flight } else { 0 };
        recovery.asked(state(delivered, 4), now, in_flight, None)
    };
    assert_eq!(owed(&mut recovery, 14, 1), Progress::Owed(3));
    assert_eq!([15, 16].map(|number| recovery.received(number, AGAIN)), [None; 2]);
    assert_eq!(owed(&mut recovery, 16, 3), Progress::Owed(1));
    assert!(recovery.is_active());
    recovery.received(17, AGAIN);
    assert_eq!(owed(&mut recovery, 17, 4), Progress::Complete);
    assert_eq!(owed(&mut recovery, 17, 4), Progress::Unchanged);
}

#[test]
fn what_a_killed_server_has_not_delivered_again_is_owed() {
    let now = Instant::now();
    let mut recovery = in_order(now);
    recovery.doubt(RecoveryCause::SequenceBack, now);
    let progress =
        |recovery: &mut Recovery, delivered| recovery.asked(state(delivered, 0), now, |_| 0, Some(105));
    assert_eq!(progress(&mut recovery, 10), Progress::Owed(1));
    recovery.received(11, New);
    assert_eq!(progress(&mut recovery, 11), Progress::Complete);
}

#[test]
fn an_answer_to_an_older_question_says_nothing() {
    let now = Instant::now();
    let mut recovery = in_order(now);
    recovery.doubt(RecoveryCause::UnansweredAck, now + Duration::from_secs(1));
    assert_eq!(recovery.asked(state(10, 0), now, |_| 0, None), Progress::Unchanged);
    assert!(recovery.is_active());
    let newer = now + Duration::from_secs(2);
    assert_eq!(recovery.asked(state(10, 0), newer, |_| 0, None), Progress::Complete);
}

#[test]
fn after_a_new_connection_numbers_begin_anywhere() {
    let now = Instant::now();
    let mut recovery = in_order(now);
    recovery.received(11, New);
    recovery.doubt(RecoveryCause::Reconnect, now);
    assert_eq!([4, 5].map(|number| recovery.received(number, New)), [None, None]);
    assert_eq!(recovery.received(7, New), Some(RecoveryCause::SequenceGap));
    assert_eq!(recovery.asked(state(7, 0), now, |_| 0, None), Progress::Complete);
    assert_eq!(recovery.received(8, New), None);
}

#[test]
fn jetstream_is_asked_at_once_and_then_from_time_to_time() {
    let now = Instant::now();
    let mut recovery = in_order(now);
    assert!(!recovery.is_info_due(now));
    recovery.doubt(RecoveryCause::SequenceGap, now);
    assert_eq!([now, now, now + INFO_INTERVAL].map(|now| recovery.is_info_due(now)), [true, false, true]);
    // Nothing has begun since the first doubt, and the newest one needs an answer of its own.
    let later = now + INFO_INTERVAL;
    assert!(!recovery.doubt(RecoveryCause::SequenceGap, later) && recovery.is_info_due(later));
    assert_eq!(recovery.took(later), INFO_INTERVAL);
    assert_eq!(recovery.asked(state(10, 0), later, |_| 0, None), Progress::Complete);
    assert!(recovery.doubt(RecoveryCause::SequenceGap, later));
    assert_eq!(recovery.took(later), Duration::ZERO);
}

#[test]
fn what_a_woken_predecessor_acknowledges_here_hides_nothing_that_is_owed() {
    let now = Instant::now();
    let mut recovery = inheriting(2, now);
    // One of the two is here, and acknowledged by the one before.
    assert_eq!(recovery.asked(state(10, 1), now, |_| 1, None), Progress::Unproven);
    let mut whole = recovery.clone();
    assert_eq!(whole.asked(state(10, 1), now, |_| 2, None), Progress::Complete);
    let later = now + ACK_WAIT;
    assert_eq!(recovery.asked_again(state(10, 1), later, |_| 1, None), Progress::Complete);
    // As long as they are here, another doubt takes as long.
    recovery.doubt(RecoveryCause::SequenceGap, later);
    recovery.received(14, New);
    assert_eq!([15, 16, 17].map(|number| recovery.received(number, AGAIN)), [None; 3]);
    let counts = |counted: &RangeInclusive<u64>| if *counted.end() == 100 { 1 } else { 3 };
    assert_eq!(recovery.asked(state(17, 2), later, counts, None), Progress::Unproven);
    let settled = ConsumerState { ack_floor: 100, ..state(17, 2) };
    assert_eq!(recovery.asked(settled, later, since_then(2), None), Progress::Complete);
}

#[test]
fn where_a_killed_server_forgot_deliveries_their_numbers_are_expected_again() {
    let now = Instant::now();
    let mut recovery = in_order(now);
    recovery.received(11, New);
    recovery.doubt(RecoveryCause::UnansweredAck, now);
    assert!(recovery.is_info_due(now));
    assert_eq!(recovery.asked(state(10, 0), now, |_| 0, None), Progress::Owed(1));
    assert!(recovery.is_info_due(now));
    assert_eq!(recovery.asked(state(10, 0), now, |_| 0, None), Progress::Complete);
    // The one with number 11 was lost.
    assert_eq!(recovery.received(12, New), Some(RecoveryCause::SequenceGap));
}

#[test]
fn what_a_killed_server_forgot_is_seen_whoever_asked_after_the_doubt() {
    let now = Instant::now();
    let mut recovery = in_order(now);
    recovery.received(11, New);
    recovery.doubt(RecoveryCause::UnansweredAck, now);
    let (mut later, asked) = (recovery.clone(), now + Duration::from_millis(1));
    assert_eq!(recovery.asked(state(10, 0), asked, |_| 0, None), Progress::Owed(1));
    // What came since was forgotten, and is known from when JetStream was to be asked.
    assert_eq!(later.received(12, New), None);
    assert!(later.is_info_due(asked));
    assert_eq!(later.clone().asked(state(11, 0), now, |_| 0, None), Progress::Complete);
    assert_eq!(later.asked(state(11, 0), asked, |_| 0, None), Progress::Owed(1));
}

#[test]
fn while_jetstream_is_silent_a_number_is_noted_once_and_says_something_of_each_response() {
    let now = Instant::now();
    let mut recovery = in_order(now);
    recovery.received(11, New);
    let times = [1, 2, 3].map(|millis| now + Duration::from_millis(millis));
    for time in times {
        recovery.doubt(RecoveryCause::UnansweredAck, time);
    }
    assert_eq!(recovery.expectations, [(times[0], 12)]);
    assert_eq!(recovery.asked(state(11, 1), times[2], |_| 0, None), Progress::Owed(1));
    assert_eq!(recovery.asked(state(10, 0), times[2], |_| 0, None), Progress::Owed(1));
    assert_eq!(recovery.asked(state(10, 0), times[2], |_| 0, None), Progress::Complete);
}

#[test]
fn jetstream_is_asked_at_once_when_as_much_arrived_as_was_owed() {
    let now = Instant::now();
    let mut recovery = Recovery::new(now);
    assert!(recovery.is_info_due(now));
    assert_eq!(recovery.asked(state(10, 2), now, |_| 0, None), Progress::Owed(2));
    recovery.received(11, New);
    assert!(!recovery.is_info_due(now));
    recovery.received(12, New);
    assert_eq!([now, now].map(|now| recovery.is_info_due(now)), [true, false]);
}

#[test]
fn nothing_is_asked_for_before_it_is_known_what_a_predecessor_had() {
    let now = Instant::now();
    let mut recovery = Recovery::new(now);
    let before = now.checked_sub(Duration::from_millis(1)).unwrap();
    recovery.asked(state(9, 0), before, |_| 0, None);
    assert!(!recovery.may_pull(), "what it had then");
    recovery.asked(state(10, 2), now, |_| 0, None);
    assert!(recovery.may_pull());
    assert_eq!(recovery.received(12, New), Some(RecoveryCause::SequenceGap), "the first delivery was lost");
}

#[test]
fn a_connection_that_is_made_before_the_first_delivery_changes_nothing_of_what_is_known() {
    let now = Instant::now();
    let mut recovery = Recovery::new(now);
    let later = now + Duration::from_millis(1);
    recovery.doubt(RecoveryCause::Reconnect, later);
    assert_eq!(recovery.asked(state(10, 2), now, |_| 0, None), Progress::Unchanged);
    recovery.doubt(RecoveryCause::Reconnect, later);
    assert_eq!([11, 12].map(|number| recovery.received(number, New)), [None; 2]);
    assert_eq!(recovery.asked(state(12, 2), later, |_| 2, None), Progress::Complete);
}

#[test]
fn what_was_here_before_that_was_known_hides_nothing_that_is_owed() {
    let now = Instant::now();
    let mut recovery = Recovery::new(now);
    // One of two, which its predecessor acknowledges then.
    recovery.received(11, New);
    assert_eq!(recovery.asked(state(11, 1), now, |_| 1, None), Progress::Unproven);
    let later = now + ACK_WAIT;
    assert_eq!(recovery.asked_again(state(11, 1), later, |_| 1, None), Progress::Complete);
}

#[test]
fn a_late_acknowledgement_hides_no_delivery_that_was_lost_last() {
    let now = Instant::now();
    let mut recovery = inheriting(2, now);
    assert_eq!([11, 12].map(|number| recovery.received(number, New)), [None; 2]);
    // Number 13 is new, and lost, and one of the two is acknowledged by the predecessor.
    assert_eq!(recovery.asked(state(13, 2), now, |_| 2, None), Progress::Unproven);
    assert_eq!(recovery.received(14, New), Some(RecoveryCause::SequenceGap), "it comes again");
}

#[test]
fn deliveries_that_come_after_the_question_are_none_that_were_forgotten() {
    let now = Instant::now();
    let mut recovery = in_order(now);
    recovery.doubt(RecoveryCause::UnansweredAck, now);
    assert!(recovery.is_info_due(now));
    recovery.received(11, New);
    assert!(recovery.is_info_due(now + INFO_INTERVAL));
    assert_eq!(recovery.asked(state(10, 0), now, |_| 0, None), Progress::Complete);
    assert_eq!(recovery.received(12, New), None);
}

fn led_by(leader: &str, leader_since: &str) -> Leadership {
    Leadership { leader: leader.to_owned(), leader_since: leader_since.to_owned() }
}

#[test]
fn with_another_leader_the_time_begins_again_after_which_everything_was_delivered_again() {
    let now = Instant::now();
    // As a server that becomes leader again.
    for next in [led_by("b", ""), led_by("a", "later")] {
        let mut recovery = Recovery::new(now);
        recovery.note_leader(&led_by("a", ""), now);
        assert_eq!(recovery.asked(state(10, 2), now, |_| 0, None), Progress::Owed(2));
        // One of the two is here, and acknowledged by the one before.
        let mut same = recovery.clone();
        let changed = now + Duration::from_secs(7);
        same.note_leader(&led_by("a", ""), changed);
        assert_eq!(same.asked_again(state(10, 1), now + ACK_WAIT, |_| 1, None), Progress::Complete);
        recovery.note_leader(&next, changed);
        assert_eq!(recovery.asked_again(state(10, 1), now + ACK_WAIT, |_| 1, None), Progress::Unproven);
        assert_eq!(recovery.asked_again(state(10, 1), changed + ACK_WAIT, |_| 1, None), Progress::Complete);
    }
}

#[test]
fn a_delivery_that_is_lost_as_the_last_one_of_a_recovery_is_waited_for_until_it_comes_again() {
    let now = Instant::now();
    let mut recovery = inheriting(2, now);
    // One of the two, which is acknowledged by the one before. The other one is lost.
    assert_eq!(recovery.received(11, New), None);
    let later = now + ACK_WAIT;
    assert_eq!(recovery.asked(state(12, 1), later, |_| 1, None), Progress::Unproven);
    let mut alone = recovery.clone();
    assert_eq!(recovery.received(13, New), Some(RecoveryCause::SequenceGap));
    // Where it was acknowledged meanwhile, nothing comes any more.
    let early = later + ACK_WAIT / 4;
    assert_eq!(alone.asked_again(state(12, 1), early, |_| 1, None), Progress::Unproven);
    assert_eq!(alone.asked_again(state(12, 1), later + ACK_WAIT, |_| 1, None), Progress::Complete);
}

#[test]
fn deliveries_that_come_while_jetstream_is_asked_are_not_missing_for_long() {
    let now = Instant::now();
    let mut recovery = inheriting(2, now);
    recovery.received(11, New);
    let later = now + ACK_WAIT;
    assert_eq!(recovery.asked(state(12, 2), later, |_| 1, None), Progress::Owed(1));
    recovery.received(12, New);
    assert_eq!(recovery.asked_again(state(12, 1), later, |_| 1, None), Progress::Complete);
}

#[test]
fn after_an_unanswered_acknowledgement_nothing_is_waited_for_as_long_as_each_delivery_has_come() {
    let now = Instant::now();
    let mut recovery = inheriting(3, now);
    (11..=13).for_each(|number| assert_eq!(recovery.received(number, New), None));
    recovery.doubt(RecoveryCause::UnansweredAck, now);
    assert_eq!(recovery.asked(state(13, 3), now, |_| 3, None), Progress::Complete);
    // Two of them are here, and one of these is acknowledged by the one before.
    recovery.doubt(RecoveryCause::UnansweredAck, now);
    let mut forgetful = recovery.clone();
    let mut lossy = recovery.clone();
    assert_eq!(recovery.asked(state(13, 1), now, |_| 2, None), Progress::Complete);
    // What a killed server forgot may be lost when it comes again, also where all three are here.
    assert!(forgetful.is_info_due(now));
    assert_eq!(forgetful.asked(state(12, 2), now, |_| 3, None), Progress::Unproven);
    assert_eq!(forgetful.asked(state(13, 3), now, |_| 3, None), Progress::Unproven);
    assert_eq!(lossy.asked(state(14, 2), now, |_| 2, None), Progress::Unproven, "one is under way, or lost");
    // The next doubt is another one.
    assert_eq!(lossy.received(15, New), Some(RecoveryCause::SequenceGap));
    lossy.doubt(RecoveryCause::SequenceGap, now);
    lossy.doubt(RecoveryCause::UnansweredAck, now);
    assert_eq!(lossy.asked(state(15, 3), now, |_| 3, None), Progress::Unproven);
}

#[test]
fn as_long_is_waited_as_jetstream_says_now() {
    let now = Instant::now();
    let mut recovery = inheriting(2, now);
    // One of the two is here, and acknowledged by the one before.
    let (later, over) = (now + ACK_WAIT, now + 2 * ACK_WAIT);
    let slower = ConsumerState { ack_wait: 2 * ACK_WAIT, ..state(10, 1) };
    assert_eq!(recovery.asked_again(slower, later, |_| 1, None), Progress::Unproven);
    assert_eq!(recovery.asked_again(slower, over, |_| 1, None), Progress::Complete);
}

#[test]
fn however_long_it_takes_nothing_comes_again_without_a_pull_request() {
    let now = Instant::now();
    let mut recovery = inheriting(2, now);
    // One of the two is here, and acknowledged by the one before.
    let unasked = ConsumerState { pull_requests: 0, ..state(10, 1) };
    let later = now + 6 * ACK_WAIT;
    assert_eq!(recovery.asked_again(unasked, later, |_| 1, None), Progress::Unproven);
    let mut served = recovery.clone();
    let later = later + ACK_WAIT;
    assert_eq!(recovery.asked_again(state(10, 1), later, |_| 1, None), Progress::Complete);
    // A request is served at once, with what is new.
    assert_eq!(served.received(11, New), None);
    let unasked = ConsumerState { pull_requests: 0, ..state(11, 2) };
    assert_eq!(served.asked(unasked, later, |_| 2, None), Progress::Complete);
}

#[test]
fn a_delivery_that_is_lost_over_a_new_connection_is_waited_for_from_then_on() {
    let now = Instant::now();
    let mut recovery = in_order(now);
    recovery.received(11, New);
    recovery.doubt(RecoveryCause::Reconnect, now);
    // Number 12 went to the connection before.
    assert_eq!(recovery.received(13, New), Some(RecoveryCause::SequenceGap));
    let later = now + MAX_REDELIVERY_DELAY;
    recovery.doubt(RecoveryCause::SequenceGap, later);
    assert_eq!(
        recovery.asked_again(state(13, 2), now + ACK_WAIT / 2, since_then(2), None),
        Progress::Unproven
    );
    assert_eq!(recovery.asked_again(state(13, 2), later + ACK_WAIT, since_then(2), None), Progress::Complete);
}

#[test]
fn what_is_removed_from_the_stream_while_it_waits_here_stands_for_nothing_that_is_owed() {
    let now = Instant::now();
    let mut recovery = in_order(now);
    // Number 11 is lost. Of the two behind it one is removed from the stream.
    assert_eq!(recovery.received(12, New), Some(RecoveryCause::SequenceGap));
    recovery.doubt(RecoveryCause::SequenceGap, now);
    recovery.received(13, New);
    assert_eq!(recovery.asked(state(13, 2), now, since_then(2), None), Progress::Unproven);
    let later = now + ACK_WAIT;
    assert_eq!(recovery.clone().asked_again(state(13, 2), later, since_then(2), None), Progress::Complete);
    recovery.received(14, AGAIN);
    assert_eq!(recovery.asked(state(14, 2), now, since_then(3), None), Progress::Complete);
}

#[test]
fn what_a_predecessor_had_stands_for_nothing_that_was_lost_since() {
    let now = Instant::now();
    let mut recovery = inheriting(1, now);
    // Number 11 is new, and lost. Then comes what the predecessor had, and both that are here are removed from the stream.
    assert_eq!(recovery.received(12, New), Some(RecoveryCause::SequenceGap));
    recovery.doubt(RecoveryCause::SequenceGap, now);
    assert_eq!(recovery.received(13, Arrival::Owed(30)), None);
    let removed = ConsumerState { ack_floor: 109, ..state(13, 1) };
    let counts = |counted: &RangeInclusive<u64>| u64::from(!counted.is_empty());
    assert_eq!(recovery.asked(removed, now, counts, None), Progress::Unproven);
    assert_eq!(recovery.received(14, AGAIN), None);
    let removed = ConsumerState { ack_floor: 109, ..state(14, 1) };
    assert_eq!(recovery.asked(removed, now, since_then(2), None), Progress::Complete);
}

#[test]
fn what_is_removed_while_it_waits_here_hides_nothing_that_a_predecessor_had() {
    let now = Instant::now();
    let mut recovery = inheriting(1, now);
    // One of the two is removed from the stream before that comes.
    assert_eq!([11, 12].map(|number| recovery.received(number, New)), [None; 2]);
    assert_eq!(recovery.asked(state(12, 2), now, since_then(2), None), Progress::Unproven);
    let mut settled = recovery.clone();
    assert_eq!(recovery.received(13, Arrival::Owed(30)), None);
    let counts = |counted: &RangeInclusive<u64>| if *counted.end() == 100 { 1 } else { 3 };
    assert_eq!(recovery.asked(state(13, 2), now, counts, None), Progress::Complete);
    // The predecessor acknowledged it.
    let beyond = ConsumerState { ack_floor: 100, ..state(12, 1) };
    assert_eq!(settled.asked(beyond, now, since_then(2), None), Progress::Complete);
}

#[test]
fn over_a_new_connection_as_much_is_lost_as_was_delivered_meanwhile() {
    let now = Instant::now();
    let mut recovery = in_order(now);
    recovery.received(11, New);
    recovery.doubt(RecoveryCause::Reconnect, now);
    // Number 12 was lost, and number 11 is removed from the stream.
    assert_eq!(recovery.asked(state(12, 1), now, since_then(1), None), Progress::Unproven);
    assert_eq!(recovery.received(13, AGAIN), None);
    assert_eq!(recovery.asked(state(13, 1), now, since_then(2), None), Progress::Complete);
}

#[test]
fn a_gap_while_what_a_predecessor_had_is_all_here_is_waited_for() {
    let now = Instant::now();
    let mut recovery = inheriting(2, now);
    assert_eq!([11, 12].map(|number| recovery.received(number, New)), [None; 2]);
    // Number 13 is new, and lost.
    assert_eq!(recovery.received(14, New), Some(RecoveryCause::SequenceGap));
    recovery.doubt(RecoveryCause::SequenceGap, now);
    // One of the two is acknowledged by the predecessor, so that as many are here as are unacknowledged.
    let counts = |counted: &RangeInclusive<u64>| if *counted.end() == 100 { 2 } else { 3 };
    assert_eq!(recovery.asked(state(14, 3), now, counts, None), Progress::Unproven);
}

#[test]
fn of_several_deliveries_that_are_missing_the_last_one_is_waited_for() {
    let now = Instant::now();
    let mut recovery = Recovery::new(now);
    assert_eq!(recovery.asked(state(10, 2), now, |_| 0, None), Progress::Owed(2));
    assert_eq!(recovery.asked(state(11, 1), now, |_| 1, None), Progress::Unproven);
    let later = now + Duration::from_secs(8);
    assert_eq!(recovery.asked(state(12, 1), later, |_| 1, None), Progress::Unproven);
    assert_eq!(recovery.asked_again(state(12, 1), now + ACK_WAIT, |_| 1, None), Progress::Unproven);
    assert_eq!(recovery.asked_again(state(12, 1), later + ACK_WAIT, |_| 1, None), Progress::Complete);
}

#[test]
fn what_was_expected_in_an_earlier_recovery_says_nothing_of_a_later_one() {
    let now = Instant::now();
    let mut recovery = in_order(now);
    recovery.received(11, New);
    recovery.doubt(RecoveryCause::UnansweredAck, now);
    assert!(recovery.is_info_due(now) && recovery.is_info_due(now + INFO_INTERVAL));
    assert_eq!(recovery.asked(state(11, 0), now, |_| 0, None), Progress::Complete);
    // The next one has another connection, and numbers that begin anywhere.
    let later = now + 2 * INFO_INTERVAL;
    recovery.doubt(RecoveryCause::Reconnect, later);
    assert!(recovery.is_info_due(later));
    assert_eq!(recovery.asked(state(4, 0), later, |_| 0, None), Progress::Complete);
}

#[test]
fn a_leader_without_a_quorum_ends_no_recovery() {
    let now = Instant::now();
    let mut recovery = Recovery::new(now);
    let alone = ConsumerState { has_quorum: false, ..state(10, 0) };
    assert_eq!(recovery.asked(alone, now, |_| 0, None), Progress::Unproven);
    assert!(!recovery.may_pull(), "nor does it say what a predecessor had");
    assert_eq!(recovery.asked(state(10, 0), now, |_| 0, None), Progress::Complete);
    assert_eq!(recovery.asked(alone, now, |_| 0, None), Progress::Unchanged);
}

#[test]
fn an_event_whose_acknowledgement_is_not_permitted_is_waited_for() {
    let now = Instant::now();
    let mut recovery = in_order(now);
    // Number 11 is released; of the two behind it one is removed from the stream.
    (11..=13).for_each(|number| assert_eq!(recovery.received(number, New), None));
    recovery.doubt(RecoveryCause::DeniedAck, now);
    assert_eq!(recovery.asked(state(13, 2), now, since_then(2), None), Progress::Unproven);
    recovery.received(14, AGAIN);
    assert_eq!(recovery.asked(state(14, 2), now, since_then(3), None), Progress::Complete);
}

#[test]
fn a_response_without_a_quorum_begins_the_proof_again() {
    let now = Instant::now();
    let mut recovery = inheriting(2, now);
    let (step, due) = (MAX_REDELIVERY_DELAY / 2, now + ACK_WAIT);
    for turn in 0..4 {
        let progress = recovery.asked(state(10, 1), due + turn * step, |_| 1, None);
        assert_eq!(progress, Progress::Unproven);
    }
    let mut led = recovery.clone();
    assert_eq!(led.asked(state(10, 1), due + 4 * step, |_| 1, None), Progress::Complete);
    let alone = ConsumerState { has_quorum: false, ..state(10, 1) };
    assert_eq!(recovery.asked(alone, due + 4 * step, |_| 1, None), Progress::Unproven);
    assert_eq!(recovery.asked_again(state(10, 1), due + 5 * step, |_| 1, None), Progress::Complete);
}

#[test]
fn only_what_is_delivered_for_the_first_time_shows_that_nothing_was_due() {
    let now = Instant::now();
    let mut recovery = inheriting(2, now);
    let due = now + ACK_WAIT;
    for turn in 0..3 {
        let progress = recovery.asked(state(10, 1), due + turn * MAX_REDELIVERY_DELAY / 2, |_| 1, None);
        assert_eq!(progress, Progress::Unproven);
    }
    let later = due + MAX_REDELIVERY_DELAY + MAX_REDELIVERY_DELAY / 4;
    let unasked = ConsumerState { pull_requests: 0, ..state(11, 1) };
    let mut again = recovery.clone();
    again.received(11, Arrival::Known);
    assert_eq!(again.asked(unasked, later, |_| 1, None), Progress::Unproven);
    recovery.received(11, New);
    assert_eq!(recovery.asked(unasked, later, |_| 1, None), Progress::Complete);
}

#[test]
fn a_missing_delivery_is_due_ack_wait_after_the_answer_that_shows_it() {
    let now = Instant::now();
    let mut recovery = in_order(now);
    recovery.received(11, New);
    recovery.doubt(RecoveryCause::Reconnect, now);
    // Number 12 is delivered between the question and the answer, over the connection before.
    let answered_at = now + ACK_WAIT / 2;
    let response = Response { state: state(12, 1), asked_at: now, answered_at };
    assert_eq!(recovery.observed(response, since_then(1), None), Progress::Unproven);
    let (step, due) = (MAX_REDELIVERY_DELAY / 2, now + ACK_WAIT);
    assert_eq!(recovery.asked_again(state(12, 1), due, since_then(1), None), Progress::Unproven);
    for turn in 5..8 {
        let progress = recovery.asked(state(12, 1), due + turn * step, since_then(1), None);
        assert_eq!(progress, Progress::Unproven);
    }
    assert_eq!(recovery.asked(state(12, 1), due + 8 * step, since_then(1), None), Progress::Complete);
}
