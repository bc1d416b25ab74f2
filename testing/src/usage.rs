//! What a process costs, as /proc tells it.

use std::fmt::Display;
use std::fs;

/// Ticks a second of the times in /proc (USER_HZ, the same on all Linux architectures that matter here).
const TICKS: f64 = 100.0;

/// Processor time in seconds that a process has taken so far, by its id or `self` (proc_pid_stat(5): utime and stime are fields 14 and 15).
///
/// # Panics
///
/// When there is no such process.
#[must_use]
pub fn processor_seconds(pid: impl Display) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"));
    let text = text.unwrap_or_else(|error| panic!("the times of process {pid} cannot be read: {error}"));
    // The second field, the name in parentheses, may hold spaces.
    let fields: Vec<_> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| {
        let ticks = fields.get(field - 3).and_then(|ticks| ticks.parse::<f64>().ok());
        ticks.unwrap_or_else(|| panic!("field {field} is no time: {text}"))
    };
    (ticks(14) + ticks(15)) / TICKS
}

/// Memory in bytes of a process, by its id or `self` (proc_pid_status(5)): `VmRSS` now, or `VmHWM` at most so far.
///
/// # Panics
///
/// When there is no such process, or it has no memory any more.
#[must_use]
pub fn memory_bytes(pid: impl Display, what: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    // kilobytes of 1024
    kilobytes.unwrap_or_else(|| panic!("process {pid} does not run, so it has no {what}")) * 1024
}
