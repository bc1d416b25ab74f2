//! Which consumers went on a moment ago without being divided, and why; as far as this process saw.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long one that could not be divided goes on before it is paused again.
pub const PERIOD: Duration = Duration::from_secs(20);

/// When consumers were resumed, and why, by their names.
#[derive(Debug, Default)]
pub struct Resumed(Mutex<HashMap<String, (Instant, String)>>);

impl Resumed {
    /// One is resumed now.
    pub fn record(&self, name: String, why: String) {
        let mut known = self.0.lock();
        known.retain(|_, (since, _)| since.elapsed() < PERIOD);
        known.insert(name, (Instant::now(), why));
    }

    /// Why one was resumed; None where that is longer ago.
    #[must_use]
    pub fn why(&self, name: &str) -> Option<String> {
        let known = self.0.lock();
        let (since, why) = known.get(name)?;
        (since.elapsed() < PERIOD).then(|| why.clone())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn why_a_consumer_was_resumed_is_known_for_a_while() {
        let resumed = Resumed::default();
        resumed.record("a".into(), "refused".into());
        advance(PERIOD / 2).await;
        resumed.record("b".into(), "stuck".into());
        assert_eq!((resumed.why("a").as_deref(), resumed.why("c")), (Some("refused"), None));
        advance(PERIOD / 2).await;
        assert_eq!((resumed.why("a"), resumed.why("b").as_deref()), (None, Some("stuck")));
        resumed.record("b".into(), "refused".into());
        assert_eq!(resumed.why("b").as_deref(), Some("refused"));
        assert_eq!(resumed.0.lock().len(), 1, "what is over is forgotten");
    }
}
