//! Real servers for tests: nats-server (one, or a cluster of three), etcd and kube-apiserver as child processes.
//!
//! ```no_run
//! # async fn example() {
//! use jetwright_testing::{ControlPlane, NatsServer, Process, await_until, binary};
//! use std::time::Duration;
//!
//! let nats = NatsServer::start().await;
//! let kubernetes = ControlPlane::shared().await;
//! let namespace = kubernetes.namespace("orders").await;
//! let operator = Process::builder(binary("jetwright-operator"))
//!     .env("KUBECONFIG", kubernetes.kubeconfig())
//!     .args(["--nats-url", nats.url(), "--leader-elect=false"])
//!     .start();
//! let jetstream = nats.jetstream().await;
//! await_until("the stream 'orders'", Duration::from_secs(5), || jetstream.get_stream("orders")).await;
//! # }
//! ```
//!
//! What a test starts is its own, on free ports and in folders of its own, and is ended when the value is dropped; it
//! is also ended, and its folders removed, when the test's process is killed. When a test fails by a panic (so use
//! `unwrap`, not `?`, in tests against servers), the logs are kept under `target/test-logs/`, and a line tells where.
//! `JETWRIGHT_KEEP_LOGS=1` keeps those of tests that pass.
//!
//! The functions here panic where a server does not start or answer, with the server's last words: failing the test is
//! what they are for.
#![allow(clippy::panic, reason = "a test that cannot have its server fails, with a message that tells why")]
#![allow(
    clippy::missing_panics_doc,
    reason = "every function here panics, as the crate's documentation says"
)]

mod awaiting;
mod certificates;
mod collector;
mod folder;
mod guard;
mod kubernetes;
mod nats;
mod port;
mod process;
mod program;
mod secret;
mod usage;

pub use awaiting::await_until;
pub use certificates::{Authority, Certified};
pub use collector::{Span, TraceCollector};
pub use folder::Folder;
pub use guard::{end_left_in, start_time};
pub use kubernetes::{ControlPlane, Namespace};
pub use nats::{JwtAccount, NatsCluster, NatsServer, NatsServerBuilder, RawClient, publish_until_stored};
pub use port::free_port;
pub use process::{Process, ProcessBuilder, start_server};
pub use program::{Program, binary, target_folder};
pub use secret::MountedSecret;
pub use usage::{memory_bytes, processor_seconds};
