//! How a child process is started.

use super::{Process, Running};
use crate::folder::Folder;
use crate::guard;
use anyhow::{Context, Result, bail};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

/// Starts only when told to, by a line on standard input: by then it has been noted as one to be killed. A test process
/// that dies before that closes the pipe, and nothing is started.
const STARTER: &str = r#"read -r _ || exit 1; exec "$@" < /dev/null"#;

/// What a program needs of this process's environment. The rest (a developer's KUBECONFIG, NATS_URL, OTEL_…) stays away
/// from the programs under test.
const INHERITED: [&str; 5] = ["PATH", "TMPDIR", "LANG", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"];

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
    pub(super) fn new(program: PathBuf) -> Self {
        let name =
            program.file_name().map_or_else(|| "process".into(), |name| name.to_string_lossy().into_owned());
        Self { program, name, args: Vec::new(), env: Vec::new(), folder: None }
    }

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

    /// As [`Self::start`], for a program that does not end where it cannot be started.
    ///
    /// # Errors
    ///
    /// When there is no such program, or the machine has no room for it.
    pub fn try_start(self) -> Result<Process> {
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
