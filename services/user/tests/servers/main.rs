//! The user service as a program, on a real NATS server.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests are outside of what clippy takes for a test"
)]

mod bench;
mod directory;
mod logs;
mod program;
mod registration;
