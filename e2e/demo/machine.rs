//! Whether this machine has room for a demo.

use std::{fs, path::Path};

use anyhow::{Result, ensure};

/// What all processes need together, with some to spare.
const MEMORY_MIB: u64 = 1024;
/// What Prometheus and Jaeger need beside them.
const OBSERVERS_MIB: u64 = 512;
/// What etcd, three NATS servers and the logs need.
const DISK_MIB: u64 = 1024;

/// Checks memory, also for Prometheus and Jaeger where they look on, and the disks of these folders.
///
/// # Errors
///
/// When there is too little of one.
pub fn check(folders: &[&Path], observe: bool) -> Result<()> {
    let needed = MEMORY_MIB + if observe { OBSERVERS_MIB } else { 0 };
    if let Some(available) = available_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()) {
        ensure!(
            available >= needed,
            "{available} MiB of memory are available, and the demo needs {needed}: end other programs first"
        );
    }
    for folder in folders {
        let disk = rustix::fs::statvfs(*folder)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize) >> 20;
        ensure!(
            free >= DISK_MIB,
            "{free} MiB are free on the disk of {}, and the demo needs {DISK_MIB}: make room (TMPDIR names another place for temporary files)",
            folder.display()
        );
    }
    Ok(())
}

/// In MiB, of what /proc/meminfo says.
fn available_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_is_said_by_the_kernel() {
        let meminfo =
            "MemTotal:       24689716 kB\nMemFree:          433132 kB\nMemAvailable:    2097152 kB\n";
        assert_eq!(available_memory(meminfo), Some(2048));
        assert_eq!(available_memory("MemTotal: 1 kB"), None);
    }
}
