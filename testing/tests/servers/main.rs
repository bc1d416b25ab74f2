//! The servers that tests stand on do what tests rely on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "all of this target is tests, their helpers too"
)]

mod control_plane;
mod nats;
mod processes;
mod provide;
