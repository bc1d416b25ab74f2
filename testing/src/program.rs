//! Where the programs are that tests start: other projects' and this workspace's own.

use anyhow::{Context, Result, bail};
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// A program of another project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The NATS server.
    NatsServer,
    /// The store of the Kubernetes API.
    Etcd,
    /// The Kubernetes API server.
    KubeApiserver,
    /// The controllers of Kubernetes, for a test that stands on what they do.
    KubeControllerManager,
    /// The Kubernetes command line.
    Kubectl,
    /// The Helm command line, which renders charts.
    Helm,
    /// The Prometheus server.
    Prometheus,
    /// Prometheus' command line, which checks and tests rules.
    Promtool,
    /// All of Jaeger in one server, which keeps traces in memory.
    Jaeger,
}

impl Program {
    /// The name of the program's file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NatsServer => "nats-server",
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::Kubectl => "kubectl",
            Self::Helm => "helm",
            Self::Prometheus => "prometheus",
            Self::Promtool => "promtool",
            Self::Jaeger => "jaeger-all-in-one",
        }
    }

    /// Where the program is: on PATH if it is new enough there, else built once from its Go module, which takes minutes
    /// and says so on standard error, or taken out of Debian's package (see `testing/programs/provide`).
    #[must_use]
    pub fn path(self) -> PathBuf {
        self.try_path().unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// As [`Self::path`], for a program that says why there is none.
    ///
    /// # Errors
    ///
    /// When it cannot be built.
    pub fn try_path(self) -> Result<PathBuf> {
        static PATHS: [OnceLock<Result<PathBuf, String>>; 9] = [const { OnceLock::new() }; 9];
        let path = PATHS[self as usize].get_or_init(|| self.provide().map_err(|error| format!("{error:#}")));
        path.clone().map_err(anyhow::Error::msg)
    }

    fn provide(self) -> Result<PathBuf> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/provide");
        let output = Command::new(&script)
            .arg(self.name())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("could not run {}", script.display()))?;
        let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() || path.is_empty() {
            bail!(
                "there is no {}, see what {} said above; `make programs` tries again",
                self.name(),
                script.display()
            );
        }
        Ok(path.into())
    }
}

/// A program of this workspace, beside the running test in the target folder.
///
/// # Panics
///
/// When it has not been built: `cargo test` builds only the programs of the package under test.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let path = profile_folder().join(name);
    assert!(path.is_file(), "{} has not been built: run `make build` first", path.display());
    path
}

/// The target folder of the running test.
#[must_use]
pub fn target_folder() -> PathBuf {
    let profile = profile_folder();
    profile.parent().map_or(profile.clone(), Into::into)
}

/// `target/debug`, or what it is for another profile.
fn profile_folder() -> PathBuf {
    let test = env::current_exe().unwrap_or_else(|error| panic!("the running test has no path: {error}"));
    let folder = test.parent().unwrap_or(Path::new("."));
    // tests are in target/debug/deps, programs in target/debug
    if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "target/debug/no-such-program has not been built: run `make build` first")]
    fn a_program_that_is_not_built_names_the_remedy() {
        let _ = binary("no-such-program");
    }
}
