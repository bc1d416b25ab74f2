//! Whether a server that has been started is of use.

use super::{Process, ProcessBuilder};
use crate::awaiting::try_until;
use crate::port::{self, free_port};
use anyhow::{Result, anyhow, bail};
use std::fmt::Display;
use std::time::Duration;

/// Why a server is of no use.
#[derive(Debug)]
pub(crate) enum NotReady {
    /// Another process took its port first: to be tried again on another.
    PortTaken,
    /// Anything else.
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for NotReady {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Starts something on free ports, and again on others if one was taken meanwhile.
pub(crate) async fn on_free_ports<T>(mut start: impl AsyncFnMut() -> Result<T, NotReady>) -> Result<T> {
    for _ in 0..5 {
        match start().await {
            Ok(started) => return Ok(started),
            Err(NotReady::Other(error)) => return Err(error),
            Err(NotReady::PortTaken) => {}
        }
    }
    bail!("five times, a port that was free had been taken when a server wanted to listen there")
}

/// Starts a server on so many free ports, and returns when it answers at a URL: `how` says how it is started on them, and what that URL is.
///
/// # Errors
///
/// When it cannot be started, or does not answer within `bound`, with the end of its log.
pub async fn start_server<const PORTS: usize>(
    bound: Duration,
    how: impl Fn([u16; PORTS]) -> Result<(ProcessBuilder, String)>,
) -> Result<(Process, [u16; PORTS])> {
    on_free_ports(async || {
        let ports = [(); PORTS].map(|()| free_port());
        let (start, url) = how(ports)?;
        let process = start.try_start()?;
        let answers = async || reqwest::get(&url).await?.error_for_status().map(drop);
        process.await_ready(bound, answers).await?;
        Ok((process, ports))
    })
    .await
}

impl Process {
    /// Asks until it is ready, or has ended, or `bound` has passed.
    pub(crate) async fn await_ready<E, F, A>(&self, bound: Duration, mut ask: F) -> Result<(), NotReady>
    where
        E: Display,
        F: FnMut() -> A,
        A: Future<Output = Result<(), E>>,
    {
        let asked = try_until(bound, || {
            let asked = ask();
            async {
                if let Some(status) = self.exited() {
                    return Ok(Some(status));
                }
                asked.await.map(|()| None)
            }
        });
        let why = match asked.await {
            Ok(None) => return Ok(()),
            Ok(Some(_)) if port::was_taken(&self.log()) => return Err(NotReady::PortTaken),
            Ok(Some(status)) => format!("ended at its start ({status})"),
            Err(last) => format!("was not ready within {bound:?} ({last})"),
        };
        Err(NotReady::Other(anyhow!("{} {why}; its log ends with:\n{}", self.name, self.last_lines())))
    }
}
