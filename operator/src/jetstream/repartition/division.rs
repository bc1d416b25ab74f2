//! In: a consumer that takes the numbers of several partitions, the consumers of its parts, and up to where events may have either number. Out: the
//! next step by which it is divided. Pure.
//!
//! While it is paused the server delivers nothing, whoever pulls, and takes acknowledgements. So once nothing is unacknowledged, everything that it
//! ever delivered is handled and nothing beyond is; what begins behind that takes each of the others once. It is paused, and no pod has to know: an
//! owner that is frozen, or that goes on without an operator, gets nothing either.
//!
//! Those of one object are divided together: pods are given the parts when all are, and until then nobody would handle the parts of the first.

use std::time::Duration;

use jetwright_crds::marks::{DIVIDING, PARTITION_COUNT};

use crate::jetstream::{config::Config, info::ConsumerInfo};

/// How long a pause lasts. It ends by itself where no operator is there to end it.
pub const PAUSE: Duration = Duration::from_hours(1);
/// How much of the pause has to be left for a step that relies on it.
const LEAST: Duration = Duration::from_mins(5);

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing is left to do.
    Done,
    /// It goes on until it is beyond the change.
    GoOn,
    /// Somebody else paused it.
    Paused,
    /// It delivers nothing from now on.
    Pause,
    /// It finishes what it has begun.
    Finish,
    /// It delivers again.
    Resume(Resumption),
    /// The parts with these numbers begin at this sequence.
    Make { parts: Vec<u32>, begin: u64 },
    /// The parts with these numbers, which delivered nothing, begin elsewhere.
    Remove { parts: Vec<u32> },
    /// It is its own part alone from now on, or none.
    Narrow,
}

/// Why a consumer delivers again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumption {
    /// It is divided.
    Divided,
    /// Another one of its object goes on.
    Together,
    /// Nothing of this many events was acknowledged for too long.
    Stuck { unacknowledged: u64 },
    /// Its pause is nearly over.
    PauseEnds,
    /// Events came before it was paused, of which one may have a number of before.
    Behind,
}

/// What is known of a consumer that is to be divided.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    pub whole: &'a ConsumerInfo,
    /// The other parts, by their numbers; None where there is no such consumer yet.
    pub parts: &'a [(u32, Option<ConsumerInfo>)],
    /// How many partitions there are.
    pub count: u32,
    /// Up to where events may have a number of before.
    pub at: u64,
    /// Whether nothing that it has begun was acknowledged for too long: it is to be delivered again.
    pub is_stuck: bool,
    /// Whether it was resumed a moment ago, so that it gets what it waited for.
    pub was_resumed: bool,
    /// Whether another one of its object goes on, for which it does not wait paused.
    pub others_go_on: bool,
}

/// How far those of one object go before all of them have come as far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Each is paused, and has finished what it had begun.
    Paused,
    /// All parts are there.
    Made,
    Divided,
}

impl Stage {
    /// All of them, in their order.
    pub const ALL: [Self; 3] = [Self::Paused, Self::Made, Self::Divided];
}

impl Next {
    /// The stage to which it leads.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match self {
            Self::GoOn | Self::Paused | Self::Pause | Self::Finish | Self::Resume(_) => Stage::Paused,
            Self::Make { .. } | Self::Remove { .. } => Stage::Made,
            Self::Narrow | Self::Done => Stage::Divided,
        }
    }
}

/// Whether a consumer goes on, and is not divided now.
#[must_use]
pub fn goes_on(known: &Known<'_>) -> bool {
    !is_divided(known) && matches!(next(known), Next::GoOn | Next::Paused | Next::Resume(_))
}

