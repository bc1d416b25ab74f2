//! What a process costs, as /proc tells it.

use std::fs;

/// Ticks a second of the times in /proc (USER_HZ, the same on all Linux architectures that matter here).
const TICKS: f64 = 100.0;

/// Processor time that a process has taken so far (proc_pid_stat(5): utime and stime are fields 14 and 15).
pub fn processor_seconds(pid: &str) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The second field, the name in parentheses, may hold spaces.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |field: usize| fields[field - 3].parse::<f64>().unwrap();
    (ticks(14) + ticks(15)) / TICKS
}

/// Memory of this process (proc_pid_status(5)): `VmRSS` now, or `VmHWM` at most so far.
pub fn memory_bytes(what: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':')).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}
