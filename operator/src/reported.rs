//! Which troubles of an object were reported by events: each once for a generation. A trouble of a new object is reported when it lasts, since
//! what is applied together is created one after another. Pure.

use std::time::Duration;

/// Age at which a trouble of an object that was never ready is reported.
const MIN_AGE: Duration = Duration::from_secs(30);

/// A trouble of an object as a reconcile sees it.
#[derive(Clone, Debug)]
pub struct Sighting {
    pub reason: &'static str,
    pub generation: Option<i64>,
    /// How long the object has existed.
    pub age: Duration,
    /// Whether it was as declared until now.
    pub was_ready: bool,
    /// Whether its status has the trouble already.
    pub was_told: bool,
}

/// What to do about a trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    Now,
    /// When the object is old enough.
    Later(Duration),
    /// It was reported.
    Known,
}

/// What was reported of an object's generation.
#[derive(Clone, Debug, Default)]
pub struct Reported {
    generation: Option<i64>,
    /// Reasons that were seen, and whether they were reported.
    seen: Vec<(&'static str, bool)>,
}

impl Reported {
    /// Decides about a trouble, and takes note of it.
    pub fn decide(&mut self, sighting: &Sighting) -> Report {
        if self.generation != sighting.generation {
            *self = Self { generation: sighting.generation, seen: Vec::new() };
        }
        let left = MIN_AGE.saturating_sub(sighting.age);
        let index = self.seen.iter().position(|(reason, _)| *reason == sighting.reason);
        let index = index.unwrap_or_else(|| {
            // What the status has although this process never saw it, the process before saw, and reported when it was due.
            self.seen.push((sighting.reason, sighting.was_told && left.is_zero()));
            self.seen.len() - 1
        });
        match self.seen.get_mut(index) {
            Some((_, reported)) if !*reported && (left.is_zero() || sighting.was_ready) => {
                *reported = true;
                Report::Now
            }
            Some((_, false)) => Report::Later(left),
            Some((_, true)) | None => Report::Known,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sighting(reason: &'static str, generation: i64, age: u64) -> Sighting {
        let age = Duration::from_secs(age);
        Sighting { reason, generation: Some(generation), age, was_ready: false, was_told: false }
    }

    #[test]
    fn a_trouble_of_a_new_object_is_reported_when_it_lasts_and_once() {
        let mut reported = Reported::default();
        assert_eq!(reported.decide(&sighting("NotFound", 1, 2)), Report::Later(Duration::from_secs(28)));
        let told = Sighting { was_told: true, ..sighting("NotFound", 1, 30) };
        assert_eq!([(); 2].map(|()| reported.decide(&told)), [Report::Now, Report::Known]);
        // Another reason, the first one again, and another generation.
        assert_eq!(reported.decide(&sighting("Invalid", 1, 31)), Report::Now);
        assert_eq!(reported.decide(&sighting("NotFound", 1, 32)), Report::Known);
        assert_eq!(reported.decide(&sighting("NotFound", 2, 33)), Report::Now);
    }

    #[test]
    fn a_trouble_of_an_object_that_was_ready_is_reported_at_once() {
        let invalid = Sighting { was_ready: true, ..sighting("Invalid", 2, 3) };
        let mut reported = Reported::default();
        assert_eq!([(); 2].map(|()| reported.decide(&invalid)), [Report::Now, Report::Known]);
    }

    #[test]
    fn what_a_process_before_this_one_reported_is_not_reported_again() {
        let mut reported = Reported::default();
        let old = Sighting { was_told: true, ..sighting("Invalid", 2, 300) };
        assert_eq!(reported.decide(&old), Report::Known);
        // The process before ended before it was due.
        let young = Sighting { was_told: true, ..sighting("NotFound", 2, 10) };
        assert_eq!(reported.decide(&young), Report::Later(Duration::from_secs(20)));
        assert_eq!(reported.decide(&Sighting { age: Duration::from_secs(31), ..young }), Report::Now);
    }
}