/// Decides the next step.
#[must_use]
pub fn next(known: &Known<'_>) -> Next {
    let Known { whole, parts, at, is_stuck, was_resumed, others_go_on, .. } = known;
    let is_ours = whole.config.metadata().contains_key(DIVIDING);
    if is_divided(known) {
        return if is_ours { Next::Resume(Resumption::Divided) } else { Next::Done };
    }
    if whole.paused && !is_ours {
        return Next::Paused;
    }
    // Where nothing waits, nothing of before the change is left.
    let is_beyond = |sequence: u64| sequence >= *at || whole.num_pending == 0;
    if !whole.paused {
        let may_pause = is_beyond(whole.ack_floor.stream_seq) && !was_resumed && !others_go_on;
        return if may_pause { Next::Pause } else { Next::GoOn };
    }
    if *others_go_on {
        return Next::Resume(Resumption::Together);
    }
    let pause_ends = Duration::from_nanos(whole.pause_remaining) < LEAST;
    let unacknowledged = whole.num_ack_pending;
    let delivered = whole.delivered.stream_seq;
    match () {
        () if unacknowledged > 0 && *is_stuck => {
            return Next::Resume(Resumption::Stuck { unacknowledged });
        }
        () if pause_ends => return Next::Resume(Resumption::PauseEnds),
        () if unacknowledged > 0 => return Next::Finish,
        () if !is_beyond(delivered) => return Next::Resume(Resumption::Behind),
        () => {}
    }
    let begin = delivered + 1;
    let begins = |info: &ConsumerInfo| begins_at(&info.config) == Some(begin);
    let numbers = |is_wanted: &dyn Fn(Option<&ConsumerInfo>) -> bool| -> Vec<u32> {
        let wanted = parts.iter().filter(|(_, info)| is_wanted(info.as_ref()));
        wanted.map(|(part, _)| *part).collect()
    };
    let elsewhere = numbers(&|info| info.is_some_and(|info| !begins(info)));
    if !elsewhere.is_empty() {
        return Next::Remove { parts: elsewhere };
    }
    let missing = numbers(&|info| info.is_none());
    if !missing.is_empty() {
        return Next::Make { parts: missing, begin };
    }
    Next::Narrow
}

/// Whether the consumer is its own part alone: by its mark, or where another tool took its marks away, by a part that delivers already.
fn is_divided(known: &Known<'_>) -> bool {
    let Known { whole, parts, count, .. } = known;
    let delivers = |(_, info): &(u32, Option<ConsumerInfo>)| {
        info.as_ref().is_some_and(|info| info.delivered.consumer_seq > 0)
    };
    // A program may pull from a part as soon as it is there.
    let is_under_way = whole.config.metadata().contains_key(DIVIDING);
    count_of(&whole.config) == Some(*count) || !is_under_way && parts.iter().any(delivers)
}

/// Of how many partitions a consumer says that it delivers one.
#[must_use]
pub fn count_of(config: &Config) -> Option<u32> {
    config.metadata().get(PARTITION_COUNT)?.parse().ok()
}

/// Whether a consumer is divided, and goes on.
#[must_use]
pub fn is_at_rest(config: &Config, count: u32) -> bool {
    count_of(config) == Some(count) && !config.metadata().contains_key(DIVIDING)
}

/// Where a consumer began that is a part of another.
#[must_use]
pub fn begins_at(config: &Config) -> Option<u64> {
    let policy = config.get("deliver_policy").and_then(serde_json::Value::as_str);
    policy.filter(|policy| *policy == "by_start_sequence")?;
    config.get("opt_start_seq").and_then(serde_json::Value::as_u64)
}

/// The configuration of a part that begins at this sequence.
#[must_use]
pub fn beginning_at(config: Config, sequence: u64) -> Config {
    config.with("deliver_policy", "by_start_sequence").with("opt_start_seq", sequence)
}

