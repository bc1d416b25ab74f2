//! Whether the stream of dead letters answers. While it does not, only one in a while waits for it: each takes the place of an event
//! that could be handled meanwhile.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// While it is away, so often one tries it. Longer than it takes to be told that it is.
const PROBE: Duration = Duration::from_secs(6);

/// Since it is away, when it may be tried next.
#[derive(Debug, Default)]
pub(super) struct Away(Mutex<Option<Instant>>);

impl Away {
    /// Whether it may be tried now; then [`heard`](Self::heard) has to be told what came of it.
    pub(super) fn may_try(&self) -> bool {
        let (mut next, now) = (self.0.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        let may = next.is_none_or(|next| now >= next);
        if may && next.is_some() {
            *next = Some(now + PROBE);
        }
        may
    }

    /// Whether it answered.
    pub(super) fn heard(&self, answered: bool) {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *next = if answered { None } else { next.or_else(|| Some(Instant::now() + PROBE)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn while_it_is_away_one_in_a_while_tries_it() {
        let away = Away::default();
        assert!(away.may_try() && away.may_try());
        away.heard(false);
        assert!(!away.may_try());
        tokio::time::advance(PROBE).await;
        assert_eq!([away.may_try(), away.may_try()], [true, false]);
        tokio::time::advance(PROBE / 2).await;
        away.heard(false);
        assert!(!away.may_try());
        tokio::time::advance(PROBE / 2).await;
        assert!(away.may_try());
        away.heard(true);
        assert!(away.may_try() && away.may_try());
    }
}
