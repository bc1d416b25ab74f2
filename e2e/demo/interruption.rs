//! Ctrl-C and SIGTERM, after which a demo ends what it has started before it ends itself.

use std::{fmt, io, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

/// Signals of a terminal reach all of its processes within this.
const AT_ONCE: Duration = Duration::from_millis(100);

/// Whether somebody wants this process to end.
pub struct Interruption {
    interrupt: Signal,
    terminate: Signal,
}

impl Interruption {
    /// From now on, neither signal ends this process by itself.
    ///
    /// # Errors
    ///
    /// When the system refuses that.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for one.
    pub async fn happens(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Whether one has come that nobody has waited for.
    pub async fn has_happened(&mut self) -> bool {
        timeout(AT_ONCE, self.happens()).await.is_ok()
    }
}

/// The error of what was interrupted.
#[derive(Clone, Copy, Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("interrupted; what this call had started has ended")
    }
}

impl std::error::Error for Interrupted {}