/// The configuration of the consumer of one of so many partitions, as it is to be: a part of another begins where it began.
#[must_use]
pub fn placed(config: Config, count: u32, actual: Option<&Config>) -> Config {
    let config = config.with_mark(PARTITION_COUNT, &count.to_string());
    match actual.filter(|actual| count_of(actual).is_some()).and_then(begins_at) {
        Some(sequence) => beginning_at(config, sequence),
        None => config,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Consumers of partition 3 of 8 that becomes 3 and 11 of 16, as JetStream has them.
    #[derive(Clone, Debug)]
    struct There {
        whole: ConsumerInfo,
        part: Option<ConsumerInfo>,
        at: u64,
        is_stuck: bool,
    }

    fn consumer(delivered: u64, floor: u64, pending: u64) -> ConsumerInfo {
        let info = json!({
            "stream_name": "orders", "name": "x", "created": "2026-11-01T10:00:00Z", "config": {}, "num_pending": pending,
            "num_ack_pending": delivered - floor, "delivered": {"stream_seq": delivered, "consumer_seq": delivered},
            "ack_floor": {"stream_seq": floor, "consumer_seq": floor},
        });
        serde_json::from_value(info).unwrap()
    }

    impl There {
        fn new(whole: ConsumerInfo) -> Self {
            Self { whole, part: None, at: 100, is_stuck: false }
        }

        fn next(&self) -> Next {
            next(&Known {
                whole: &self.whole,
                parts: &[(11, self.part.clone())],
                count: 16,
                at: self.at,
                is_stuck: self.is_stuck,
                was_resumed: false,
                others_go_on: false,
            })
        }

        fn pause(&mut self, left: Duration) {
            self.whole.paused = true;
            self.whole.pause_remaining = u64::try_from(left.as_nanos()).unwrap();
            self.whole.config = self.whole.config.clone().with_mark(DIVIDING, "16");
        }

        /// What a server makes of a step.
        fn take(&mut self, step: &Next) {
            match step {
                Next::Pause => self.pause(PAUSE),
                Next::Resume(_) => {
                    self.whole.paused = false;
                    self.whole.config = self.whole.config.clone().without_mark(DIVIDING);
                }
                Next::Make { parts, begin } if *parts == [11] => {
                    let info = consumer(begin - 1, begin - 1, 0);
                    let config = beginning_at(info.config.clone(), *begin);
                    let delivered = crate::jetstream::info::Position { consumer_seq: 0, ..info.delivered };
                    self.part = Some(ConsumerInfo { config, delivered, ..info });
                }
                Next::Remove { parts } if *parts == [11] => self.part = None,
                Next::Narrow => {
                    self.whole.config = self.whole.config.clone().with_mark(PARTITION_COUNT, "16");
                }
                Next::Finish => self.whole.num_ack_pending = 0,
                other => panic!("{other:?}"),
            }
        }
    }

    const LONG: Duration = Duration::from_mins(30);
    const DIVIDED: Next = Next::Resume(Resumption::Divided);

    #[test]
    fn a_consumer_goes_on_to_the_change_finishes_and_is_divided_where_it_stopped() {
        let mut there = There::new(consumer(120, 99, 7));
        assert_eq!(there.next(), Next::GoOn, "an event up to the change is not acknowledged");
        there.whole = consumer(120, 110, 7);
        let mut steps = Vec::new();
        while there.next() != Next::Done {
            let step = there.next();
            there.take(&step);
            steps.push(step);
        }
        let make = Next::Make { parts: vec![11], begin: 121 };
        assert_eq!(steps, [Next::Pause, Next::Finish, make, Next::Narrow, DIVIDED]);
        assert_eq!(begins_at(&there.part.unwrap().config), Some(121));
    }

    #[test]
    fn a_consumer_for_which_nothing_waits_is_divided_wherever_it_is() {
        let there = There::new(consumer(7, 7, 0));
        assert_eq!(there.next(), Next::Pause);
        let mut paused = there;
        paused.pause(LONG);
        assert_eq!(paused.next(), Next::Make { parts: vec![11], begin: 8 });
        // Something came before it was paused: it may have a number of before.
        paused.whole.num_pending = 1;
        assert_eq!(paused.next(), Next::Resume(Resumption::Behind));
    }

    /// An operator was away for so long that the pause was over, and the consumer went on.
    #[test]
    fn a_part_that_was_made_before_the_whole_one_went_on_is_made_again() {
        let mut there = There::new(consumer(120, 120, 0));
        there.take(&Next::Pause);
        there.take(&Next::Make { parts: vec![11], begin: 121 });
        there.whole.paused = false;
        there.whole.delivered.stream_seq = 130;
        there.whole.ack_floor.stream_seq = 130;
        let mut steps = Vec::new();
        while there.next() != Next::Done {
            let step = there.next();
            there.take(&step);
            steps.push(step);
        }
        let (remove, make) = (Next::Remove { parts: vec![11] }, Next::Make { parts: vec![11], begin: 131 });
        assert_eq!(steps, [Next::Pause, remove, make, Next::Narrow, DIVIDED]);
    }

    #[test]
    fn what_does_not_finish_is_delivered_again_and_a_pause_that_is_nearly_over_is_no_ground() {
        let mut there = There::new(consumer(120, 119, 0));
        there.pause(LONG);
        assert_eq!(there.next(), Next::Finish);
        let stuck = Next::Resume(Resumption::Stuck { unacknowledged: 1 });
        assert_eq!(There { is_stuck: true, ..there }.next(), stuck);
        let mut finished = There::new(consumer(120, 120, 0));
        finished.pause(LEAST.saturating_sub(Duration::from_secs(1)));
        assert_eq!(finished.next(), Next::Resume(Resumption::PauseEnds));
        let whole = consumer(120, 120, 0);
        let known = Known {
            whole: &whole,
            parts: &[],
            count: 16,
            at: 100,
            is_stuck: false,
            was_resumed: true,
            others_go_on: false,
        };
        assert_eq!(next(&known), Next::GoOn);
    }

    #[test]
    fn none_is_paused_while_another_one_goes_on_and_what_is_divided_is_resumed_all_the_same() {
        fn known(whole: &ConsumerInfo, others_go_on: bool) -> Known<'_> {
            let (is_stuck, was_resumed) = (false, false);
            Known { whole, parts: &[(11, None)], count: 16, at: 100, is_stuck, was_resumed, others_go_on }
        }
        let (behind, beyond) = (consumer(120, 99, 7), consumer(120, 110, 7));
        assert!(goes_on(&known(&behind, false)) && !goes_on(&known(&beyond, false)));
        assert_eq!(next(&known(&beyond, true)), Next::GoOn);
        let mut paused = There::new(consumer(120, 120, 0));
        paused.pause(LONG);
        assert_eq!(next(&known(&paused.whole, true)), Next::Resume(Resumption::Together));
        paused.take(&Next::Narrow);
        assert!(!goes_on(&known(&paused.whole, false)));
        assert_eq!(next(&known(&paused.whole, true)), DIVIDED);
    }

    #[test]
    fn a_pause_of_somebody_else_is_left_alone_and_so_is_what_was_divided_before() {
        let mut there = There::new(consumer(120, 120, 0));
        there.whole.paused = true;
        assert_eq!(there.next(), Next::Paused);
        there.whole.config = there.whole.config.with_mark(PARTITION_COUNT, "16");
        assert_eq!(there.next(), Next::Done);
        // A program pulls from the part already.
        let mut eager = There::new(consumer(120, 120, 0));
        eager.take(&Next::Pause);
        eager.take(&Next::Make { parts: vec![11], begin: 121 });
        eager.part.as_mut().unwrap().delivered.consumer_seq = 1;
        assert_eq!(eager.next(), Next::Narrow);
        // Another tool took the marks away.
        let mut unmarked = There::new(consumer(120, 120, 0));
        unmarked.part = Some(consumer(130, 130, 0));
        assert_eq!(unmarked.next(), Next::Done);
    }

    #[test]
    fn a_part_stays_where_it_began_and_others_begin_as_declared() {
        let declared = Config::default().with("deliver_policy", "all");
        let begun = placed(beginning_at(declared.clone(), 121), 16, None);
        assert_eq!(begins_at(&placed(declared.clone(), 16, Some(&begun))), Some(121));
        assert_eq!(begins_at(&placed(declared.clone(), 16, Some(&declared))), None);
        assert_eq!(count_of(&placed(declared, 16, None)), Some(16));
    }
}
