//! NATS servers with JetStream.

mod cluster;
mod server;

pub use cluster::NatsCluster;
pub use server::{NatsServer, NatsServerBuilder};
