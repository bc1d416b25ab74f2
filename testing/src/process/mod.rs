//! A program under test, or a server for it, as a child process.

mod builder;
mod ready;

pub use builder::ProcessBuilder;
pub use ready::start_server;
pub(crate) use ready::{NotReady, on_free_ports};

use crate::awaiting::await_until;
use crate::folder::{Folder, tail};
use crate::{guard, usage};
use anyhow::{Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A running program. It is killed on drop, and when this process is gone.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    running: Mutex<Running>,
    log: PathBuf,
    folder: Arc<Folder>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    exited: Option<ExitStatus>,
}

impl Process {
    /// What to start: a program of this workspace (see [`crate::binary`]), another path, or a name on PATH.
    #[must_use]
    pub fn builder(program: impl Into<PathBuf>) -> ProcessBuilder {
        ProcessBuilder::new(program.into())
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The folder that it runs in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it has written to standard output and standard error so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// The end of that, for who is told of a failure.
    #[must_use]
    pub fn last_lines(&self) -> String {
        tail(&self.log())
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn exited(&self) -> Option<ExitStatus> {
        self.look(&mut self.child())
    }

    /// Sends a signal by its name: TERM, INT, STOP, CONT, USR2… A process that has ended is left alone.
    pub fn signal(&self, signal: &str) {
        // Held until the signal is sent: as long as nobody waits for the child, its id is not used again.
        let mut child = self.child();
        if self.look(&mut child).is_none() {
            let sent = send(signal, &self.pid.to_string());
            assert!(sent.is_ok(), "could not send {signal} to {} ({}): {sent:?}", self.name, self.pid);
        }
    }

    /// Stops it (SIGSTOP), and waits until it stands still. With SIGCONT it goes on.
    ///
    /// # Panics
    ///
    /// When it does not stand still within seconds: it has ended.
    pub async fn freeze(&self) {
        self.signal("STOP");
        let stopped = async || {
            let state = state(self.pid);
            if state == Some(STOPPED) { Ok(()) } else { Err(format!("{state:?}")) }
        };
        await_until(&format!("{} to stand still", self.name), Duration::from_secs(10), stopped).await;
    }

    /// Kills it and what it has started (SIGKILL), and waits until it is gone.
    pub fn kill(&self) {
        let mut child = self.child();
        if child.exited.is_none() {
            let _ = child.child.kill();
            self.reap(&mut child);
        }
    }

    fn look(&self, child: &mut Running) -> Option<ExitStatus> {
        if child.exited.is_none() && state(self.pid) == Some(ZOMBIE) {
            self.reap(child);
        }
        child.exited
    }

    /// Ends what is left of its process group, and takes note of its end. In this order: until it is waited for, its id,
    /// which is the group's, is not used again.
    fn reap(&self, child: &mut Running) {
        let _ = send("KILL", &format!("-{}", self.pid));
        child.exited = child.child.wait().ok();
        guard::strike(self.pid);
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    ///
    /// When it has not within `bound`, with the last lines of its log.
    pub async fn wait_exit(&self, bound: Duration) -> ExitStatus {
        let exited = crate::awaiting::try_until(bound, async || self.exited().ok_or("it runs")).await;
        exited.unwrap_or_else(|_| {
            panic!("{} has not ended within {bound:?}; its log ends with:\n{}", self.name, self.last_lines())
        })
    }

    /// Waits until a line of its log contains `text`, and returns the line.
    ///
    /// # Panics
    ///
    /// When none does within `bound`, or the process ends without it, with the last lines of the log.
    pub async fn await_log(&self, text: &str, bound: Duration) -> String {
        let found = crate::awaiting::try_until(bound, async || {
            let exited = self.exited();
            match self.log().lines().find(|line| line.contains(text)) {
                Some(line) => Ok(Ok(line.to_owned())),
                None => exited.map_or(Err("no such line"), |status| Ok(Err(status))),
            }
        });
        match found.await {
            Ok(Ok(line)) => line,
            Ok(Err(status)) => {
                panic!("{} ended ({status}) and had not logged '{text}':\n{}", self.name, self.last_lines())
            }
            Err(last) => {
                panic!(
                    "{} has not logged '{text}' within {bound:?} ({last}):\n{}",
                    self.name,
                    self.last_lines()
                )
            }
        }
    }

    /// The memory that it holds (its resident set), in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        usage::memory_bytes(self.pid, "VmRSS")
    }

    fn child(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The state of a process that has ended, and that nobody has waited for.
const ZOMBIE: char = 'Z';
/// The state of a process that a signal has stopped.
const STOPPED: char = 'T';

/// The letter of a process's state, of proc_pid_stat(5).
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The state is field 3; the command's name, field 2, may hold blanks and parentheses.
    stat.rsplit(") ").next()?.chars().next()
}

/// Sends a signal to a process, or to the group whose id has a minus before it.
fn send(signal: &str, to: &str) -> Result<()> {
    let sent = Command::new("sh").args(["-c", r#"kill -s "$1" -- "$2""#, "signal", signal, to]).output()?;
    ensure!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr).trim());
    Ok(())
}
