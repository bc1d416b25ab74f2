//! Commands as a user types them, bounded in time.

use std::{process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// Helm waits for rollouts.
const LONGEST: Duration = Duration::from_mins(6);

/// What a command said.
#[derive(Clone, Debug)]
pub struct Said {
    command: String,
    /// Whether it succeeded.
    pub success: bool,
    /// Standard output.
    pub output: String,
    /// Standard error.
    pub error: String,
}

impl Said {
    /// The output of a command that had to succeed.
    ///
    /// # Panics
    ///
    /// When it did not, with all that it said.
    #[allow(clippy::must_use_candidate, reason = "the check is the point")]
    pub fn succeeded(self) -> String {
        assert!(self.success, "{} failed:\n{}{}", self.command, self.output, self.error);
        self.output
    }

    /// What a command that had to fail said on standard error.
    ///
    /// # Panics
    ///
    /// When it succeeded.
    #[must_use]
    pub fn refusal(self) -> String {
        assert!(!self.success, "{} succeeded:\n{}", self.command, self.output);
        self.error
    }
}

/// Runs a program of PATH, with this on its standard input.
pub(super) async fn run(program: &str, arguments: &[&str], input: Option<&str>) -> Said {
    let command = format!("{program} {}", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(text.as_bytes()).await.unwrap_or_else(|error| panic!("{command}: {error}"));
    }
    match timeout(LONGEST, child.wait_with_output()).await {
        Err(elapsed) => panic!("{command} did not end within {LONGEST:?}: {elapsed}"),
        Ok(Err(error)) => panic!("{command}: {error}"),
        Ok(Ok(ended)) => Said {
            command,
            success: ended.status.success(),
            output: String::from_utf8_lossy(&ended.stdout).into_owned(),
            error: String::from_utf8_lossy(&ended.stderr).into_owned(),
        },
    }
}
