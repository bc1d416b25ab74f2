//! What is logged, changed while the program runs.

use std::sync::OnceLock;

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;

use super::log::check;

/// The filter of the process, once telemetry is started.
static FILTER: OnceLock<LogFilter> = OnceLock::new();

/// Puts another filter in the place of the one that a subscriber has.
type Replace = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

/// The filter of a subscriber.
pub(super) struct LogFilter {
    replace: Replace,
    /// Its directives.
    current: Mutex<String>,
}

/// Why what is logged was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogFilterError {
    /// The directives are none.
    #[error("expected a level or target=level,\u{2026}: {0}")]
    Invalid(String),
    /// There is no filter, since telemetry was not started.
    #[error("this program's logs are not filtered here")]
    NotStarted,
}

impl LogFilter {
    pub(super) fn new(directives: &str, replace: Replace) -> Self {
        Self { replace, current: Mutex::new(directives.to_owned()) }
    }

    /// Makes it the filter of the process; the first one stays.
    pub(super) fn install(self) {
        let _ = FILTER.set(self);
    }

    /// Replaces the directives; those that were there.
    pub(super) fn set(&self, directives: &str) -> Result<String, LogFilterError> {
        let directives = directives.trim();
        if directives.is_empty() {
            return Err(LogFilterError::Invalid("it is empty".to_owned()));
        }
        check(directives).map_err(LogFilterError::Invalid)?;
        let mut current = self.current.lock();
        (self.replace)(EnvFilter::new(directives)).map_err(LogFilterError::Invalid)?;
        Ok(std::mem::replace(&mut *current, directives.to_owned()))
    }
}

/// The directives that say what the process logs now; None before telemetry is started.
#[must_use]
pub fn log_filter() -> Option<String> {
    FILTER.get().map(|filter| filter.current.lock().clone())
}

/// Changes what the process logs from now on, by directives as `RUST_LOG` has them. Returns those that were there before.
///
/// # Errors
///
/// The directives are none, or telemetry was not started.
pub fn set_log_filter(directives: &str) -> Result<String, LogFilterError> {
    FILTER.get().ok_or(LogFilterError::NotStarted)?.set(directives)
}
