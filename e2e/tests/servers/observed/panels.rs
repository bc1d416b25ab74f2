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

/// What counts things that do not happen here, and begins with the first: a stream or consumer that could not be removed with its object, and
/// events that were handled out of order.
const ABSENT: [&str; 2] = ["jetwright_operator_orphaned_total", "jetwright_order_violations_total"];

/// Whether a panel shows something of one or the other.
async fn shows(world: &World, query: &str) -> anyhow::Result<bool> {
    for variables in VARIABLES {
        let asked =
            variables.iter().fold(query.to_owned(), |query, (name, value)| query.replace(name, value));
        if !world.prometheus.query(&asked).await?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

pub async fn none_is_empty(world: &World) {
    let queries = queries();
    assert!(queries.len() > 80, "{}", queries.len());
    for (place, query) in queries {
        if ABSENT.iter().any(|metric| query.contains(metric)) {
            assert!(!shows(world, &query).await.unwrap(), "{place} shows something: do not leave it out");
            continue;
        }
        await_until(&format!("{place} shows something, by {query}"), BOUND, async || {
            anyhow::ensure!(shows(world, &query).await?, "it is empty");
            anyhow::Ok(())
        })
        .await;
    }
}
