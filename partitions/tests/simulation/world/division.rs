//! Twice as many partitions: each consumer takes both of its numbers, is paused once nothing is left of before, and divided when everything that it
//! delivered is acknowledged.

use super::*;

/// How long a consumer is paused that does not finish, and how long it goes on then.
const PATIENCE: u64 = 60_000;
const RESUMED: u64 = 20_000;

/// How far it is.
#[derive(Debug)]
pub struct Division {
    /// Sequence up to which events may have a number of before.
    at: u64,
    /// Consumers that are divided.
    divided: BTreeSet<u32>,
    /// Since when consumers are paused, or when they may be again.
    paused: BTreeMap<u32, u64>,
    /// Whether consumers finish what they have begun.
    is_careful: bool,
}

impl World {
    /// The stream has twice as many partitions from now on.
    pub fn multiply(&mut self, is_careful: bool) {
        self.note("!! twice as many partitions");
        self.consumers.extend((0..PARTITIONS).map(|_| Consumer::default()));
        let (divided, paused) = (BTreeSet::new(), BTreeMap::new());
        self.division = Some(Division { at: self.stream.len() as u64, divided, paused, is_careful });
    }

    pub fn is_divided(&self) -> bool {
        self.shared == 2 * PARTITIONS
    }

    /// The consumer that gets events of a key.
    pub(super) fn consumer_of(&self, key: u32) -> u32 {
        let before = key / KEYS;
        let is_divided = self.division.as_ref().is_some_and(|division| division.divided.contains(&before));
        if is_divided { part_of(key) } else { before }
    }

    /// What the operator does, where one leads.
    pub(super) fn divide(&mut self) {
        let is_led = self.operators.iter().any(Option::is_some) && self.nats_up;
        let Some(mut division) = self.division.take_if(|_| is_led && self.shared == PARTITIONS) else {
            return;
        };
        for number in 0..PARTITIONS {
            if !division.divided.contains(&number) {
                self.divide_one(number, &mut division);
            }
        }
        if division.divided.len() == PARTITIONS as usize {
            self.shared = 2 * PARTITIONS;
            self.declare();
            self.disturb(self.now, "all are divided");
        }
        self.division = Some(division);
    }

    fn divide_one(&mut self, number: u32, division: &mut Division) {
        let (now, whole) = (self.now, &mut self.consumers[number as usize]);
        let (state, is_empty) = (whole.info(now), whole.waiting.is_empty());
        let since = *division.paused.entry(number).or_insert(0);
        if !whole.is_paused && division.is_careful {
            if now >= since && (is_empty || state.ack_floor >= division.at) {
                whole.is_paused = true;
                division.paused.insert(number, now);
            }
            return;
        }
        if state.ack_pending > 0 && division.is_careful {
            if now > since + PATIENCE {
                whole.is_paused = false;
                division.paused.insert(number, now + RESUMED);
            }
            return;
        }
        let stream = &self.stream;
        let is_its = |sequence: u64| part_of(stream[usize::try_from(sequence).unwrap() - 1].1) != number;
        let part = whole.part(is_its);
        whole.is_paused = false;
        self.consumers[(number + PARTITIONS) as usize] = part;
        division.divided.insert(number);
        self.note(format!("partition {number} is divided at {}", state.delivered.stream_sequence));
    }
}

fn part_of(key: u32) -> u32 {
    key / KEYS + PARTITIONS * (key % 2)
}
