//! An operator with servers, a stream with partitions and its load, and what the pods of a consumer do with it.

use std::time::{Duration, Instant};

use jetwright_e2e::{
    order::{history::History, load::Load},
    workers::{CONSUMER, SETTLED, World},
};
use jetwright_testing::await_until;
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::Value;
use tokio::time::sleep;

/// Nobody serves a partition before its bucket is older than any lease, which no figure here is about.
const BUCKET_AGE: Duration = Duration::from_secs(33);

pub struct Loaded {
    pub world: World,
    pub load: Load,
    bucket_made: Instant,
}

impl Loaded {
    pub async fn start(partitions: u32, keys: u32) -> Self {
        let world = World::start().await;
        let load = Load::new(world.nats.jetstream().await, 1, partitions, keys);
        load.create_bucket().await;
        let bucket_made = Instant::now();
        world.declare_stream(partitions).await;
        Self { world, load, bucket_made }
    }

    /// Declares the consumer, whose pods get these variables, once all it takes is there and old enough.
    pub async fn declare_consumer(&self, workload: Value, variables: &[(&str, u64)]) {
        sleep(BUCKET_AGE.saturating_sub(self.bucket_made.elapsed())).await;
        self.world.declare_consumer(workload, variables).await;
        await_until("the consumers", SETTLED, async || self.load.consumers().await).await;
    }

    /// The pods that the Deployment is to have.
    pub async fn replicas(&self) -> anyhow::Result<i32> {
        let deployment = self.world.workers.api::<Deployment>().get(CONSUMER).await?;
        deployment.spec.and_then(|spec| spec.replicas).ok_or_else(|| anyhow::anyhow!("it says no number"))
    }

    /// Everything that the pods wrote.
    pub fn history(&mut self) -> History {
        self.world.workers.history(Vec::new())
    }
}
