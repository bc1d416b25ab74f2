//! The graceful end of a program: the first signal asks for it, the second one ends the program at once.

use std::io;
use std::process;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The stop of a program. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
}

impl Shutdown {
    /// Handles SIGTERM (from Kubernetes) and SIGINT (Ctrl-C). The first of them cancels the token, the second one ends the process
    /// with the exit code 128 + its number, as an unhandled signal would.
    ///
    /// # Errors
    ///
    /// The system refuses the signal handlers.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn on_signals() -> io::Result<Self> {
        let mut signals = Signals::new()?;
        let shutdown = Self::default();
        let token = shutdown.token();
        tokio::spawn(async move {
            let name = signals.next().await.0;
            tracing::info!(signal = name, "stopping; a second signal ends the program at once");
            token.cancel();
            let (name, number) = signals.next().await;
            tracing::warn!(signal = name, "terminating at once, with work in flight");
            process::exit(128 + number);
        });
        Ok(shutdown)
    }

    /// Cancelled when the program must stop.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Stops the program without a signal, as when one of its parts cannot continue.
    pub fn trigger(&self) {
        self.token.cancel();
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { terminate, interrupt })
    }

    /// Name and number of the next signal.
    async fn next(&mut self) -> (&'static str, i32) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", SignalKind::terminate().as_raw_value()),
            _ = self.interrupt.recv() => ("SIGINT", SignalKind::interrupt().as_raw_value()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, ChildStdout, Command, Stdio};

    use super::*;

    /// What the parent test sets so that the same test, run in a child process, is the program under test.
    const CHILD: &str = "SHUTDOWN_TEST_CHILD";

    #[tokio::test]
    async fn the_program_can_stop_itself() {
        let shutdown = Shutdown::on_signals().unwrap();
        let token = shutdown.token();
        assert!(!token.is_cancelled());
        shutdown.clone().trigger();
        token.cancelled().await;
    }

    #[test]
    fn the_first_signal_asks_and_the_second_ends_with_128_and_its_number() {
        if std::env::var_os(CHILD).is_some() {
            return stubborn_program();
        }
        for (first, second, code) in [("TERM", "TERM", 143), ("TERM", "INT", 130), ("INT", "TERM", 143)] {
            let (mut child, mut output) = start();
            await_line(&mut output, "started");
            send(&child, first);
            await_line(&mut output, "asked to stop");
            send(&child, second);
            assert_eq!(child.wait().unwrap().code(), Some(code), "{first}, {second}");
        }
    }

    /// A program that ignores the request to stop.
    fn stubborn_program() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let shutdown = Shutdown::on_signals().unwrap();
            println!("started");
            shutdown.token().cancelled().await;
            println!("asked to stop");
            std::future::pending::<()>().await;
        });
    }

    fn start() -> (Child, BufReader<ChildStdout>) {
        let name = "shutdown::tests::the_first_signal_asks_and_the_second_ends_with_128_and_its_number";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        (child, output)
    }

    fn await_line(output: &mut impl BufRead, wanted: &str) {
        let found = output.lines().map(Result::unwrap).any(|line| line.contains(wanted));
        assert!(found, "the program ended without saying {wanted:?}");
    }

    fn send(child: &Child, signal: &str) {
        let status =
            Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}
