//! One side as a process: this program again, which does jobs until its input ends.

use std::{env, fmt, process::Stdio, time::Duration};

use jetwright_process::telemetry::Telemetry;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{
    bare,
    job::{Job, Report},
    ours,
};

/// Name of the consumer of every stream.
pub const CONSUMER: &str = "measuring";
/// Of that consumer.
pub const ACK_WAIT: Duration = Duration::from_secs(30);
/// What a job takes at most.
const BOUND: Duration = Duration::from_mins(2);
/// Begins the lines that are reports, among those of the log.
const REPORT: &str = "report: ";

/// How much is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tracing {
    /// Nothing is exported, and no trace is sampled.
    Off,
    OnePercent,
    Everything,
}

impl fmt::Display for Tracing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Off => "tracing off",
            Self::OnePercent => "traces sampled at 1 %",
            Self::Everything => "traces sampled at 100 %",
        })
    }
}

impl Tracing {
    /// Whether the trace that this event belongs to is sampled.
    pub fn samples(self, number: u64) -> bool {
        match self {
            Self::Off => false,
            Self::OnePercent => number.is_multiple_of(100),
            Self::Everything => true,
        }
    }

    /// Name of the stream with events that are traced so.
    pub fn stream(self) -> &'static str {
        match self {
            Self::Off => "untraced",
            Self::OnePercent => "sampled",
            Self::Everything => "traced",
        }
    }

    /// OpenTelemetry's variables for it.
    fn variables(self, sink: &str) -> Vec<(&'static str, &str)> {
        let mut variables = vec![("OTEL_EXPORTER_OTLP_ENDPOINT", sink)];
        match self {
            Self::Off => return Vec::new(),
            Self::OnePercent => {
                variables.push(("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"));
                variables.push(("OTEL_TRACES_SAMPLER_ARG", "0.01"));
            }
            Self::Everything => variables.push(("OTEL_TRACES_SAMPLER", "parentbased_always_on")),
        }
        variables
    }
}

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
