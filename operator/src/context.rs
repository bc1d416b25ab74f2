//! What every reconcile needs: the clients, the mirror, the settings, and a little memory.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jetwright_crds::conditions::Reason;
use kube::{
    Client,
    runtime::{controller::Action, events::Recorder},
};
use rand::RngExt as _;
use tokio::time::Instant;

use crate::{
    connection::Nats,
    jetstream::Mirror,
    metrics::Metrics,
    outcome::{Category, Told, Waiting},
};

/// How long NATS is away before the objects say so.
const DISCONNECTED_AFTER: Duration = Duration::from_secs(10);
/// Least time between two writes of a status in which only figures changed.
const FIGURES_EVERY: Duration = Duration::from_mins(1);
/// Most statuses that say Disconnected a second.
const DISCONNECTED_PER_SECOND: f64 = 20.0;

/// Namespaces, by name or all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// All of them.
    All,
    /// These.
    Only(Vec<String>),
}

impl Namespaces {
    /// Whether a namespace is among them.
    #[must_use]
    pub fn serves(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.iter().any(|name| name == namespace),
        }
    }
}

/// How the controllers behave.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespaces that the operator's own connection serves.
    pub default_connection: Namespaces,
    /// Addresses of NATS as pods reach it.
    pub workload_nats_url: String,
    /// Where pods send their traces, if anywhere.
    pub workload_otlp_endpoint: Option<String>,
    /// How often everything is looked at again, although nothing seemed to change.
    pub resync: Duration,
    /// How long a deletion is tried before the object is let go.
    pub deletion_timeout: Duration,
}

/// What every reconcile needs.
pub struct Context {
    /// Kubernetes.
    pub client: Client,
    /// Writes Kubernetes events.
    pub recorder: Recorder,
    /// What JetStream has.
    pub mirror: Mirror,
    /// The connection to NATS.
    pub nats: Nats,
    /// The operator's metrics.
    pub metrics: Metrics,
    /// Name of this Kubernetes cluster, part of every identity.
    pub cluster_name: String,
    /// How the controllers behave.
    pub settings: Settings,
    /// Failures in a row.
    pub failures: Failures,
    /// When statuses were written.
    pub written: Written,
}

impl Context {
    /// Why nothing can be done in JetStream now; None where NATS is there.
    #[must_use]
    pub fn disconnected(&self) -> Option<Waiting> {
        let link = *self.nats.link().borrow();
        link.away()?;
        let servers = self.nats.servers();
        let message = if link.was_connected {
            format!("NATS at {servers} cannot be reached; everything is looked at again when it is back")
        } else {
            format!(
                "NATS at {servers} was not reached yet: check --nats-url, the credentials and the network"
            )
        };
        Some(Waiting { reason: Reason::Disconnected, message, stalled: false })
    }

    /// Whether NATS has been away for so long that the objects are to say so.
    #[must_use]
    pub fn tells_disconnected(&self) -> bool {
        self.nats.link().borrow().away().is_some_and(|away| away >= DISCONNECTED_AFTER)
            && self.written.take_turn()
    }

    /// When to look at an object again: rarely where nothing is known to change, since changes are told; soon where its status
    /// was not allowed to say Disconnected yet.
    #[must_use]
    pub fn next_look<I>(&self, told: &Told<I>) -> Action {
        let pause = if told.is_disconnected() { DISCONNECTED_AFTER } else { self.settings.resync };
        Action::requeue(pause.mul_f64(rand::rng().random_range(1.0..1.2)))
    }
}

/// Kind, namespace and name.
pub type Key = (&'static str, String, String);

/// Failures in a row, by object: what the delay of the next try grows with.
#[derive(Default)]
pub struct Failures(Mutex<HashMap<Key, u32>>);

impl Failures {
    /// Counts one more failure, and says when to try again.
    pub fn delay(&self, key: Key, category: Category) -> Duration {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key).or_default();
        *count = count.saturating_add(1);
        backoff(category, *count).mul_f64(rand::rng().random_range(0.5..1.0))
    }

    /// The object is well again, or gone.
    pub fn clear(&self, key: &Key) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// Longest delay before the try after so many failures.
fn backoff(category: Category, failures: u32) -> Duration {
    let (first, longest) = match category {
        Category::Conflict => (Duration::from_millis(200), Duration::from_secs(5)),
        Category::Retry => (Duration::from_millis(500), Duration::from_mins(1)),
        Category::Refused => (Duration::from_secs(10), Duration::from_mins(5)),
    };
    first.saturating_mul(1 << (failures - 1).min(16)).min(longest)
}

/// When statuses were written, so that live figures and a dead NATS do not flood the API server.
#[derive(Default)]
pub struct Written {
    figures: Mutex<HashMap<Key, Instant>>,
    turns: Mutex<Option<(Instant, f64)>>,
}

impl Written {
    /// Whether an object's status may be written although only figures changed.
    pub fn figures_are_due(&self, key: &Key) -> bool {
        let figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        figures.get(key).is_none_or(|last| last.elapsed() >= FIGURES_EVERY)
    }

    /// An object's status was written.
    pub fn wrote(&self, key: Key) {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Instant::now());
    }

    /// The object is gone.
    pub fn clear(&self, key: &Key) {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Takes one of the turns that refill with time.
    fn take_turn(&self) -> bool {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let left = turns.map_or(DISCONNECTED_PER_SECOND, |(then, left)| {
            (left + (now - then).as_secs_f64() * DISCONNECTED_PER_SECOND).min(DISCONNECTED_PER_SECOND)
        });
        let granted = left >= 1.0;
        *turns = Some((now, if granted { left - 1.0 } else { left }));
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        ("EventStream", "shop".into(), "orders".into())
    }

    #[test]
    fn the_delay_doubles_up_to_a_bound_and_begins_again_after_success() {
        assert_eq!(backoff(Category::Retry, 1), Duration::from_millis(500));
        assert_eq!(backoff(Category::Retry, 4), Duration::from_secs(4));
        assert_eq!(backoff(Category::Retry, 4_000_000_000), Duration::from_mins(1));
        let failures = Failures::default();
        for _ in 0..20 {
            assert!(failures.delay(key(), Category::Retry) <= Duration::from_mins(1));
        }
        failures.clear(&key());
        assert!(failures.delay(key(), Category::Retry) <= Duration::from_millis(500));
    }

    #[tokio::test(start_paused = true)]
    async fn turns_refill_with_time() {
        let written = Written::default();
        let granted = (0..100).filter(|_| written.take_turn()).count();
        assert_eq!(granted, 20);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!((0..100).filter(|_| written.take_turn()).count(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn figures_wait_a_minute() {
        let written = Written::default();
        assert!(written.figures_are_due(&key()));
        written.wrote(key());
        assert!(!written.figures_are_due(&key()));
        tokio::time::advance(FIGURES_EVERY).await;
        assert!(written.figures_are_due(&key()));
    }
}
