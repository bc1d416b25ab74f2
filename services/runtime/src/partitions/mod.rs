//! Which partitions this process handles, as it agrees with the others in the bucket `jetwright`: one membership for all handlers of a service.
//!
//! | file | does |
//! | --- | --- |
//! | `driver` | runs a [`Participant`](jetwright_partitions::participant::Participant): brings it what is known, and carries out what it says |
//! | `requests` | asks the bucket |
//! | `held` | starts, instructs and ends the loops of partitions |
//! | `tenure` | what a loop looks at before it begins anything |
//! | `clock` | the two clocks of a lease |
//!
//! It knows nothing of consumers: a [`PartitionedHandler`] starts the loop of a partition.

mod clock;
mod driver;
mod held;
mod requests;
mod tenure;

use std::{future::Future, pin::Pin, sync::Arc};

use jetwright_partitions::keys::ConsumerId;
use jetwright_process::health::Gate;
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    driver::{Member, Sharing},
    tenure::{Instruction, Looked, Tenure},
};

/// What the loop of one partition is given.
pub(crate) struct PartitionStart {
    /// The right to it.
    pub(crate) tenure: Arc<Tenure>,
    /// Whether its consumer can be used.
    pub(crate) gate: Gate,
    /// Cancelled when it is to end.
    pub(crate) stop: CancellationToken,
}

/// Handles a partition until it is stopped; returns whether nothing runs any more.
pub(crate) type PartitionLoop = Pin<Box<dyn Future<Output = bool> + Send>>;

/// A handler whose consumer has partitions.
pub(crate) struct PartitionedHandler {
    /// Name of the EventConsumer.
    pub(crate) name: &'static str,
    pub(crate) consumer: ConsumerId,
    /// Number of partitions where no map says it.
    pub(crate) count: u32,
    /// Makes the loop of a partition.
    pub(crate) start: Box<dyn Fn(PartitionStart) -> PartitionLoop + Send + Sync>,
}
