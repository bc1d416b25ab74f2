//! In which order the deliveries of ordered consumers begin. Pure: slots of deliveries in, the slot of the one that may begin out.

use std::{
    collections::{VecDeque, hash_map::Entry},
    hash::{BuildHasher, Hash, Hasher, RandomState},
};

use rustc_hash::FxHashMap;

/// The deliveries of each key one after another, and at most a number of keys at once.
#[derive(Debug)]
pub(super) struct KeyedQueue {
    lanes: FxHashMap<u64, Lane>,
    /// Keys whose next delivery has no room yet. They take turns.
    ready: VecDeque<u64>,
    free_slots: usize,
}

/// One key.
#[derive(Debug)]
struct Lane {
    state: LaneState,
    /// Those that have not begun.
    waiting: VecDeque<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LaneState {
    /// The first of those that wait may begin when there is room.
    Ready,
    /// One has begun.
    Active,
    /// One has begun, waits for its next attempt, and leaves its room to other keys.
    Paused,
}

impl KeyedQueue {
    /// With room for so many keys at once.
    pub(super) fn new(room: usize) -> Self {
        Self { lanes: FxHashMap::default(), ready: VecDeque::new(), free_slots: room }
    }

    /// Whether a delivery of this key has not ended.
    pub(super) fn has(&self, key: u64) -> bool {
        self.lanes.contains_key(&key)
    }

    /// Adds a delivery; whether it may begin now.
    pub(super) fn push(&mut self, key: u64, slot: usize) -> bool {
        match self.lanes.entry(key) {
            Entry::Occupied(mut lane) => {
                lane.get_mut().waiting.push_back(slot);
                false
            }
            Entry::Vacant(lane) if self.free_slots > 0 => {
                lane.insert(Lane { state: LaneState::Active, waiting: VecDeque::new() });
                self.free_slots -= 1;
                true
            }
            Entry::Vacant(lane) => {
                lane.insert(Lane { state: LaneState::Ready, waiting: VecDeque::from([slot]) });
                self.ready.push_back(key);
                false
            }
        }
    }

    /// A delivery that had begun waits for its next attempt; returns one of another key that may begin now.
    pub(super) fn pause(&mut self, key: u64) -> Option<usize> {
        if let Some(lane) = self.lanes.get_mut(&key).filter(|lane| lane.state == LaneState::Active) {
            lane.state = LaneState::Paused;
            self.free_slots += 1;
        }
        self.next()
    }

    /// A delivery that was paused continues; returns whether it may now.
    pub(super) fn resume(&mut self, key: u64, slot: usize) -> bool {
        let Some(lane) = self.lanes.get_mut(&key).filter(|lane| lane.state == LaneState::Paused) else {
            return false;
        };
        if self.free_slots > 0 {
            lane.state = LaneState::Active;
            self.free_slots -= 1;
            return true;
        }
        lane.state = LaneState::Ready;
        lane.waiting.push_front(slot);
        self.ready.push_back(key);
        false
    }

    /// A delivery that had begun ended; returns the one that may begin now.
    pub(super) fn complete(&mut self, key: u64) -> Option<usize> {
        if let Entry::Occupied(mut lane) = self.lanes.entry(key) {
            match lane.get().state {
                LaneState::Ready => return self.next(),
                LaneState::Active => self.free_slots += 1,
                LaneState::Paused => {}
            }
            if lane.get().waiting.is_empty() {
                lane.remove();
            } else {
                lane.get_mut().state = LaneState::Ready;
                self.ready.push_back(key);
            }
        }
        self.next()
    }

    /// The next delivery that may begin.
    pub(super) fn next(&mut self) -> Option<usize> {
        while self.free_slots > 0 {
            let key = self.ready.pop_front()?;
            // It may have been removed.
            if let Some(lane) = self.lanes.get_mut(&key)
                && let Some(slot) = lane.waiting.pop_front()
            {
                lane.state = LaneState::Active;
                self.free_slots -= 1;
                return Some(slot);
            }
        }
        None
    }

