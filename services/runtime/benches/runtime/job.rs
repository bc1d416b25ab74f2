//! What a side is told to do, and what it reports: lines of JSON on its standard input and output.

use std::time::{Duration, Instant};

use jetwright_testing::{memory_bytes, processor_seconds};
use serde::{Deserialize, Serialize};

use crate::setting::Tracing;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    pub kind: Kind,
    /// Which of the events belong to traces that are sampled.
    pub tracing: Tracing,
    /// Whose stream holds the events, or is to hold them.
    pub stream: String,
    pub events: u64,
    pub in_flight: u32,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Kind {
    Consume {
        acknowledge: Acknowledge,
        ordered: bool,
    },
    Publish,
    /// Each of the callers, who are as many as may be in flight, sends one request after another.
    Request,
    /// Publishes so many per second, and consumes them with confirmed acknowledgements.
    Both {
        rate: u64,
        /// Events that fail at every attempt, all published at once in the meantime. Only the runtime's side knows of them.
        burst: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Acknowledge {
    Sent,
    Confirmed,
}

/// What came of a job.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub seconds: f64,
    /// Processor time that it took this side's process.
    pub processor_seconds: f64,
    /// Longest resident set of this side's process so far.
    pub peak_bytes: u64,
    /// Of each event, where its job says when it was published.
    pub latencies_us: Vec<u32>,
}

impl Job {
    pub fn acknowledge(&self) -> Acknowledge {
        match self.kind {
            Kind::Consume { acknowledge, .. } => acknowledge,
            Kind::Publish | Kind::Request | Kind::Both { .. } => Acknowledge::Confirmed,
        }
    }

    /// How many events are to fail at every attempt.
    pub fn burst(&self) -> u64 {
        match self.kind {
            Kind::Both { burst, .. } => burst,
            Kind::Consume { .. } | Kind::Publish | Kind::Request => 0,
        }
    }

    /// Whether the events of one key are handled in their order.
    pub fn is_ordered(&self) -> bool {
        matches!(self.kind, Kind::Consume { ordered: true, .. })
    }

    /// Whether it fills its stream, and consumes nothing.
    pub fn is_publishing(&self) -> bool {
        matches!(self.kind, Kind::Publish | Kind::Request)
    }

    /// How many may be in flight.
    pub fn room(&self) -> usize {
        usize::try_from(self.in_flight).unwrap()
    }
}

/// Measures something from now on.
pub struct Watch {
    begun: Instant,
    processor_seconds: f64,
}

impl Watch {
    pub fn start() -> Self {
        Self { begun: Instant::now(), processor_seconds: processor_seconds("self") }
    }

    /// What it took until now.
    pub fn report(&self) -> Report {
        Report {
            seconds: self.begun.elapsed().as_secs_f64(),
            processor_seconds: processor_seconds("self") - self.processor_seconds,
            peak_bytes: memory_bytes("self", "VmHWM"),
            latencies_us: Vec::new(),
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}
