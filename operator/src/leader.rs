//! Which of several operators acts: the one that holds a Lease. There is no fencing, so a process that loses it ends at once, and
//! every write is decided on what JetStream has at that moment.
//!
//! All time is this process's monotonic clock: a candidate takes a Lease over that stood still for as long as it holds, and a holder gives
//! up that could not renew it for some seconds less. The times in a Lease are other machines' and are only for people to read.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    args::LeaderArgs,
    error::{ErrorClass, error_chain},
};

/// How long a Lease holds after its holder renewed it last.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How long a holder goes on without a renewal: less than [`LEASE_DURATION`], since its clock may be slower than a candidate's.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two renewals, or two tries to get the Lease.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Longest time that one of them may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a stopping leader tries to release its Lease.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// Why leadership cannot be asked for.
#[derive(Debug, thiserror::Error)]
#[error("failed to use the Lease {namespace}/{name}")]
pub struct Error {
    namespace: String,
    name: String,
    source: kube::Error,
}

/// Leadership, held until it is released or lost.
pub struct Leadership {
    election: Election,
    /// The Lease as this process wrote it last.
    lease: Lease,
    /// When that was sent.
    renewed: Instant,
}

impl Leadership {
    /// Waits until this process leads; None where `stop` comes first.
    ///
    /// # Errors
    ///
    /// When Kubernetes does not let this process use the Lease.
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
        let api = Api::namespaced(client, &namespace);
        let mut election = Election { api, name: name.clone(), identity, observed: None };
        loop {
            let sent = Instant::now();
            let tried = tokio::select! {
                () = stop.cancelled() => return Ok(None),
                tried = timeout(REQUEST_TIMEOUT, election.try_acquire()) => tried,
            };
            match tried {
                Ok(Ok(Some(lease))) => return Ok(Some(Self { election, lease, renewed: sent })),
                Ok(Ok(None)) => {}
                Ok(Err(source)) if ErrorClass::of_kubernetes(&source) == ErrorClass::Terminal => {
                    return Err(Error { namespace, name, source });
                }
                Ok(Err(error)) => tracing::warn!(error = error_chain(&error), "failed to ask for the Lease"),
                Err(_) => tracing::warn!("Kubernetes did not answer in time for the Lease"),
            }
            if stop.run_until_cancelled(sleep(RETRY_INTERVAL)).await.is_none() {
                return Ok(None);
            }
        }
    }

    /// Renews the Lease, and ends when leadership is lost, or may be.
    pub async fn lost(&mut self) {
        loop {
            sleep(RETRY_INTERVAL).await;
            let sent = Instant::now();
            let Some(left) = RENEW_DEADLINE.checked_sub(self.renewed.elapsed()) else { return };
            match timeout(REQUEST_TIMEOUT.min(left), self.election.renew(&self.lease)).await {
                Ok(Ok(Some(lease))) => (self.lease, self.renewed) = (lease, sent),
                Ok(Ok(None)) => return,
                Ok(Err(error)) => tracing::warn!(error = error_chain(&error), "failed to renew the Lease"),
                Err(_) => tracing::warn!("Kubernetes did not answer in time for the Lease"),
            }
        }
    }

    /// Releases the Lease, so that the next leader need not wait for its end.
    pub async fn release(self) {
        let Self { election, lease, .. } = self;
        let released = timeout(RELEASE_TIMEOUT, election.release(lease)).await;
        if !matches!(released, Ok(Ok(()))) {
            tracing::warn!(
                "failed to release the Lease; the next leader waits {LEASE_DURATION:?} for its end"
            );
        }
    }
}

/// One candidate for a Lease.
struct Election {
    api: Api<Lease>,
    name: String,
    identity: String,
    /// The Lease as it was seen last, and since when it is so.
    observed: Option<(Option<LeaseSpec>, Instant)>,
}

