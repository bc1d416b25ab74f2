//! The simulator's settings, from a file (`PAYMENT_SIMULATOR_CONFIG_FILE`) and the environment over it.

use std::net::SocketAddr;
use std::time::Duration;

use jetwright_process::admin;
use jetwright_process::configuration::{self, Problems, Reader};

const PREFIX: &str = "PAYMENT_SIMULATOR";

/// All settings.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Configuration {
    /// `http.address`: where payments are asked for (default `0.0.0.0:8080`).
    pub(crate) http_address: SocketAddr,
    /// Where the probes and metrics are.
    pub(crate) admin_address: SocketAddr,
    /// `capacity`: authorizations that are remembered (default 100,000); beyond it the oldest is forgotten.
    pub(crate) capacity: usize,
    /// How it misbehaves.
    pub(crate) simulation: Simulation,
}

/// What goes wrong on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Simulation {
    /// `simulation.latencyMilliseconds`: how long after the decision an answer comes. Who gives up before has an
    /// authorization that he does not know of.
    pub(crate) latency: Duration,
    /// `simulation.failureRate`, from 0 to 1: how many requests are answered 503 without a decision.
    pub(crate) failure_rate: f64,
    /// `simulation.lostAnswerRate`, from 0 to 1: how many decisions are answered 500 although they were made.
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
