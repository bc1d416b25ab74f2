//! What is known of consumers, as it is in the status, and back: the next process goes on with it. Pure.

use std::time::Duration;

use jetwright_crds::consumer::{AutoscalingStatus, ConsumerFigures, OverloadFigures};

use super::{
    autoscaler::Autoscaler,
    capacity::Capacity,
    consumer::{Consumer, OVERLOAD_MEMORY, Overload},
};

const HOUR: Duration = Duration::from_hours(1);

/// What is known of the consumers of a workload, of no more than a status takes.
pub fn figures(autoscaler: &Autoscaler) -> Vec<ConsumerFigures> {
    let known = autoscaler.consumers.iter().map(|(name, consumer)| ConsumerFigures {
        name: name.clone(),
        lag: consumer.rates.map(|rates| rates.sample.lag()),
        arrivals: consumer.rates.map(|rates| decimal(rates.arrivals)),
        settled: consumer.rates.map(|rates| decimal(rates.settled)),
        capacity: consumer.capacity.learnt().map(decimal),
        no_gain_below: consumer.capacity.no_gain_below().map(decimal),
        overload: consumer.overload.map(|Overload { until, pods, arrivals }| {
            let left = until.saturating_sub(consumer.rates.map_or(Duration::ZERO, |rates| rates.sample.at));
            OverloadFigures {
                replicas: pods.try_into().unwrap_or(i32::MAX),
                arrivals: decimal(arrivals),
                hours_left: left.as_secs().div_ceil(HOUR.as_secs()).try_into().unwrap_or(i32::MAX),
            }
        }),
    });
    known.take(AutoscalingStatus::MAX_CONSUMERS).collect()
}

/// A consumer of which an earlier process knew this.
pub fn continued(figures: &ConsumerFigures) -> Consumer {
    let rate = |figure: &Option<String>| figure.as_ref()?.parse().ok();
    let overload =
        figures.overload.as_ref().and_then(|OverloadFigures { replicas, arrivals, hours_left }| {
            let pods = (*replicas).try_into().ok()?;
            let until = (HOUR * (*hours_left).try_into().ok()?).min(OVERLOAD_MEMORY);
            Some(Overload { until, pods, arrivals: arrivals.parse().ok()? })
        });
    let capacity = Capacity::of(rate(&figures.capacity)).with_no_gain_below(rate(&figures.no_gain_below));
    Consumer::new(capacity, overload)
}

/// A rate with three digits: what changes behind them is no news.
fn decimal(rate: f64) -> String {
    if rate <= 0.0 {
        return "0".to_owned();
    }
    let digits = (2.0 - rate.log10().floor()).clamp(0.0, 6.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is at most six")]
    let text = format!("{rate:.*}", digits as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_process_knows_what_was_too_much_and_what_brought_too_little() {
        let overload = Some(Overload { until: Duration::from_mins(250), pods: 3, arrivals: 80.0 });
        let mut autoscaler = Autoscaler::new(4);
        let consumer = Consumer::new(Capacity::of(Some(12.34)).with_no_gain_below(Some(310.0)), overload);
        autoscaler.consumers.insert("orders".to_owned(), consumer);
        let known = figures(&autoscaler);
        let Consumer { capacity: continued, overload, .. } = continued(&known[0]);
        assert_eq!((continued.learnt(), continued.no_gain_below()), (Some(12.3), Some(310.0)));
        assert_eq!(overload, Some(Overload { until: 5 * HOUR, pods: 3, arrivals: 80.0 }));
    }

    #[test]
    fn what_is_no_figure_is_not_known() {
        let odd = Some("many".to_owned());
        let overload = Some(OverloadFigures { replicas: -1, arrivals: "1".to_owned(), hours_left: 6 });
        let figures = ConsumerFigures {
            capacity: odd.clone(),
            no_gain_below: odd,
            overload,
            ..ConsumerFigures::default()
        };
        let Consumer { capacity, overload, .. } = continued(&figures);
        assert_eq!((capacity.learnt(), capacity.no_gain_below(), overload), (None, None, None));
    }

    #[test]
    fn rates_have_three_digits() {
        let texts = [0.0, 0.012_345, 0.5, 1.0, 12.345, 123.456, 1234.5].map(decimal);
        assert_eq!(texts, ["0", "0.0123", "0.5", "1", "12.3", "123", "1234"]);
    }
}
