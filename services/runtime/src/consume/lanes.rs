//! In which order deliveries begin. Pure: places of deliveries in, the place of the one that may begin out.

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    hash::{DefaultHasher, Hash, Hasher},
};

/// The deliveries of each key one after another, and no more than a number of them at once.
#[derive(Debug)]
pub(super) struct Lanes {
    /// Keys with a delivery that has begun or may, and those that wait behind it.
    waiting: HashMap<u64, VecDeque<usize>>,
    /// The first of their lanes, for which there is no room yet.
    ready: VecDeque<(u64, usize)>,
    /// Keys whose delivery is to be tried again later, and takes no room until then.
    paused: HashSet<u64>,
    room: usize,
}

impl Lanes {
    /// With room for so many keys at once.
    pub(super) fn new(room: usize) -> Self {
        Self { waiting: HashMap::new(), ready: VecDeque::new(), paused: HashSet::new(), room }
    }

    /// A delivery came; whether it may begin now.
    pub(super) fn enter(&mut self, key: u64, place: usize) -> bool {
        match self.waiting.entry(key) {
            Entry::Occupied(mut lane) => {
                lane.get_mut().push_back(place);
                false
            }
            Entry::Vacant(lane) => {
                lane.insert(VecDeque::new());
                if self.room == 0 {
                    self.ready.push_back((key, place));
                    return false;
                }
                self.room -= 1;
                true
            }
        }
    }

    /// A delivery that had begun is to go on later; the one that may begin now.
    pub(super) fn pause(&mut self, key: u64) -> Option<usize> {
        self.paused.insert(key);
        self.room += 1;
        self.next()
    }

    /// A delivery that was paused is to go on; whether it may now.
    pub(super) fn resume(&mut self, key: u64, place: usize) -> bool {
        self.paused.remove(&key);
        if self.room == 0 {
            self.ready.push_back((key, place));
            return false;
        }
        self.room -= 1;
        true
    }

    /// A delivery that had begun ended; the one that may begin now. Lanes take turns.
    ///
    /// One that was paused was given back. Those behind it are to be given back too, one after another, and take no room either.
    pub(super) fn leave(&mut self, key: u64) -> Option<usize> {
        let next = self.waiting.get_mut(&key).and_then(VecDeque::pop_front);
        if next.is_none() {
            self.waiting.remove(&key);
        }
        if self.paused.contains(&key) {
            if next.is_none() {
                self.paused.remove(&key);
            }
            return next;
        }
        self.ready.extend(next.map(|next| (key, next)));
        self.room += 1;
        self.next()
    }

    fn next(&mut self) -> Option<usize> {
        if self.room == 0 {
            return None;
        }
        let (_, next) = self.ready.pop_front()?;
        self.room -= 1;
        Some(next)
    }
}

/// The key of a subject: these tokens of it. Two keys that are taken for one share a lane, which only makes them slower.
pub(super) fn key(subject: &str, tokens: &[u32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (position, token) in (0..).zip(subject.split('.')) {
        if tokens.contains(&position) {
            token.hash(&mut hasher);
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_one_key_each_begins_when_the_one_before_it_ended() {
        let mut lanes = Lanes::new(8);
        assert!(lanes.enter(1, 10));
        assert!(!lanes.enter(1, 11));
        assert!(!lanes.enter(1, 12));
        assert!(lanes.enter(2, 20));
        assert_eq!([lanes.leave(1), lanes.leave(1), lanes.leave(1)], [Some(11), Some(12), None]);
        assert!(lanes.enter(1, 13));
    }

    #[test]
    fn there_are_no_more_at_once_than_there_is_room_for_and_lanes_take_turns() {
        let mut lanes = Lanes::new(2);
        assert!(lanes.enter(1, 10));
        assert!(!lanes.enter(1, 11));
        assert!(lanes.enter(2, 20));
        assert!(!lanes.enter(3, 30));
        assert_eq!(lanes.leave(1), Some(30));
        assert_eq!(lanes.leave(2), Some(11));
        assert_eq!((lanes.leave(3), lanes.leave(1)), (None, None));
        assert_eq!((lanes.room, lanes.waiting.len()), (2, 0));
    }

    #[test]
    fn what_is_tried_again_later_takes_no_room_and_its_key_waits() {
        let mut lanes = Lanes::new(1);
        assert!(lanes.enter(1, 10));
        assert!(!lanes.enter(1, 11));
        assert!(!lanes.enter(2, 20));
        assert_eq!(lanes.pause(1), Some(20));
        assert!(!lanes.resume(1, 10));
        assert_eq!(lanes.leave(2), Some(10));
        assert_eq!(lanes.pause(1), None);
        assert!(lanes.enter(3, 30));
        // Given back while it was paused.
        assert_eq!([lanes.leave(1), lanes.leave(1), lanes.leave(3)], [Some(11), None, None]);
        assert_eq!((lanes.room, lanes.waiting.len(), lanes.paused.len()), (1, 0, 0));
    }

    #[test]
    fn a_key_is_some_tokens_of_a_subject() {
        assert_eq!(key("orders.42.placed", &[1]), key("orders.42.confirmed.7", &[1]));
        assert_ne!(key("orders.42.placed", &[1]), key("orders.43.placed", &[1]));
        assert_ne!(key("a.b.c", &[0, 1]), key("a.c.b", &[0, 1]));
    }
}