impl Election {
    /// The Lease as this process wrote it, where it could be had.
    async fn try_acquire(&mut self) -> Result<Option<Lease>, kube::Error> {
        let Some(found) = self.api.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(held_by(&self.identity, None)) };
            return unless_conflict(self.api.create(&PostParams::default(), &lease).await);
        };
        if !self.observe(found.spec.as_ref()) {
            return Ok(None);
        }
        self.write(&found).await
    }

    /// Takes note of a Lease; true where this process may take it.
    fn observe(&mut self, spec: Option<&LeaseSpec>) -> bool {
        let since = match &self.observed {
            Some((known, since)) if known.as_ref() == spec => *since,
            _ => Instant::now(),
        };
        self.observed = Some((spec.cloned(), since));
        let holder = holder(spec);
        holder.is_empty() || holder == self.identity || since.elapsed() >= LEASE_DURATION
    }

    /// The Lease as this process wrote it; None where another holds it.
    async fn renew(&self, lease: &Lease) -> Result<Option<Lease>, kube::Error> {
        if let Some(renewed) = self.write(lease).await? {
            return Ok(Some(renewed));
        }
        // Somebody else wrote it, be it only a label.
        let found = self.api.get_opt(&self.name).await?;
        match found.filter(|found| holder(found.spec.as_ref()) == self.identity) {
            Some(found) => self.write(&found).await,
            None => Ok(None),
        }
    }

    async fn write(&self, lease: &Lease) -> Result<Option<Lease>, kube::Error> {
        let spec = Some(held_by(&self.identity, lease.spec.as_ref()));
        let next = Lease { metadata: lease.metadata.clone(), spec };
        // Of this very version, so that of two candidates one gets it.
        unless_conflict(self.api.replace(&self.name, &PostParams::default(), &next).await)
    }

    async fn release(&self, lease: Lease) -> Result<(), kube::Error> {
        let spec = held_by("", lease.spec.as_ref());
        let next = Lease { metadata: lease.metadata, spec: Some(spec) };
        self.api.replace(&self.name, &PostParams::default(), &next).await.map(drop)
    }
}

fn unless_conflict(written: Result<Lease, kube::Error>) -> Result<Option<Lease>, kube::Error> {
    match written {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        written => written.map(Some),
    }
}

fn holder(spec: Option<&LeaseSpec>) -> &str {
    spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

/// A Lease's spec after it was written by, or for, this holder.
fn held_by(identity: &str, before: Option<&LeaseSpec>) -> LeaseSpec {
    let now = MicroTime(Timestamp::now());
    let same = holder(before) == identity;
    let transitions = before.and_then(|before| before.lease_transitions).unwrap_or_default();
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
        acquire_time: before
            .filter(|_| same)
            .and_then(|before| before.acquire_time.clone())
            .or(Some(now.clone())),
        renew_time: Some(now),
        lease_transitions: Some(if same || identity.is_empty() { transitions } else { transitions + 1 }),
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Almost as long as a Lease holds.
    const ALMOST: Duration = Duration::from_secs(14);

    fn election() -> Election {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("nothing is asked"))
        });
        let api = Api::namespaced(Client::new(service, "default"), "default");
        Election { api, name: "operator".into(), identity: "me".into(), observed: None }
    }

    /// A Lease that its holder renewed at a time of its own clock.
    fn lease(holder: &str, renewed: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            renew_time: Timestamp::from_second(renewed).ok().map(MicroTime),
            ..LeaseSpec::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_stands_still_is_taken_whatever_its_holders_clock_says() {
        let mut election = election();
        // In its far past, or future.
        for renewed in [0, 100_000_000_000] {
            assert!(!election.observe(Some(&lease("other", renewed))));
            tokio::time::advance(ALMOST).await;
            assert!(!election.observe(Some(&lease("other", renewed))));
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(election.observe(Some(&lease("other", renewed))));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_renewed_is_not_taken_and_one_that_nobody_holds_is() {
        let mut election = election();
        for renewed in 0..10 {
            assert!(!election.observe(Some(&lease("other", renewed))));
            tokio::time::advance(ALMOST).await;
        }
        assert!(election.observe(Some(&lease("", 10))));
        assert!(election.observe(Some(&lease("me", 10))));
        assert!(election.observe(None));
    }

    #[test]
    fn a_renewal_keeps_when_the_lease_was_acquired_and_a_new_holder_is_a_transition() {
        let first = held_by("me", Some(&LeaseSpec { lease_transitions: Some(4), ..lease("other", 0) }));
        assert_eq!((first.holder_identity.as_deref(), first.lease_transitions), (Some("me"), Some(5)));
        let renewed = held_by("me", Some(&first));
        assert_eq!((renewed.acquire_time, renewed.lease_transitions), (first.acquire_time.clone(), Some(5)));
        let released = held_by("", Some(&first));
        assert_eq!((released.holder_identity.as_deref(), released.lease_transitions), (Some(""), Some(5)));
    }
}
