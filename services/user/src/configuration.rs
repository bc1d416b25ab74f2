//! The service's own settings, from a file (`USERS_CONFIG_FILE`) and the environment over it.

use std::net::SocketAddr;

use jetwright_process::configuration::{self, Problems, Reader};

const PREFIX: &str = "USERS";

/// All settings of its own.
#[derive(Clone, Copy, Debug)]
pub struct Configuration {
    /// `http.address` (`USERS_HTTP_ADDRESS`): where users are registered and shown (default `0.0.0.0:8080`).
    pub http_address: SocketAddr,
}

impl Configuration {
    /// Reads the settings.
    ///
    /// # Errors
    ///
    /// Every mistake in any of them.
    pub fn read() -> Result<Self, Problems> {
        let mut reader = Reader::open(configuration::file(PREFIX).as_deref(), PREFIX)?;
        let http_address = reader.value("http.address", SocketAddr::from(([0, 0, 0, 0], 8080)));
        reader.finish().map(|()| Self { http_address })
    }
}
