//! What is known of a demo that runs: a folder with a note of its process, and of where its parts are.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use jetwright_crds::environment::JETWRIGHT_POD_NAME;
use jetwright_testing::{start_time, target_folder};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// Names the folder, for more than one demo of a checkout.
const FOLDER: &str = "JETWRIGHT_DEMO_FOLDER";

/// The folder of a demo.
#[derive(Clone, Debug)]
pub struct Home(PathBuf);

/// A process that cannot be mistaken for a later one with its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: u32,
    pub start_time: String,
    /// The temporary folder with all that it started.
    pub folder: PathBuf,
}

/// Where the parts of a demo are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Parts {
    pub kubeconfig: PathBuf,
    pub kubectl: PathBuf,
    /// The NATS servers, with commas between.
    pub nats: String,
    /// URL of the operator's metrics and probes.
    #[serde(default)]
    pub operator: String,
    /// URLs by the name of the Service in the shop.
    pub services: BTreeMap<String, String>,
    /// What looks on, where the demo was started so.
    #[serde(default)]
    pub observers: Option<Observers>,
}

/// Where Prometheus and Jaeger are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Observers {
    /// URL of Prometheus.
    pub prometheus: String,
    /// URL of Jaeger.
    pub jaeger: String,
    /// URL that programs send their traces to.
    pub otlp: String,
}

impl Home {
    /// The folder, made where it is not there.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn open() -> Result<Self> {
        let folder = std::env::var_os(FOLDER).map_or_else(|| target_folder().join("demo"), PathBuf::from);
        let folder = std::path::absolute(folder)?;
        fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
        Ok(Self(folder))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Keeps others from starting or ending this demo for as long as the file is held.
    ///
    /// # Errors
    ///
    /// When another holds it.
    pub fn lock(&self) -> Result<File> {
        let file = File::create(self.path("lock")).context("no lock")?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                bail!("another `make demo` or `make clean-demo` is at work here: wait for its end")
            }
            Err(TryLockError::Error(error)) => Err(error).context("no lock"),
        }
    }

    /// The process that runs the demo, if it does.
    pub fn running(&self) -> Option<Identity> {
        self.recorded().filter(Identity::is_alive)
    }

    /// The process that ran the demo last, and may have ended.
    pub fn recorded(&self) -> Option<Identity> {
        self.read("process.json")
    }

    /// The process that runs the program of a pod, by what the node told it of its pod.
    pub fn process_of(&self, pod: &str) -> Option<Identity> {
        let folder = self.running()?.folder;
        let told = format!("{JETWRIGHT_POD_NAME}={pod}").into_bytes();
        let started = fs::read_dir(folder.join("processes")).ok()?.flatten();
        let mut processes = started.filter_map(|note| {
            let pid = note.file_name().to_str()?.parse().ok()?;
            Some(Identity { pid, start_time: fs::read_to_string(note.path()).ok()?, folder: folder.clone() })
        });
        processes.find(|process| {
            let variables = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
            variables.split(|byte| *byte == 0).any(|variable| variable == told) && process.is_alive()
        })
    }

    /// The parts of the demo, once they are ready.
    pub fn parts(&self) -> Option<Parts> {
        self.read("demo.json")
    }

    /// Writes a file at once, so that nobody reads a half of it.
    ///
    /// # Errors
    ///
    /// When the disk is full, for instance.
    pub fn write(&self, name: &str, content: &impl Serialize) -> Result<()> {
        let written = self.path(&format!("{name}.new"));
        fs::write(&written, serde_json::to_vec_pretty(content)?)
            .with_context(|| written.display().to_string())?;
        fs::rename(&written, self.path(name))?;
        Ok(())
    }

    fn read<T: for<'a> Deserialize<'a>>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.path(name)).ok()?).ok()
    }

    /// Removes the folder with all that is in it.
    ///
    /// # Errors
    ///
    /// When a file of it cannot be removed.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("could not remove {}", self.0.display()))
            }
            _ => Ok(()),
        }
    }
}

impl AsRef<Path> for Home {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Identity {
    /// Of the running process.
    ///
    /// # Errors
    ///
    /// Where there is no /proc.
    pub fn own(folder: &Path) -> Result<Self> {
        let pid = std::process::id();
        Ok(Self { pid, start_time: start_time(pid)?, folder: folder.to_owned() })
    }

    /// Whether it runs; one that has ended, and whose parent has not taken note of it, does not.
    pub fn is_alive(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let is_zombie = stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'));
        !is_zombie && start_time(self.pid).is_ok_and(|found| found == self.start_time)
    }

    /// Sends a signal, unless the process has ended.
    pub fn signal(&self, signal: Signal) {
        if let (true, Some(pid)) = (self.is_alive(), i32::try_from(self.pid).ok().and_then(Pid::from_raw)) {
            // It may end in between, which is what signals are for here.
            let _ = kill_process(pid, signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_id_that_was_used_again_is_another_process() {
        let own = Identity::own(Path::new("/tmp")).unwrap();
        assert!(own.is_alive());
        let earlier = Identity { start_time: "1".to_owned(), ..own };
        assert!(!earlier.is_alive());
        // This test would not end well otherwise.
        earlier.signal(Signal::KILL);
    }
}
