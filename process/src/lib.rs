//! What every Jetwright program has around its work: configuration that names every mistake, telemetry, health, the
//! endpoints for probes and metrics, what surrounds an HTTP interface, who it is to NATS, and a graceful end. It knows nothing of
//! Kubernetes or the services.

pub mod admin;
pub mod configuration;
pub mod health;
pub mod http;
pub mod metrics;
pub mod nats;
pub mod shutdown;
pub mod telemetry;
