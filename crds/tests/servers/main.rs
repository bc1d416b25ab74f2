//! What the API server makes of the definitions: what it shows, and which manifests it takes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "all of this target is tests, their helpers too")]

mod consumer;
mod definitions;
mod documentation;
mod earlier;
mod narrowing;
mod scale;
mod stream;
mod support;
