//! Awaiting a condition, instead of sleeping and hoping.

use std::fmt::Display;
use std::future::Future;
use std::panic::Location;
use std::time::{Duration, Instant};

/// The time between two looks.
const INTERVAL: Duration = Duration::from_millis(25);

/// Asks again and again until the answer is `Ok`, and returns what is in it.
///
/// # Panics
///
/// When `bound` has passed, with what was awaited, where, and the last answer.
#[track_caller]
pub fn await_until<T, E, F, A>(what: &str, bound: Duration, ask: F) -> impl Future<Output = T>
where
    E: Display,
    F: FnMut() -> A,
    A: Future<Output = Result<T, E>>,
{
    let asked_at = Location::caller();
    async move {
        match try_until(bound, ask).await {
            Ok(answer) => answer,
            Err(last) => {
                panic!("{asked_at}: awaited {what} for {bound:?} in vain; the last answer was: {last}")
            }
        }
    }
}

/// As [`await_until`], but returns the last answer when `bound` has passed.
pub(crate) async fn try_until<T, E, F, A>(bound: Duration, mut ask: F) -> Result<T, String>
where
    E: Display,
    F: FnMut() -> A,
    A: Future<Output = Result<T, E>>,
{
    let end = Instant::now() + bound;
    let mut last = None;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, ask()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => last = Some(format!("{error:#}")),
            Err(_) => return Err(last.unwrap_or_else(|| "none, the question itself was not answered".into())),
        }
        if Instant::now() + INTERVAL >= end {
            return Err(last.unwrap_or_default());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn the_first_good_answer_is_returned() {
        let asked = Cell::new(0);
        let answer = await_until("a third look", Duration::from_secs(5), async || {
            asked.set(asked.get() + 1);
            if asked.get() == 3 { Ok("seen") } else { Err("not yet") }
        });
        assert_eq!((answer.await, asked.get()), ("seen", 3));
    }

    #[tokio::test]
    #[should_panic(expected = "awaited the moon for 60ms in vain; the last answer was: only clouds")]
    async fn in_vain_tells_what_was_awaited_and_the_last_answer() {
        await_until("the moon", Duration::from_millis(60), async || Err::<(), _>("only clouds")).await;
    }

    #[tokio::test]
    #[should_panic(expected = "the question itself was not answered")]
    async fn a_question_that_hangs_is_bounded_too() {
        await_until("the moon", Duration::from_millis(60), std::future::pending::<Result<(), String>>).await;
    }
}
