//! What every Jetwright program has around its work: configuration that reports every mistake, telemetry, health, the
//! endpoints for probes and metrics, an HTTP server, and a graceful end. It knows nothing of NATS, Kubernetes or the
//! services.

pub mod admin;
pub mod configuration;
pub mod health;
pub mod http;
pub mod metrics;
pub mod shutdown;
pub mod telemetry;
