//! How soon a workload without pods handles the first event that is published.

use std::time::Duration;

use jetwright_e2e::{
    figures::print_times,
    order::{
        history::{Entry, Step},
        load::monotonic,
    },
    workers::SETTLED,
};
use jetwright_testing::await_until;
use serde_json::json;
use tokio::time::sleep;

use crate::world::Loaded;

const ROUNDS: usize = 5;
const PARTITIONS: u32 = 8;
/// The operator samples every 2 s, and without pods since such a moment: each round meets another part of the interval.
const APART: Duration = Duration::from_millis(400);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// From the publish of an event, when nothing was published for a while: until a pod is asked for, and until the event is handled.
async fn publish_one(loaded: &mut Loaded) -> (Duration, Duration) {
    let published = monotonic();
    loaded.load.publish_round().await;
    while loaded.replicas().await.unwrap_or_default() == 0 {
        sleep(POLL_INTERVAL).await;
        assert!(monotonic() < published + SETTLED, "no pod is asked for");
    }
    let decided = monotonic().saturating_sub(published);
    let handled = loop {
        let is_it = |entry: &&Entry| entry.step == Step::Done && entry.at > published;
        if let Some(entry) = loaded.history().entries.iter().find(is_it) {
            break entry.at.saturating_sub(published);
        }
        sleep(POLL_INTERVAL).await;
        assert!(monotonic() < published + SETTLED, "the event is not handled");
    };
    await_until("there to be no pods again", SETTLED, async || {
        let replicas = loaded.replicas().await?;
        anyhow::ensure!(replicas == 0, "{replicas}");
        anyhow::Ok(())
    })
    .await;
    loaded.world.workers.await_pods(0).await;
    (decided, handled)
}

pub async fn measure() {
    // One event.
    let mut loaded = Loaded::start(PARTITIONS, 1).await;
    let autoscaling = json!({"minReplicas": 0, "maxReplicas": 4, "scaleDownAfter": "10s"});
    loaded.declare_consumer(json!({"replicas": 0, "autoscaling": autoscaling}), &[]).await;
    // The partitions are new.
    publish_one(&mut loaded).await;
    let (mut first, mut later) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 0..ROUNDS {
        loaded.world.restart_operator().await;
        for times in [&mut first, &mut later] {
            sleep(APART * u32::try_from(round).unwrap()).await;
            let (decided, handled) = publish_one(&mut loaded).await;
            times[0].push(decided);
            times[1].push(handled);
        }
    }
    for (of_what, [decided, handled]) in
        [("the first after a start of the operator", first), ("a later one", later)]
    {
        print_times(&format!("an event for 0 pods, {of_what}, until 1 pod is asked for"), decided);
        print_times(&format!("an event for 0 pods, {of_what}, until it is handled"), handled);
    }
}
