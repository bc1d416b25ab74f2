//! In: how partitions are shared out. Out: metrics, by the rows of the catalogue. Asks nobody.

use std::fmt;

use jetwright_process::metrics::catalogue::Value;
use prometheus_client::encoding::DescriptorEncoder;

use super::registry::Exported;
use crate::{context::Context, stats::catalogue as rows};

/// Writes the figures of all ordered consumers.
pub fn encode(encoder: &mut DescriptorEncoder<'_>, context: &Context) -> fmt::Result {
    let consumers = context.partitions.exported();
    let states = consumers.iter().flat_map(|Exported { name: (namespace, name), sharing, .. }| {
        let states = [("owned", sharing.owned), ("draining", sharing.draining), ("unowned", sharing.unowned)];
        states.map(|(state, count)| ([namespace.as_str(), name, state], Value::from(u64::from(count))))
    });
    rows::CONSUMER_PARTITIONS.encode(encoder, states)?;
    let handovers = consumers.iter().map(|Exported { name: (namespace, name), handovers, .. }| {
        ([namespace.as_str(), name], Value::from(*handovers))
    });
    rows::CONSUMER_HANDOVERS.encode(encoder, handovers)?;
    let course = context.partitions.course();
    let deaths = course.deaths.iter().map(|(reason, count)| ([*reason], Value::from(*count)));
    rows::PARTITIONS_MEMBER_DEATHS.encode(encoder, deaths)?;
    let beat = course.beat.map(|beat| ([], Value::from(beat.as_duration().as_secs_f64())));
    rows::PARTITIONS_HEARTBEAT.encode(encoder, beat)
}
