//! Drives Jetwright from outside, as a user does. Two tiers of tests share what is here with the figures in `benches/`:
//!
//! - `tests/servers`: the programs as processes beside a real API server and a real NATS server.
//! - `tests/cluster`: charts and images on a kind cluster ([`cluster`]), which `e2e/run-tests` makes.
//!
//! The shop that both run is the chart `charts/shop`. The tests and the demo look at it with the same [`prometheus`] and [`jaeger`].
#![allow(
    clippy::panic,
    reason = "a test that cannot have what it stands on fails, with a message that tells why"
)]
#![allow(
    clippy::missing_panics_doc,
    reason = "every function here panics where the cluster does not do what a test is about"
)]

pub mod cluster;
pub mod figures;
pub mod jaeger;
pub mod metrics;
pub mod node;
pub mod objects;
pub mod order;
pub mod prometheus;
pub mod workers;

use std::path::Path;

use jetwright_testing::{ControlPlane, NatsServer, Process, binary, free_port};
use tokio::sync::OnceCell;

/// A path seen from this crate, such as `../charts/shop`.
#[must_use]
pub fn path(relative: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative).display().to_string()
}

/// The subject under which an event of the shop was published: three tokens. A stream with partitions stores one more.
#[must_use]
pub fn published(stored: &str) -> &str {
    match stored.rsplit_once('.') {
        Some((subject, number)) if subject.split('.').count() == 3 && number.parse::<u32>().is_ok() => {
            subject
        }
        _ => stored,
    }
}

/// The API server that all share, with Jetwright's definitions in it.
pub async fn control_plane() -> &'static ControlPlane {
    static DEFINITIONS: OnceCell<()> = OnceCell::const_new();
    let control_plane = ControlPlane::shared().await;
    DEFINITIONS.get_or_init(|| control_plane.apply(path("../crds/manifests"))).await;
    control_plane
}

/// A running operator.
#[derive(Debug)]
pub struct Operator {
    /// Its process.
    pub process: Process,
    /// Where it serves /livez, /readyz and /metrics.
    pub admin_url: String,
}

impl Operator {
    /// Starts an operator for one namespace, and does not wait.
    #[must_use]
    pub fn start(control_plane: &ControlPlane, nats: &NatsServer, namespace: &str) -> Self {
        let admin = format!("127.0.0.1:{}", free_port());
        let process = Process::builder(binary("jetwright-operator"))
            .env("KUBECONFIG", control_plane.kubeconfig())
            .args(["--nats-url", nats.url(), "--leader-elect=false", "--cluster-name=e2e"])
            .arg(format!("--namespaces={namespace}"))
            .arg(format!("--admin-address={admin}"))
            .start();
        Self { process, admin_url: format!("http://{admin}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_was_published_under_three_tokens() {
        for (stored, subject) in [
            ("orders.42.placed.7", "orders.42.placed"),
            ("orders.42.placed", "orders.42.placed"),
            ("orders.42.7", "orders.42.7"),
        ] {
            assert_eq!(published(stored), subject);
        }
    }
}
