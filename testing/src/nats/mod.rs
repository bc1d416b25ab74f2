//! NATS servers with JetStream.

mod account;
mod cluster;
mod server;

pub use account::JwtAccount;
pub use cluster::NatsCluster;
pub use server::{NatsServer, NatsServerBuilder};
