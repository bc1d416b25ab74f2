//! NATS servers with JetStream.

mod account;
mod cluster;
mod publish;
mod raw;
mod server;

pub use account::JwtAccount;
pub use cluster::NatsCluster;
pub use publish::publish_until_stored;
pub use raw::RawClient;
pub use server::{NatsServer, NatsServerBuilder};
