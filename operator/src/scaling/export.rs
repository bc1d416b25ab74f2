//! In: what was decided. Out: metrics, by the rows of the catalogue. Asks nobody.

use std::fmt;

use jetwright_process::metrics::catalogue::{Definition, Value};
use prometheus_client::encoding::DescriptorEncoder;

use super::registry::{Exported, ExportedConsumer};
use crate::{context::Context, stats::catalogue as rows};

/// Writes the figures of all workloads with autoscaling.
pub fn encode(encoder: &mut DescriptorEncoder<'_>, context: &Context) -> fmt::Result {
    let workloads = context.autoscalers.exported();
    let mut row = |row: &Definition, figure: &dyn Fn(&Exported) -> u32| {
        let labelled = workloads.iter().map(|workload| {
            ([workload.name.0.as_str(), &workload.name.1], Value::from(u64::from(figure(workload))))
        });
        row.encode(encoder, labelled)
    };
    row(&rows::WORKLOAD_REPLICAS_DECIDED, &|workload| workload.decision.replicas)?;
    row(&rows::WORKLOAD_REPLICAS_WISHED, &|workload| workload.decision.wish)?;
    row(&rows::WORKLOAD_REPLICAS_MIN, &|workload| workload.bounds.0)?;
    row(&rows::WORKLOAD_REPLICAS_MAX, &|workload| workload.bounds.1)?;
    let mut rates = |row: &Definition, figure: &dyn Fn(&ExportedConsumer) -> Option<f64>| {
        let all = workloads
            .iter()
            .flat_map(|workload| workload.consumers.iter().map(move |consumer| (workload, consumer)));
        let labelled = all.filter_map(|(workload, consumer)| {
            let labels = [workload.name.0.as_str(), &consumer.name, &workload.name.1];
            Some((labels, figure(consumer)?))
        });
        row.encode(encoder, labelled)
    };
    rates(&rows::CONSUMER_ARRIVALS, &|consumer| consumer.rates.map(|(arrivals, _)| arrivals))?;
    rates(&rows::CONSUMER_SETTLED, &|consumer| consumer.rates.map(|(_, settled)| settled))?;
    rates(&rows::CONSUMER_POD_CAPACITY, &|consumer| consumer.capacity)
}
