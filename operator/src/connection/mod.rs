//! The operator's own connection to NATS. In: the flags. Out: a connection that never gives up, whose state the metrics show.

use std::{path::PathBuf, time::Duration};

use async_nats::{ConnectError, ServerAddr};
use jetwright_nats::{
    AddressError, Api, Connection, ConnectionConfig, ConnectionState, Credentials, parse_addresses,
};
use jetwright_process::configuration::Problems;
use tokio::sync::watch;

use crate::metrics::Metrics;

/// The flag that names the folder of credentials.
const CREDENTIALS_FLAG: &str = "--nats-credentials-folder";

/// Where NATS is, and who the operator is there.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Addresses of the servers, without users and passwords.
    pub servers: Vec<ServerAddr>,
    /// Folder with what identifies the operator, if the servers ask for something.
    pub credentials: Option<PathBuf>,
}

/// Which operator this is, as others find it in the audit of JetStream's API.
#[derive(Clone, Debug)]
pub struct Identity<'a> {
    pub cluster: &'a str,
    pub namespace: &'a str,
    pub pod: &'a str,
}

impl Identity<'_> {
    /// Unique, so that the audit of the API tells this process's own changes from those of others, of its own replicas, too.
    fn connection_name(&self) -> String {
        let Self { cluster, namespace, pod } = self;
        format!("jetwright-operator/{cluster}/{namespace}/{pod}/{}", uuid::Uuid::new_v4())
    }
}

/// Why the connection could not be set up; servers that are away are no reason.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address has a user, password or token in it, or is none.
    #[error("{flag}: {}", described(source))]
    Address {
        /// The flag that sets it.
        flag: &'static str,
        /// What is wrong with it.
        source: AddressError,
    },
    /// The folder of credentials cannot be used.
    #[error("the credentials cannot be used")]
    Credentials(#[from] Problems),
    /// The addresses or the certificates cannot be used.
    #[error("the connection to NATS cannot be set up")]
    Setup(#[from] ConnectError),
}

fn described(error: &AddressError) -> String {
    match error {
        AddressError::HasUser => format!("{error}, which belong into the files of {CREDENTIALS_FLAG}"),
        AddressError::NoHost | AddressError::Invalid(_) => error.to_string(),
    }
}

/// Reads the addresses that a flag sets. Flags and environments are no place for users and passwords.
///
/// # Errors
///
/// An address cannot be used; it is not repeated.
pub fn servers(flag: &'static str, text: &str) -> Result<Vec<ServerAddr>, Error> {
    parse_addresses(text).collect::<Result<_, _>>().map_err(|source| Error::Address { flag, source })
}

/// Sets the connection up and returns at once: the servers are connected to, for ever, in the background.
///
/// # Errors
///
/// When what the settings name cannot be used.
pub async fn open(
    settings: &Settings,
    identity: &Identity<'_>,
    metrics: &Metrics,
) -> Result<Connection, Error> {
    let credentials = settings.credentials.as_ref();
    let credentials = credentials.map(|folder| Credentials::open(CREDENTIALS_FLAG, folder)).transpose()?;
    let connection = Connection::open(ConnectionConfig {
        name: identity.connection_name(),
        servers: settings.servers.clone(),
        credentials,
        credentials_setting: CREDENTIALS_FLAG,
        domain: None,
    })
    .await?;
    tokio::spawn(show_state(connection.state(), metrics.clone()));
    Ok(connection)
}

/// Ends with the connection.
async fn show_state(mut state: watch::Receiver<ConnectionState>, metrics: Metrics) {
    loop {
        metrics.nats_connected(state.borrow_and_update().connected);
        if state.changed().await.is_err() {
            return;
        }
    }
}

/// JetStream's API over the connection, which waits for each answer for at most `timeout` and counts in the metrics.
#[must_use]
pub fn api(connection: &Connection, timeout: Duration, metrics: Metrics) -> Api {
    Api::new(connection, timeout, move |verb, error| metrics.api_request(verb, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_tokens_in_addresses_are_refused_and_not_repeated() {
        for text in ["nats://b:4222, nats://op:hunter2@a:4222", "tls://hunter2@[::1]:4222"] {
            let message = servers("--nats-url", text).unwrap_err().to_string();
            assert!(message.starts_with("--nats-url: ") && !message.contains("hunter2"), "{message}");
            assert!(message.contains(CREDENTIALS_FLAG), "{message}");
        }
        assert_eq!(servers("--nats-url", "nats://a:4222, tls://b").unwrap().len(), 2);
    }
}
