//! The folder of a server or program under test.

use crate::{guard, program};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// How much of a kept log is printed as well.
const TAIL: usize = 15;

/// A folder that is removed on drop, or when this process is gone. If the test fails, its logs and configuration files
/// are kept.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    test: Option<String>,
}

impl Folder {
    /// A new folder, named for what is in it.
    #[must_use]
    pub fn new(name: &str) -> Arc<Self> {
        Self::try_new(name).unwrap_or_else(|error| panic!("no folder for {name}: {error:#}"))
    }

    pub(crate) fn try_new(name: &str) -> Result<Arc<Self>> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let path = guard::run_folder()?.join(format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        let thread = std::thread::current();
        // libtest names a test's thread for the test
        let test =
            thread.name().filter(|name| *name != "main" && !name.starts_with("tokio-")).map(Into::into);
        Ok(Arc::new(Self { path, test }))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies the logs and configuration to where they outlive the test, and prints where that is.
    pub(crate) fn keep(&self, test: Option<&str>) -> Result<PathBuf> {
        let name = self.path.file_name().context("a folder has a name")?;
        let test = test.or(self.test.as_deref()).unwrap_or("no-test").replace("::", ".");
        let kept = program::target_folder()
            .join("test-logs")
            .join(format!("{test}-{}", std::process::id()))
            .join(name);
        fs::create_dir_all(&kept)?;
        for file in fs::read_dir(&self.path)? {
            let file = file?.path();
            let extension = file.extension().and_then(|extension| extension.to_str());
            let (Some(name), Some("log" | "conf" | "json" | "yaml")) = (file.file_name(), extension) else {
                continue;
            };
            fs::copy(&file, kept.join(name))?;
            if extension == Some("log") {
                let log = String::from_utf8_lossy(&fs::read(&file)?).into_owned();
                eprintln!("--- {} ends with:\n{}", kept.join(name).display(), tail(&log));
            }
        }
        Ok(kept)
    }
}

/// Whether the logs of what is dropped now are to be kept.
pub(crate) fn is_to_keep() -> bool {
    std::thread::panicking() || std::env::var_os("JETWRIGHT_KEEP_LOGS").is_some()
}

/// The last lines of a log. Where a program in Go has panicked, those that say why, and not the stack below them.
pub(crate) fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    let is_stack = |line: &&str| line.starts_with("goroutine ") && line.ends_with("]:");
    let end = lines.iter().position(is_stack).unwrap_or(lines.len());
    lines[end.saturating_sub(TAIL)..end].join("\n")
}

impl Drop for Folder {
    fn drop(&mut self) {
        if is_to_keep() {
            match self.keep(None) {
                Ok(kept) => eprintln!("--- logs are kept in {}", kept.display()),
                Err(error) => {
                    eprintln!("--- the logs in {} could not be kept: {error:#}", self.path.display());
                }
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("{} could not be removed: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_its_last_lines_or_why_a_program_panicked() {
        let log: Vec<_> = (1..=20).map(|line| format!("line {line}")).collect();
        assert_eq!(tail(&log.join("\n")), log[5..].join("\n"));
        let stack: Vec<_> = (1..=30).map(|frame| format!("main.deeper{frame}()\n")).collect();
        let stack = stack.concat();
        let panicked = format!("starting\npanic: cannot allocate memory\n\ngoroutine 12 [running]:\n{stack}");
        assert_eq!(tail(&panicked), "starting\npanic: cannot allocate memory\n");
    }
}
