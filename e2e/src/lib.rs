//! Drives Jetwright's programs from outside, as a user does: manifests into a real API server, requests over HTTP, and what
//! becomes of them in a real NATS server. The tests are in `tests/servers`, the shop that they run in `shop/`, and figures of
//! the operator in `benches/`. Here is what the tests and the figures both start.

use std::path::Path;

use jetwright_testing::{ControlPlane, NatsServer, Process, binary, free_port};
use tokio::sync::OnceCell;

/// A path of this crate, such as `shop`.
#[must_use]
pub fn path(relative: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative).display().to_string()
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
