//! For how long something stood still, as far as this process saw: a process that begins anew counts anew, which only takes longer.

use std::{collections::HashMap, hash::Hash, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::hash::hash_of;

/// How long something is remembered that nobody asks for.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(10);

#[derive(Debug)]
struct Seen {
    value: u64,
    since: Instant,
    asked: Instant,
}

/// What was seen of things, by name.
#[derive(Debug, Default)]
pub struct Unchanged(Mutex<HashMap<String, Seen>>);

impl Unchanged {
    /// For how long the thing has had this value.
    pub fn observe(&self, name: &str, value: &impl Hash) -> Duration {
        let (value, now) = (hash_of(value), Instant::now());
        let mut seen = self.0.lock();
        seen.retain(|_, seen| now - seen.asked < FORGOTTEN_AFTER);
        let fresh = || Seen { value, since: now, asked: now };
        let known = seen.entry(name.to_owned()).or_insert_with(fresh);
        if known.value != value {
            *known = fresh();
        }
        known.asked = now;
        now - known.since
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_changes_begins_anew_and_what_nobody_asks_for_is_forgotten() {
        let (seen, second) = (Unchanged::default(), Duration::from_secs(1));
        assert_eq!(seen.observe("a", &1), Duration::ZERO);
        advance(second).await;
        assert_eq!((seen.observe("a", &1), seen.observe("b", &1)), (second, Duration::ZERO));
        assert_eq!(seen.observe("a", &2), Duration::ZERO);
        advance(FORGOTTEN_AFTER).await;
        assert_eq!((seen.observe("c", &1), seen.0.lock().len()), (Duration::ZERO, 1));
    }
}