    /// How many keys have a delivery that could begin, and no room.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Forgets everything but what runs now: the rest is pushed again in another order.
    pub(super) fn clear_waiting(&mut self) {
        self.ready.clear();
        self.lanes.retain(|_, lane| {
            lane.waiting.clear();
            lane.state == LaneState::Active
        });
    }
}

/// Which tokens of a subject are its key.
#[derive(Debug)]
pub(super) struct KeyTokens {
    /// Counted from 1.
    positions: Vec<u32>,
    /// Of this process alone: no publisher can make keys collide, so tables by key need no collision-resistant hash.
    hasher: RandomState,
}

impl KeyTokens {
    pub(super) fn new(positions: Vec<u32>) -> Self {
        Self { positions, hasher: RandomState::new() }
    }

    /// The key of a subject. Two keys with one hash share a lane, which only makes them slower.
    pub(super) fn key(&self, subject: &str) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        for (position, token) in (1..).zip(subject.split('.')) {
            if self.positions.contains(&position) {
                token.hash(&mut hasher);
            }
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_one_key_each_begins_when_the_one_before_it_ended() {
        let mut queue = KeyedQueue::new(8);
        assert!(queue.push(1, 10));
        assert!(!queue.push(1, 11));
        assert!(!queue.push(1, 12));
        assert!(queue.push(2, 20));
        assert_eq!([queue.complete(1), queue.complete(1), queue.complete(1)], [Some(11), Some(12), None]);
        assert!(queue.push(1, 13));
    }

    #[test]
    fn there_are_no_more_at_once_than_there_is_room_for_and_keys_take_turns() {
        let mut queue = KeyedQueue::new(2);
        assert!(queue.push(1, 10));
        assert!(!queue.push(1, 11));
        assert!(queue.push(2, 20));
        assert!(!queue.push(3, 30));
        assert_eq!(queue.complete(1), Some(30));
        assert_eq!(queue.complete(2), Some(11));
        assert_eq!((queue.complete(3), queue.complete(1)), (None, None));
        assert_eq!((queue.free_slots, queue.lanes.len()), (2, 0));
    }

    #[test]
    fn what_waits_for_its_next_attempt_takes_no_room_and_its_key_waits() {
        let mut queue = KeyedQueue::new(1);
        assert!(queue.push(1, 10));
        assert!(!queue.push(1, 11));
        assert!(!queue.push(2, 20));
        assert_eq!(queue.pause(1), Some(20));
        assert!(!queue.resume(1, 10));
        assert_eq!(queue.complete(2), Some(10));
        assert_eq!(queue.pause(1), None);
        assert!(queue.push(3, 30));
        // NAKed while it was paused: the next of its key waits for room like any other.
        assert_eq!(queue.complete(1), None);
        assert_eq!(queue.complete(3), Some(11));
        assert_eq!(queue.complete(1), None);
        assert_eq!((queue.free_slots, queue.lanes.len()), (1, 0));
    }

    #[test]
    fn what_goes_on_keeps_its_key_when_all_else_is_pushed_again() {
        let mut queue = KeyedQueue::new(2);
        assert!(queue.push(1, 10) && queue.push(2, 20));
        for (key, slot) in [(1, 11), (3, 30), (3, 31)] {
            assert!(!queue.push(key, slot));
        }
        assert_eq!(queue.pause(2), Some(30));
        queue.clear_waiting();
        // A paused delivery has its turn like any other.
        assert!(!queue.push(1, 11) && !queue.push(2, 20) && !queue.push(3, 31));
        assert_eq!([queue.complete(1), queue.complete(3)], [Some(20), Some(11)]);
        assert_eq!([queue.complete(2), queue.complete(1), queue.complete(3)], [Some(31), None, None]);
        assert_eq!((queue.free_slots, queue.lanes.len()), (2, 0));
    }

    #[test]
    fn a_key_is_some_tokens_of_a_subject() {
        let (one, two) = (KeyTokens::new(vec![2]), KeyTokens::new(vec![1, 2]));
        assert_eq!(one.key("orders.42.placed"), one.key("orders.42.confirmed.7"));
        assert_ne!(one.key("orders.42.placed"), one.key("orders.43.placed"));
        assert_ne!(two.key("a.b.c"), two.key("a.c.b"));
    }
}
