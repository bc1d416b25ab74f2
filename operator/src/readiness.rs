//! What has to be there before the operator is ready: its definitions in Kubernetes, and NATS once.

use std::{fmt::Debug, time::Duration};

use jetwright_crds::{EventConsumer, EventStream};
use jetwright_nats::Connection;
use jetwright_process::health::{Gate, Health};
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, Resource, api::ListParams};
use serde::de::DeserializeOwned;

use crate::{error::error_chain, namespaces::Namespaces};

/// How the definitions come to the version that this program knows.
pub const UPGRADE_DEFINITIONS: &str = "upgrade the chart with its value crds.install=true, or else kubectl apply -f crds/manifests of \
                                       the same version";
/// Delay between two reads of the definitions.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The gates of readiness, closed at first.
pub struct Readiness {
    /// Kubernetes has the definitions.
    pub definitions: Definitions,
    /// NATS was reached.
    pub nats: Reached,
}

/// The gate that opens with the definitions.
pub struct Definitions(Gate);

/// The gate that opens with the first connection to NATS. It stays open when NATS goes: a restart would not bring it back, and the
/// objects say that it is away.
pub struct Reached(Gate);

impl Readiness {
    /// Closed gates.
    #[must_use]
    pub fn new(health: &Health) -> Self {
        Self {
            definitions: Definitions(
                health.gate("definitions", "the CustomResourceDefinitions were not looked for yet"),
            ),
            nats: Reached(health.gate("nats", "NATS was not reached yet")),
        }
    }
}

impl Definitions {
    /// Waits until the definitions are there and this operator may read what they define.
    pub async fn open_when_served(&self, client: &Client, namespaces: &Namespaces) {
        while let Err(reason) = served(client, namespaces).await {
            tracing::warn!(reason, "waiting for the definitions");
            self.0.close(&reason);
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        self.0.open();
    }
}

impl Reached {
    /// Waits until NATS is reached, and says meanwhile why it is not.
    pub async fn open_when_reached(&self, nats: &Connection) {
        let mut states = nats.state();
        loop {
            let state = states.borrow_and_update().clone();
            match state.last_error {
                _ if state.connected => return self.0.open(),
                Some(error) => self.0.close(&format!("NATS was not reached yet: {error}")),
                None => {}
            }
            if states.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Whether the definitions are there, in the version that this program knows, and it may read what they define.
///
/// # Errors
///
/// Why not, and what to do.
pub async fn served(client: &Client, namespaces: &Namespaces) -> Result<(), String> {
    served_kind::<EventStream>(client, namespaces).await?;
    served_kind::<EventConsumer>(client, namespaces).await
}

async fn served_kind<K>(client: &Client, namespaces: &Namespaces) -> Result<(), String>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = match namespaces {
        Namespaces::Only(names) if !names.is_empty() => Api::namespaced(client.clone(), &names[0]),
        _ => Api::all(client.clone()),
    };
    let kind = K::kind(&());
    match api.list_metadata(&ListParams::default().limit(1)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let version = K::api_version(&());
            Err(format!("there is no definition of {kind} in {version}: {UPGRADE_DEFINITIONS}"))
        }
        Err(error) => Err(format!("{kind} cannot be listed: {}", error_chain(&error))),
    }
}
