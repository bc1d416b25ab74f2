//! How long this process has been trying a deletion: pods and NATS have a clock each, since the one must not use up the other's time.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// Time since something was first tried.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub started: Instant,
    /// The same for messages, in whole seconds.
    pub since: Timestamp,
}

impl Clock {
    fn start() -> Self {
        let now = Timestamp::now();
        Self { started: Instant::now(), since: Timestamp::from_second(now.as_second()).unwrap_or(now) }
    }

    /// What is left of this time.
    #[must_use]
    pub fn left_of(&self, bound: Duration) -> Duration {
        bound.saturating_sub(self.started.elapsed())
    }
}

/// How far this process has come with the deletion of an object.
#[derive(Clone, Debug, Default)]
pub struct Deletion {
    /// Which object of its name it is.
    uid: String,
    pods: Option<Clock>,
    nats: Option<Clock>,
    pods_abandoned: bool,
    /// What was reported to be left behind.
    reported: Vec<String>,
    released: bool,
    /// When the next thing is given up: no pause before a retry lasts longer.
    deadline: Option<Instant>,
}

impl Deletion {
    /// The deletion of the object with this uid: what is known of another one of its name does not count.
    #[must_use]
    pub fn of(&mut self, uid: &str) -> &mut Self {
        if self.uid != uid {
            *self = Self { uid: uid.to_owned(), ..Self::default() };
        }
        self
    }

    /// Since when the pods' end is waited for; with this bound.
    pub fn of_pods(&mut self, bound: Duration) -> Clock {
        let clock = *self.pods.get_or_insert_with(Clock::start);
        self.deadline = Some(clock.started + bound);
        clock
    }

    /// Since when the end of the objects that use it is waited for, which has no bound.
    pub fn of_users(&mut self) -> Clock {
        *self.pods.get_or_insert_with(Clock::start)
    }

    /// Since when NATS is tried; with this bound.
    pub fn of_nats(&mut self, bound: Duration) -> Clock {
        let clock = *self.nats.get_or_insert_with(Clock::start);
        self.deadline = Some(clock.started + bound);
        clock
    }

    /// Pods are not waited for any more.
    pub fn abandon_pods(&mut self) {
        self.pods_abandoned = true;
    }

    #[must_use]
    pub fn are_pods_abandoned(&self) -> bool {
        self.pods_abandoned
    }

    /// Whether it was not reported yet that this is left behind: a step that comes after it may have to be repeated.
    pub fn first_report(&mut self, note: &str) -> bool {
        let is_first = self.reported.iter().all(|reported| reported != note);
        if is_first {
            self.reported.push(note.to_owned());
        }
        is_first
    }

    /// The finalizer is removed. The object is still seen until its watch says that it is gone.
    pub fn release(&mut self) {
        self.released = true;
    }

    #[must_use]
    pub fn is_released(&self) -> bool {
        self.released
    }

    /// Longest pause before a retry.
    #[must_use]
    pub fn max_pause(&self) -> Option<Duration> {
        let left = self.deadline?.saturating_duration_since(Instant::now());
        // What is overdue already ends with its next try.
        Some(left).filter(|left| !left.is_zero())
    }
}
