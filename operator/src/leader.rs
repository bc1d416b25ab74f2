//! Which of several operators acts: the one that holds a Lease. There is no fencing, so a process that loses it ends at once, and
//! every write is decided on what JetStream has at that moment.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use kube_lease_manager::{LeaseManagerBuilder, LeaseManagerError};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::args::LeaderArgs;

/// How long a lease holds after its holder renewed it last, in seconds.
const LEASE_SECONDS: u64 = 15;
/// How long before its end the holder renews it, in seconds.
const RENEW_BEFORE_SECONDS: u64 = 5;
/// Time between two reads of the lease, and the longest that one may take.
const LEASE_POLL_INTERVAL: Duration = Duration::from_secs(2);
/// How long a stopping leader waits for its lease to be given back.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// Why leadership cannot be asked for.
#[derive(Debug, thiserror::Error)]
#[error("the Lease {namespace}/{name} cannot be used")]
pub struct Error {
    namespace: String,
    name: String,
    source: LeaseManagerError,
}

/// Leadership, held until it is given back or lost.
pub struct Leadership {
    lease: Api<Lease>,
    name: String,
    identity: String,
    held: watch::Receiver<bool>,
    task: tokio::task::JoinHandle<Result<kube_lease_manager::LeaseManager, LeaseManagerError>>,
}

impl Leadership {
    /// Waits until this process leads; None where `stop` comes first.
    ///
    /// # Errors
    ///
    /// When the Lease cannot be made or read.
    pub async fn acquire(
        client: Client,
        args: &LeaderArgs,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, Error> {
        let namespace =
            args.leader_elect_namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
        let name = args.lease_name.clone();
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "operator".to_owned());
        let identity =
            args.leader_elect_identity.clone().unwrap_or_else(|| format!("{host}-{}", Uuid::new_v4()));
        tracing::info!(namespace, name, identity, "waiting for leadership");
        let lease = Api::namespaced(client.clone(), &namespace);
        let failed = |source| Error { namespace: namespace.clone(), name: name.clone(), source };
        loop {
            let manager = LeaseManagerBuilder::new(client.clone(), &name)
                .with_namespace(&namespace)
                .with_identity(&identity)
                .with_duration(LEASE_SECONDS)
                .with_grace(RENEW_BEFORE_SECONDS)
                .build()
                .await
                .map_err(failed)?;
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                // The manager looks again only when the lease would end: one that was given back is taken with a new manager.
                () = vacated(&lease, &name) => {}
                changed = manager.changed() => if changed.map_err(failed)? {
                    let (held, task) = manager.watch().await;
                    return Ok(Some(Self { lease, name, identity, held, task }));
                }
            }
        }
    }

    /// Ends when leadership is lost, or may be: the lease's own task tries for ever to renew it and says nothing while Kubernetes does
    /// not answer, so that it is looked at here as well. Time is the monotonic clock's.
    pub async fn lost(&mut self) {
        let Self { lease, name, identity, held, .. } = self;
        tokio::select! {
            _ = held.wait_for(|held| !held) => {}
            () = unseen(lease, name, identity) => {}
        }
    }

    /// Gives the lease back, so that the next one need not wait for its end.
    pub async fn release(self) {
        drop(self.held);
        if tokio::time::timeout(RELEASE_TIMEOUT, self.task).await.is_err() {
            tracing::warn!(
                "failed to release the lease; the next leader waits {LEASE_SECONDS} s for its end"
            );
        }
    }
}

/// Ends when nobody holds the lease.
async fn vacated(lease: &Api<Lease>, name: &str) {
    loop {
        tokio::time::sleep(LEASE_POLL_INTERVAL).await;
        let Ok(Ok(found)) = tokio::time::timeout(LEASE_POLL_INTERVAL, lease.get(name)).await else {
            continue;
        };
        if found.spec.and_then(|spec| spec.holder_identity).is_none_or(|holder| holder.is_empty()) {
            return;
        }
    }
}

/// Ends when the lease was not seen to be this process's for so long that another may hold it.
async fn unseen(lease: &Api<Lease>, name: &str, identity: &str) {
    let mut seen = Instant::now();
    while seen.elapsed() < Duration::from_secs(LEASE_SECONDS - RENEW_BEFORE_SECONDS) {
        tokio::time::sleep(LEASE_POLL_INTERVAL).await;
        let asked = Instant::now();
        let Ok(Ok(found)) = tokio::time::timeout(LEASE_POLL_INTERVAL, lease.get(name)).await else {
            continue;
        };
        if found.spec.and_then(|spec| spec.holder_identity).as_deref() != Some(identity) {
            return;
        }
        seen = asked;
    }
}
