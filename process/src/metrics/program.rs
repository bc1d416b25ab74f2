//! Metrics of the process itself, under the names that every Prometheus client library gives them.

use std::fmt;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::catalogue::{Definition, name_of};

crate::catalogue! {
    /// Which program, in which version.
    BUILD: Info "jetwright_build" [name_of("program", "the program"), name_of("version", "its version")] "What this program is";
    /// Its start.
    START_TIME: Gauge "process_start_time_seconds" [] "When the process started, in Unix time";
    /// Its memory.
    RESIDENT_MEMORY: Gauge "process_resident_memory_bytes" [] "Resident memory of the process";
    /// Its files.
    OPEN_FILES: Gauge "process_open_fds" [] "Open file descriptors of the process";
}

/// Adds `jetwright_build_info{program, version}`, `process_start_time_seconds`, `process_resident_memory_bytes` and
/// `process_open_fds` to the registry. The start is the moment of this call: call it first.
pub fn register(registry: &mut Registry, program: &'static str) {
    let build = Info::new(vec![("program", program), ("version", env!("CARGO_PKG_VERSION"))]);
    BUILD.register(registry, build);
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    registry.register_collector(Box::new(Process { started }));
}

/// Reads Linux's numbers at every scrape. What cannot be read is left out, not zero.
#[derive(Debug)]
struct Process {
    /// Seconds since the Unix epoch.
    started: f64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut encode =
            |row: &Definition, value: Option<f64>| row.encode(&mut encoder, value.map(|value| ([], value)));
        encode(&START_TIME, Some(self.started))?;
        encode(&RESIDENT_MEMORY, resident_bytes())?;
        encode(&OPEN_FILES, open_files())
    }
}

/// VmRSS of proc_pid_status(5), which is in kB whatever the size of a page.
fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024.0)
}

fn open_files() -> Option<f64> {
    let count = u32::try_from(fs::read_dir("/proc/self/fd").ok()?.count()).ok()?;
    // Reading the folder opens one itself.
    Some(f64::from(count.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn the_process_exports_its_version_its_memory_and_its_open_files() {
        let mut registry = Registry::default();
        register(&mut registry, "a-program");
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(text.contains(r#"jetwright_build_info{program="a-program",version=""#), "{text}");
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
        };
        assert!(value("process_start_time_seconds") > 1.7e9);
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0);
    }
}
