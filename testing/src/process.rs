//! A program under test, or a server for it, as a child process.

use crate::folder::{Folder, tail};
use crate::{guard, port};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Starts only when told to, by a line on standard input: by then it has been noted as one to be killed. A test process
/// that dies before that closes the pipe, and nothing is started.
const STARTER: &str = r#"read -r _ || exit 1; exec "$@" < /dev/null"#;

/// What a program needs of this process's environment. The rest (a developer's KUBECONFIG, NATS_URL, OTEL_…) stays away
/// from the programs under test.
const INHERITED: [&str; 5] = ["PATH", "TMPDIR", "LANG", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"];

/// A running program. It is killed on drop, and when this process is gone.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    running: Mutex<Running>,
    log: PathBuf,
    folder: Arc<Folder>,
}

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

#[derive(Debug)]
struct Running {
    child: Child,
    exited: Option<ExitStatus>,
}

/// What to start: see [`Process::builder`].
#[derive(Debug, Clone)]
pub struct ProcessBuilder {
    program: PathBuf,
    name: String,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    folder: Option<Arc<Folder>>,
}

impl ProcessBuilder {
    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable. Of this process's own, only PATH and a few harmless ones are passed on; HOME is the
    /// process's folder.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets environment variables.
    #[must_use]
    pub fn envs(self, variables: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>) -> Self {
        variables.into_iter().fold(self, |builder, (name, value)| builder.env(name, value))
    }

    /// Names the process in messages and its log; the program's name where this is not called.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Runs it in this folder, which it may share with others or with its predecessor, instead of one of its own.
    #[must_use]
    pub fn folder(mut self, folder: &Arc<Folder>) -> Self {
        self.folder = Some(Arc::clone(folder));
        self
    }

    /// Starts it.
    #[must_use]
    pub fn start(self) -> Process {
        let name = self.name.clone();
        self.try_start().unwrap_or_else(|error| panic!("{name} could not be started: {error:#}"))
    }

    pub(crate) fn try_start(self) -> Result<Process> {
        if self.program.is_absolute() && !self.program.is_file() {
            bail!("there is no {}", self.program.display());
        }
        let folder = self.folder.map_or_else(|| Folder::try_new(&self.name), Ok)?;
        let log = folder.path().join(format!("{}.log", self.name));
        let output = File::options().create(true).append(true).open(&log).context("its log")?;
        let inherited = INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let mut child = Command::new("sh")
            .args(["-c", STARTER, "start"])
            .arg(&self.program)
            .args(&self.args)
            .env_clear()
            .envs(inherited)
            .env("HOME", folder.path())
            .envs(self.env)
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()?;
        let pid = child.id();
        let stdin = child.stdin.take();
        // From here on, dropping it ends the child.
        let process = Process {
            name: self.name,
            pid,
            running: Mutex::new(Running { child, exited: None }),
            log,
            folder,
        };
        guard::note(pid)?;
        stdin.context("no standard input")?.write_all(b"\n")?;
        Ok(process)
    }
}

impl Process {
    /// What to start: a program of this workspace (see [`crate::binary`]), another path, or a name on PATH.
    #[must_use]
    pub fn builder(program: impl Into<PathBuf>) -> ProcessBuilder {
        let program = program.into();
        let name =
            program.file_name().map_or_else(|| "process".into(), |name| name.to_string_lossy().into_owned());
        ProcessBuilder { program, name, args: Vec::new(), env: Vec::new(), folder: None }
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

    /// How it ended, if it has.
    #[must_use]
    pub fn exited(&self) -> Option<ExitStatus> {
        self.reap(&mut self.child(), |child| child.try_wait().unwrap_or_default())
    }

    /// Sends a signal by its name: TERM, INT, STOP, CONT, USR2… A process that has ended is left alone.
    pub fn signal(&self, signal: &str) {
        // Held until the signal is sent: as long as nobody waits for the child, its id is not used again.
        let mut child = self.child();
        if self.reap(&mut child, |child| child.try_wait().unwrap_or_default()).is_none() {
            let sent = send(signal, &self.pid.to_string());
            assert!(sent.is_ok(), "could not send {signal} to {} ({}): {sent:?}", self.name, self.pid);
        }
    }

    /// Kills it and what it has started (SIGKILL), and waits until it is gone.
    pub fn kill(&self) {
        let mut child = self.child();
        let _ = child.child.kill();
        self.reap(&mut child, |child| child.wait().ok());
    }

    /// Takes note of its end, once, and ends what is left of its process group then: as long as there is some, the
    /// group's id is not used again.
    fn reap(
        &self,
        child: &mut Running,
        end: impl FnOnce(&mut Child) -> Option<ExitStatus>,
    ) -> Option<ExitStatus> {
        if child.exited.is_none() {
            child.exited = end(&mut child.child);
            if child.exited.is_some() {
                let _ = send("KILL", &format!("-{}", self.pid));
                guard::strike(self.pid);
            }
        }
        child.exited
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    ///
    /// When it has not within `bound`, with the last lines of its log.
    pub async fn wait_exit(&self, bound: Duration) -> ExitStatus {
        let exited = crate::awaiting::try_until(bound, async || self.exited().ok_or("it runs")).await;
        exited.unwrap_or_else(|_| {
            panic!("{} has not ended within {bound:?}; its log ends with:\n{}", self.name, tail(&self.log()))
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
                panic!("{} ended ({status}) and had not logged '{text}':\n{}", self.name, tail(&self.log()))
            }
            Err(last) => {
                panic!(
                    "{} has not logged '{text}' within {bound:?} ({last}):\n{}",
                    self.name,
                    tail(&self.log())
                )
            }
        }
    }

    /// The memory that it holds (its resident set), in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        // proc_pid_status(5): kilobytes of 1024
        let kilobytes =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        let Some(Ok(kilobytes)) = kilobytes.map(str::parse::<u64>) else {
            panic!("{} ({}) does not run, so it has no memory", self.name, self.pid)
        };
        kilobytes * 1024
    }

    /// Asks until it is ready, or has ended, or `bound` has passed.
    pub(crate) async fn await_ready<E, F, A>(&self, bound: Duration, mut ask: F) -> Result<(), NotReady>
    where
        E: Display,
        F: FnMut() -> A,
        A: Future<Output = Result<(), E>>,
    {
        let asked = crate::awaiting::try_until(bound, || {
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
        Err(NotReady::Other(anyhow!("{} {why}; its log ends with:\n{}", self.name, tail(&self.log()))))
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

/// Sends a signal to a process, or to the group whose id has a minus before it.
fn send(signal: &str, to: &str) -> Result<()> {
    let sent = Command::new("sh").args(["-c", r#"kill -s "$1" -- "$2""#, "signal", signal, to]).output()?;
    ensure!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr).trim());
    Ok(())
}
