//! NATS servers with JetStream.

mod account;
mod cluster;
mod raw;
mod server;

pub use account::JwtAccount;
pub use cluster::NatsCluster;
pub use raw::RawClient;
pub use server::{NatsServer, NatsServerBuilder};
