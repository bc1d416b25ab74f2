//! Samples a connection's streams and consumers, round after round, while this process leads. In: the stores. Out: the sample. Sends its
//! requests through a [`Round`], and wakes no object.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    pace::{Pace, grown},
    round::{ConsumerLists, Round},
    sample::{Intern, Sample},
};
use crate::{context::Context, error::error_chain, jetstream::connections::Connection};

/// How often a connection that is away is looked at.
const RECONNECT_POLL: Duration = Duration::from_secs(1);

/// How it is sampled.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// Time in which everything is sampled once, where that is not too much.
    pub interval: Duration,
    /// Whether the figures of the servers that keep a stream's copies are kept.
    pub with_peers: bool,
}

/// Samples every connection for ever.
pub async fn run(context: &Context, sampling: Sampling, sample: &Sample) {
    for scope in context.scopes.all() {
        // Before all objects were listed, nothing would be anybody's. A store that ends, ends with the process.
        let _ = scope.event_streams.reader().wait_until_ready().await;
        let _ = scope.event_consumers.reader().wait_until_ready().await;
    }
    let connections = context.connections.all();
    let samplers = connections.map(|connection| sample_connection(context, connection, sampling, sample));
    futures::future::join_all(samplers).await;
}

async fn sample_connection(context: &Context, connection: &Connection, sampling: Sampling, sample: &Sample) {
    let metrics = context.metrics.clone();
    let api = connection.cache.api().observed(move |_, error| metrics.sampled(error));
    let (mut names, mut lists) = (Intern::default(), ConsumerLists::default());
    let mut interval = sampling.interval;
    context.metrics.stats_interval(interval);
    // The first figures come as soon as they may.
    let mut pace = Pace::at_once();
    loop {
        while !connection.nats.state().borrow().connected {
            sleep(RECONNECT_POLL).await;
        }
        let begun = Instant::now();
        let with_peers = sampling.with_peers;
        let mut round = Round {
            context,
            connection,
            api: &api,
            pace: &pace,
            sample,
            with_peers,
            names: &mut names,
            lists: &mut lists,
        };
        if let Err(error) = round.run().await {
            tracing::debug!(
                error = error_chain(&error),
                "failed to sample the figures of all streams and consumers, will retry in the next interval"
            );
        }
        let before = std::mem::replace(&mut interval, grown(sampling.interval, pace.sent()));
        report_growth(sampling.interval, before, interval);
        context.metrics.stats_interval(interval);
        pace = Pace::over(interval, pace.sent());
        sleep_until(begun + interval).await;
    }
}

/// Says when the interval comes to be another than was asked for, and when it no longer is.
fn report_growth(wanted: Duration, before: Duration, interval: Duration) {
    match (before > wanted, interval > wanted) {
        (false, true) => tracing::warn!(
            ?interval,
            "sampling figures less often than --stats-interval says: there are too many streams and consumers for 50 requests a second"
        ),
        (true, false) => tracing::info!("sampling figures as often as --stats-interval says again"),
        _ => {}
    }
}
