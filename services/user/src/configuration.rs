//! The service's settings: its own from a file (`USERS_CONFIG_FILE`) and the environment over it, and what the
//! operator tells every workload.

use std::net::SocketAddr;

use jetwright_process::admin;
use jetwright_process::configuration::{self, Problems, Reader};
use jetwright_runtime::Environment;

use crate::BINDINGS;

const PREFIX: &str = "USERS";

/// All settings.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// `http.address`: where users are registered and shown (default `0.0.0.0:8080`).
    pub http_address: SocketAddr,
    /// `JETWRIGHT_ADMIN_ADDRESS`: where the probes and metrics are (default `0.0.0.0:9090`).
    pub admin_address: SocketAddr,
    /// Where NATS is, and what the consumer `user-directory` is bound to.
    pub environment: Environment,
}

impl Configuration {
    /// Reads all settings.
    ///
    /// # Errors
    ///
    /// Every mistake in any of them.
    pub fn read() -> Result<Self, Problems> {
        let addresses = Problems::both(http_address(), admin::address());
        let ((http_address, admin_address), environment) =
            Problems::both(addresses, Environment::from_env(&BINDINGS))?;
        Ok(Self { http_address, admin_address, environment })
    }
}

fn http_address() -> Result<SocketAddr, Problems> {
    let mut reader = Reader::open(configuration::file(PREFIX).as_deref(), PREFIX)?;
    let address = reader.value("http.address", SocketAddr::from(([0, 0, 0, 0], 8080)));
    reader.finish().map(|()| address)
}
