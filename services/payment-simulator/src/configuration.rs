//! The simulator's settings, from a file (`PAYMENT_SIMULATOR_CONFIG_FILE`) and the environment over it.

use std::net::SocketAddr;
use std::time::Duration;

use jetwright_process::admin;
use jetwright_process::configuration::{self, Problems, Reader};

const PREFIX: &str = "PAYMENT_SIMULATOR";

/// All settings.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Configuration {
    /// `http.address`: the address for payment requests (default `0.0.0.0:8080`).
    pub(crate) http_address: SocketAddr,
    /// The address of the probes and metrics.
    pub(crate) admin_address: SocketAddr,
    /// `capacity`: maximum authorizations that are remembered (default 100,000); beyond it the oldest is forgotten.
    pub(crate) capacity: usize,
    /// How it misbehaves.
    pub(crate) simulation: Simulation,
}

/// Failures on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Simulation {
    /// `simulation.latencyMilliseconds`: time from the decision to the response. A client that times out before has an
    /// authorization that it does not know of.
    pub(crate) latency: Duration,
    /// `simulation.failureRate`, from 0 to 1: the part of requests that get a 503 without a decision.
    pub(crate) failure_rate: f64,
    /// `simulation.lostAnswerRate`, from 0 to 1: the part of decisions whose response is a 500.
    pub(crate) lost_answer_rate: f64,
}

impl Configuration {
    /// Reads all settings.
    pub(crate) fn read() -> Result<Self, Problems> {
        let reader = Reader::open(configuration::file(PREFIX).as_deref(), PREFIX);
        let (own, admin_address) = Problems::zip(reader.and_then(Self::own), admin::address())?;
        Ok(Self { admin_address, ..own })
    }

    fn own(mut reader: Reader) -> Result<Self, Problems> {
        let http_address = reader.value("http.address", SocketAddr::from(([0, 0, 0, 0], 8080)));
        let capacity = reader.value("capacity", 100_000);
        if capacity == 0 {
            reader.refuse("capacity", "found 0", "expected at least 1");
        }
        let latency = Duration::from_millis(reader.value("simulation.latencyMilliseconds", 0));
        let failure_rate = rate(&mut reader, "simulation.failureRate");
        let lost_answer_rate = rate(&mut reader, "simulation.lostAnswerRate");
        reader.finish()?;
        let simulation = Simulation { latency, failure_rate, lost_answer_rate };
        Ok(Self { http_address, admin_address: http_address, capacity, simulation })
    }
}

fn rate(reader: &mut Reader, path: &str) -> f64 {
    let rate = reader.value(path, 0.0);
    if !(0.0..=1.0).contains(&rate) {
        reader.refuse(path, format_args!("found {rate}"), "expected a number from 0 to 1");
    }
    rate
}
