//! Ends what this process started when this process itself is gone, however it ended.
//!
//! A small `sh` holds the reading end of a pipe whose writing end only this process has. When the pipe closes, the
//! processes noted in the run's folder are killed and the folder is removed. It is in a process group of its own and
//! ignores the terminal's signals, so it outlives what ends the tests.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// A note is a file named for the process's id that holds its start time, so that an id used again is not mistaken.
/// A killed process takes a moment to end, and may still write in it: the folder goes when all are gone, which tells
/// who waits for it that they are, and at the latest after the few attempts at removing it.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM
read -r _
# Whether there is the process of a note, and its state.
is_there() {
  stat=$(cat "/proc/${1##*/}/stat" 2>/dev/null) || return 1
  noted=$(cat "$1")
  set -- ${stat##*) }
  state=$1
  [ "${20}" = "$noted" ]
}
# One that ended, and that nobody waited for (Z), is gone, but its group may not be.
kill_those_that_run() {
  killed=
  for note in "$1"/processes/*; do
    is_there "$note" && kill -s KILL -- "-${note##*/}" && [ "$state" != Z ] && killed=1
  done
}
kill_those_that_run "$1"
for attempt in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  [ -z "$killed" ] && rm -rf "$1" && break
  sleep 0.1
  kill_those_that_run "$1"
done
[ -n "$killed" ] && rm -rf "$1"
"#;

/// The folder of this test process, with the guard that removes it in the end.
struct Run {
    folder: PathBuf,
    /// Held for its standard input, which closes with this process.
    _guard: Child,
}

/// The folder that holds all folders of this test process.
pub(crate) fn run_folder() -> Result<&'static Path> {
    static RUN: OnceLock<Result<Run, String>> = OnceLock::new();
    match RUN.get_or_init(|| start().map_err(|error| format!("{error:#}"))) {
        Ok(run) => Ok(&run.folder),
        Err(error) => anyhow::bail!("{error}"),
    }
}

fn start() -> Result<Run> {
    let folder =
        tempfile::Builder::new().prefix("jetwright-test-").tempdir().context("no temporary folder")?.keep();
    fs::create_dir(folder.join("processes"))?;
    let guard = Command::new("sh")
        .args(["-c", SCRIPT, "jetwright-test-guard"])
        .arg(&folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .context("could not start the sh that ends what the tests started")?;
    Ok(Run { folder, _guard: guard })
}

/// Notes a process, the leader of its process group, as one to be killed with this one.
pub(crate) fn note(pid: u32) -> Result<()> {
    fs::write(note_of(pid)?, start_time(pid)?)?;
    Ok(())
}

/// When a process was started, in the kernel's ticks since its own start: with the id it tells a process from a later one.
///
/// # Errors
///
/// When there is no such process.
pub fn start_time(pid: u32) -> Result<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // proc_pid_stat(5): the start time is field 22; the command's name, field 2, may hold blanks and parentheses.
    let begun = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(19));
    Ok(begun.context("no start time in /proc")?.to_owned())
}

/// Ends what is left of a process that was killed together with the guard of its folder, and removes that folder.
///
/// # Errors
///
/// When the folder cannot be removed.
pub fn end_left_in(folder: &Path) -> Result<()> {
    // Nobody holds its standard input, so it does at once what a guard does in the end.
    let mut guard = Command::new("sh");
    guard.args(["-c", SCRIPT, "jetwright-test-guard"]).arg(folder).stdin(Stdio::null());
    let guarded = guard.output().context("could not start the sh that ends what was left")?;
    ensure!(
        !folder.exists(),
        "could not remove {}: {}",
        folder.display(),
        String::from_utf8_lossy(&guarded.stderr).trim()
    );
    Ok(())
}

/// Strikes out a process that has ended.
pub(crate) fn strike(pid: u32) {
    if let Ok(note) = note_of(pid) {
        let _ = fs::remove_file(note);
    }
}

fn note_of(pid: u32) -> Result<PathBuf> {
    Ok(run_folder()?.join("processes").join(pid.to_string()))
}
