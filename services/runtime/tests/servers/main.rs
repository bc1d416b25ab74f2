//! The runtime against a real NATS server: what a service's authors and their users would notice.

mod connection;
mod consume;
mod publish;
mod state;
mod support;
