//! What both sides are measured with.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Name of the consumer of every stream.
pub const CONSUMER: &str = "measuring";
/// Of that consumer.
pub const ACK_WAIT: Duration = Duration::from_secs(30);
/// How much is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tracing {
    /// Nothing is exported, and no trace is sampled.
    Off,
    OnePercent,
    Everything,
    /// Every trace is sampled, and nothing is exported: exemplars are all that comes of it.
    Exemplars,
}

impl fmt::Display for Tracing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Off => "tracing off",
            Self::OnePercent => "traces sampled at 1 %",
            Self::Everything => "traces sampled at 100 %",
            Self::Exemplars => "exemplars, tracing off",
        })
    }
}

impl Tracing {
    /// Whether the trace that this event belongs to is sampled.
    pub fn samples(self, number: u64) -> bool {
        match self {
            Self::Off => false,
            Self::OnePercent => number.is_multiple_of(100),
            Self::Everything | Self::Exemplars => true,
        }
    }

    /// Name of the stream with events that are traced so.
    pub fn stream(self) -> &'static str {
        match self {
            Self::Off => "untraced",
            Self::OnePercent => "sampled",
            Self::Everything => "traced",
            Self::Exemplars => "exemplary",
        }
    }

    /// OpenTelemetry's variables for it.
    pub fn variables(self, sink: &str) -> Vec<(&'static str, &str)> {
        let mut variables = vec![("OTEL_EXPORTER_OTLP_ENDPOINT", sink)];
        match self {
            Self::Off | Self::Exemplars => return Vec::new(),
            Self::OnePercent => {
                variables.push(("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"));
                variables.push(("OTEL_TRACES_SAMPLER_ARG", "0.01"));
            }
            Self::Everything => variables.push(("OTEL_TRACES_SAMPLER", "parentbased_always_on")),
        }
        variables
    }
}
