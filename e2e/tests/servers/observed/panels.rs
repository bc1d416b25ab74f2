//! The panels of the dashboards, asked as Grafana would ask them.

use std::time::Duration;

use jetwright_testing::await_until;

use super::world::World;
use crate::dashboards::queries;

/// Long enough for a rate of what has just begun.
const BOUND: Duration = Duration::from_mins(1);

/// Values of the dashboards' variables, for objects that have pods, and for those that have limits and thresholds.
const VARIABLES: [[(&str, &str); 6]; 2] = [
    [
        ("$namespace", "shop"),
        ("$event_stream", "orders"),
        ("$event_consumer", "order-fulfilment"),
        ("$job", "jetwright-operator"),
        ("$pod", ".*"),
        ("$severity", ".*"),
    ],
    [
        ("$namespace", "greenhouse"),
        ("$event_stream", "readings"),
        ("$event_consumer", "alarms"),
        ("$job", "jetwright-operator"),
        ("$pod", ".*"),
        ("$severity", ".*"),
    ],
];

/// What counts things that do not happen here, and begins with the first: a stream or consumer that could not be removed with its object.
const ABSENT: [&str; 1] = ["jetwright_operator_orphaned_total"];

/// What begins with the first, which may happen here or not: the doubts of a pod that takes partitions from one that was killed.
const RARE: [&str; 1] = ["jetwright_order_recoveries_total"];

/// What is there, and must read 0.
const ZERO: [&str; 1] = ["jetwright_order_violations_total"];

/// The values that a panel shows of one or the other.
async fn shown(world: &World, query: &str) -> anyhow::Result<Vec<f64>> {
    let mut values = Vec::new();
    for variables in VARIABLES {
        let asked =
            variables.iter().fold(query.to_owned(), |query, (name, value)| query.replace(name, value));
        values.extend(world.prometheus.query(&asked).await?.into_iter().map(|sample| sample.value));
    }
    Ok(values)
}

pub async fn none_is_empty(world: &World) {
    let queries = queries();
    assert!(queries.len() > 80, "{}", queries.len());
    for (place, query) in queries {
        let asks_for = |metrics: &[&str]| metrics.iter().any(|metric| query.contains(metric));
        if asks_for(&ABSENT) {
            let shown = shown(world, &query).await.unwrap();
            assert!(shown.is_empty(), "{place} shows {shown:?}: do not leave it out");
            continue;
        }
        let found = await_until(&format!("{place} shows something, by {query}"), BOUND, async || {
            let shown = shown(world, &query).await?;
            anyhow::ensure!(!shown.is_empty() || asks_for(&RARE), "it is empty");
            anyhow::Ok(shown)
        })
        .await;
        if asks_for(&ZERO) {
            assert!(found.iter().all(|value| *value == 0.0), "{place} shows {found:?}");
        }
    }
}
