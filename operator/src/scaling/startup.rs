//! In: how many pods are to be there, and how many are ready, look by look. Out: since when they show what they bring. Pure.

use std::time::Duration;

/// How long pods that came last are waited for. One that is not ready by then, as on a node that cannot run it, holds up the others no longer.
pub const STARTUP_TIMEOUT: Duration = Duration::from_mins(3);

/// The pods of the last step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Startup {
    /// Since when they are waited for.
    begun: Option<Duration>,
    /// When all of them were ready first, or those that came in time.
    pub ready_at: Option<Duration>,
}

impl Startup {
    /// Other pods are waited for from now on.
    #[must_use]
    pub fn begin(at: Duration) -> Self {
        Self { begun: Some(at), ready_at: None }
    }

    /// Takes over how many of them are ready; whether that is enough for the first time. Where none is ready in time, more of them would not be
    /// either.
    pub fn observe(&mut self, at: Duration, ready: u32, replicas: u32) -> bool {
        let begun = *self.begun.get_or_insert(at);
        let is_over = ready > 0 && at >= begun + STARTUP_TIMEOUT;
        let are_enough = self.ready_at.is_none() && (ready >= replicas || is_over);
        if are_enough {
            self.ready_at = Some(at);
        }
        are_enough
    }
}
