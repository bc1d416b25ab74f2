//! How the pods follow many events that wait, and when those are handled.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::{
    select,
    time::{sleep, timeout},
};

use crate::world::Loaded;

const PARTITIONS: u32 = 16;
const KEYS: u32 = 1_000;
const EVENTS: u32 = 100_000;
const MOST: u32 = 8;
/// How long an event takes, and how many a pod handles at once.
const HANDLING: Duration = Duration::from_millis(16);
const CONCURRENCY: u32 = 8;
const LONG: Duration = Duration::from_mins(5);
/// How often the number of pods is asked for, and how often what is left: each is a load by itself.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Waits until everything is acknowledged.
async fn drained(loaded: &Loaded) {
    while loaded.load.ensure_drained().await.is_err() {
        sleep(DRAIN_POLL_INTERVAL).await;
    }
}

/// Notes each new number of pods, and when it came.
async fn follow(loaded: &Loaded, since: Instant, path: &mut Vec<(Duration, i32)>) {
    loop {
        if let Ok(replicas) = loaded.replicas().await
            && path.last().is_none_or(|(_, last)| *last != replicas)
        {
            path.push((since.elapsed(), replicas));
        }
        sleep(POLL_INTERVAL).await;
    }
}

pub async fn measure() {
    let mut loaded = Loaded::start(PARTITIONS, KEYS).await;
    for _ in 0..EVENTS / KEYS {
        loaded.load.publish_round().await;
    }
    let variables = [
        ("SOAK_HANDLING_MILLISECONDS", u64::try_from(HANDLING.as_millis()).unwrap()),
        ("SOAK_CONCURRENCY", CONCURRENCY.into()),
    ];
    let autoscaling = json!({"minReplicas": 0, "maxReplicas": MOST});
    loaded.declare_consumer(json!({"replicas": 0, "autoscaling": autoscaling}), &variables).await;
    let (since, mut path) = (Instant::now(), Vec::new());
    select! {
        drained = timeout(LONG, drained(&loaded)) => drained.unwrap(),
        () = follow(&loaded, since, &mut path) => {}
    }
    let took = since.elapsed();
    let steps: Vec<_> =
        path.iter().map(|(at, pods)| format!("{pods} after {:.1} s", at.as_secs_f64())).collect();
    let of_pods = |pods: u32| (HANDLING * EVENTS / CONCURRENCY / pods).as_secs_f64();
    println!(
        "{EVENTS} events that wait, {CONCURRENCY} at once in a pod for {HANDLING:?} each, until all are handled: {:.1} s; one pod alone would \
         take {:.0} s, {MOST} from the beginning {:.0} s; pods: {}; {} at most",
        took.as_secs_f64(),
        of_pods(1),
        of_pods(MOST),
        steps.join(", "),
        path.iter().map(|(_, pods)| *pods).max().unwrap_or_default(),
    );
}
