//! One side as a process: this program again, which does jobs until its input ends.

use std::{env, process::Stdio, time::Duration};

use jetwright_process::telemetry::Telemetry;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{
    bare,
    job::{Job, Report},
    ours,
    setting::Tracing,
};

/// What a job takes at most.
const BOUND: Duration = Duration::from_mins(2);
/// Begins the lines that are reports, among those of the log.
const REPORT: &str = "report: ";

/// The process of one side.
pub struct Party {
    child: Child,
    jobs: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Party {
    /// The runtime's side, which sends its traces there.
    pub fn ours(url: &str, tracing: Tracing, sink: &str) -> Self {
        Self::start("ours", url, &tracing.variables(sink))
    }

    pub fn bare(url: &str) -> Self {
        Self::start("bare", url, &[])
    }

    fn start(side: &str, url: &str, variables: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--side", side])
            .env("NATS_URL", url)
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { jobs: child.stdin.take().unwrap(), lines, child }
    }

    /// Has a job done.
    pub async fn does(&mut self, job: &Job) -> Report {
        let line = serde_json::to_string(job).unwrap() + "\n";
        self.jobs.write_all(line.as_bytes()).await.unwrap();
        let report = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                match line.strip_prefix(REPORT) {
                    Some(report) => return serde_json::from_str(report).unwrap(),
                    None if line.contains(ours::FAILURE) => {}
                    None if line.contains("\"WARN\"") || line.contains("\"ERROR\"") => eprintln!("{line}"),
                    None => {}
                }
            }
            panic!("the side ended: {:?}", self.child.try_wait())
        };
        timeout(BOUND, report).await.unwrap_or_else(|_| panic!("not done in {BOUND:?}: {job:?}"))
    }
}

/// Does jobs, as the process of this side.
pub async fn run(side: &str) {
    let url = env::var("NATS_URL").unwrap();
    // The bare side has none of it.
    let telemetry = (side == "ours").then(|| Telemetry::start("benches").unwrap());
    // Nothing else goes on between two jobs.
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let job: Job = serde_json::from_str(&line).unwrap();
        // Not on the thread of `main`, to which the runtime's threads would hand over every time.
        let url = url.clone();
        let report = if side == "ours" {
            tokio::spawn(ours::run(url, job))
        } else {
            tokio::spawn(bare::run(url, job))
        };
        let report = report.await.unwrap();
        println!("{REPORT}{}", serde_json::to_string(&report).unwrap());
    }
    if let Some(telemetry) = telemetry {
        telemetry.shutdown();
    }
}
