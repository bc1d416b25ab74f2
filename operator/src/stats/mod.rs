//! Figures of streams and consumers, as metrics: sampled from JetStream apart from the cache, so that they are seconds old and no sample
//! reconciles anything.
//!
//! [`sampler`] asks JetStream by [`round`]s, at the [`pace`] that it may; [`answer`] is what it reads of an answer, [`dead_letters`] when it counts them; [`assets`] what each server keeps; [`parts`] makes one of the consumers that an object has; [`sample`] is what was
//! read last, and [`export`] writes it, with what the stores say, by the rows of the [`catalogue`].

pub mod answer;
mod assets;
pub mod catalogue;
mod dead_letters;
mod export;
pub mod pace;
mod parts;
mod round;
mod sample;
mod sampler;

pub use export::Exporter;
pub use sampler::{Sampling, run};
