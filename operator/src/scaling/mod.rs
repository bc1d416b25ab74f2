//! How many pods a workload should have, by what waits for them.
//!
//! [`figures`] are what JetStream says of a consumer, [`rates`] what they mean over time, [`capacity`] what one pod can do, [`partition_loads`] how
//! the load lies on partitions, [`consumer`] all of it of one consumer, [`wish`] how many pods the consumer asks for, [`autoscaler`] the bounded step
//! of the workload that follows, [`published`] what is said of it, and [`status_figures`] what the next process goes on with. All of that is pure, and
//! `simulation` runs it in virtual time against a model of queues and pods. [`sampler`] asks JetStream, [`registry`] keeps what was decided for the
//! pipeline of the object, and [`export`] writes it as metrics.

mod autoscaler;
mod capacity;
mod consumer;
pub mod export;
mod figures;
mod partition_loads;
mod peak;
pub mod published;
mod rates;
pub mod registry;
pub mod sampler;
#[cfg(test)]
mod simulation;
mod spec;
mod startup;
mod status_figures;
mod wish;
