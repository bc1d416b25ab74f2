//! The order service against a real NATS server and a stand-in for the payment gateway.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod fulfilment;
mod gateway;
mod interface;
mod program;
mod saga;
mod shop;
