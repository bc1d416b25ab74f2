//! In: samples of one consumer. Out: how fast messages arrive and are settled, and whether that is known. Pure.

use std::{collections::VecDeque, time::Duration};

use super::{
    figures::{Sample, Unknown},
    partition_loads::Movement,
    spec::as_f64,
};

/// Time that each decision looks back on.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Longest time between two samples that still gives a rate: of thousands of consumers, each is sampled less often.
pub const MAX_GAP: Duration = Duration::from_secs(30);
/// Weight of the newest rate in the mean.
const ALPHA: f64 = 0.5;

/// How many pods have all that they can work at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saturation {
    None,
    /// Some of them, as where others have partitions with less to do.
    Partial,
    Full,
}

/// How fast messages arrive and are settled, in messages a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    pub sample: Sample,
    pub arrivals: f64,
    pub settled: f64,
    /// The mean of the last window.
    pub settled_in_window: f64,
    /// The lowest rate of arrivals of the last window: more than that may be a burst.
    pub lasting_arrivals: f64,
    /// Whether nothing came in a whole window, and nothing is left.
    pub is_idle: bool,
    /// How fast the lag fell in the last window; None where it did not.
    pub drain: Option<f64>,
    /// Whether it grew in the last window.
    pub is_growing: bool,
}

impl Rates {
    /// How many pods have all that they can work at.
    #[must_use]
    pub fn saturation(&self) -> Saturation {
        match self.is_partly_saturated() {
            true if self.sample.all_pods_busy() => Saturation::Full,
            true => Saturation::Partial,
            false => Saturation::None,
        }
    }

    /// Whether some pod has all that it can work at, and a second's work waits. What waits for less may be on its way.
    #[must_use]
    pub fn is_partly_saturated(&self) -> bool {
        self.sample.any_pod_busy() && as_f64(self.sample.waiting()) >= self.settled
    }
}

/// Figures of a consumer over time.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// The samples of the last window, with the mean rate of arrivals at each.
    recent: VecDeque<(Sample, f64)>,
    means: Option<(f64, f64)>,
    /// Until when the figures count as unknown, since they fell back.
    unknown_until: Option<Duration>,
}

impl Series {
    /// Takes over what was read last. While partitions move, what one process gave back is delivered again to the next, and no rate can be told
    /// from that: those of before count.
    ///
    /// # Errors
    ///
    /// Where rates are unknown.
    pub fn add(&mut self, reading: Result<Sample, Unknown>, movement: Movement) -> Result<Rates, Unknown> {
        let sample = reading?;
        if let Some((last, _)) = self.recent.back() {
            if sample.settled() < last.settled() {
                *self = Self { unknown_until: Some(sample.at + WINDOW), ..Self::default() };
            } else if sample.at.saturating_sub(last.at) > MAX_GAP {
                // An average over so long says nothing of the present.
                *self = Self::default();
            }
        }
        self.advance(sample, movement);
        if self.unknown_until.is_some_and(|until| sample.at < until) {
            return Err(Unknown::Reset);
        }
        self.unknown_until = None;
        self.rates().ok_or(Unknown::New)
    }

    fn advance(&mut self, sample: Sample, movement: Movement) {
        if let Some((last, _)) = self.recent.back() {
            let seconds = sample.at.saturating_sub(last.at).as_secs_f64();
            if seconds <= 0.0 {
                return;
            }
            // A purge removes messages that had arrived, so the count may fall.
            let rate = |now: u64, before: u64| as_f64(now.saturating_sub(before)) / seconds;
            let arrivals = rate(sample.arrived(), last.arrived());
            let settled = rate(sample.settled(), last.settled());
            let mean = |before: f64, now: f64| before + ALPHA * (now - before);
            self.means = Some(match self.means {
                Some(known) if movement != Movement::None => known,
                Some((before, settled_before)) => (mean(before, arrivals), mean(settled_before, settled)),
                None => (arrivals, settled),
            });
        }
        self.recent.push_back((sample, self.means.map_or(f64::INFINITY, |(arrivals, _)| arrivals)));
        // One sample at the beginning of the window, or before, stays.
        while self.recent.get(1).is_some_and(|(second, _)| second.at + WINDOW <= sample.at) {
            self.recent.pop_front();
        }
    }

    /// The rates, once a window was sampled.
    fn rates(&self) -> Option<Rates> {
        let (first, last) = (self.recent.front()?, self.recent.back()?);
        self.so_far().filter(|_| last.0.at.saturating_sub(first.0.at) >= WINDOW)
    }

    /// Whether the last sample is the first one.
    #[must_use]
    pub fn begins(&self) -> bool {
        self.recent.len() == 1
    }

    /// The rates of what was sampled, also of less than a window: enough to tell busy pods. What is said of a whole window is not known then.
    #[must_use]
    pub fn so_far(&self) -> Option<Rates> {
        let ((first, _), (sample, _)) = (self.recent.front()?, self.recent.back()?);
        let (arrivals, settled) = self.means.unwrap_or_default();
        let span = sample.at.saturating_sub(first.at);
        let settled_in_window =
            as_f64(sample.settled().saturating_sub(first.settled())) / span.as_secs_f64().max(1.0);
        let fallen = first.lag().saturating_sub(sample.lag());
        Some(Rates {
            sample: *sample,
            arrivals,
            settled,
            settled_in_window,
            lasting_arrivals: self.recent.iter().map(|(_, mean)| *mean).fold(arrivals, f64::min),
            is_idle: sample.lag() == 0 && sample.arrived() <= first.arrived(),
            is_growing: sample.lag() > first.lag(),
            drain: (fallen > 0).then(|| as_f64(fallen) / span.as_secs_f64()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(second: u64, delivered: u64, pending: u64, ack_pending: u64) -> Sample {
        let at = Duration::from_secs(second);
        Sample { at, delivered, pending, ack_pending, ..Sample::default() }
    }

    /// Ten arrive a second, eight are settled.
    fn steady(series: &mut Series, seconds: std::ops::Range<u64>) -> Option<Result<Rates, Unknown>> {
        let samples = seconds.step_by(2).map(|second| sample(second, 8 * second + 4, 2 * second, 4));
        samples.map(|sample| series.add(Ok(sample), Movement::None)).last()
    }

    #[test]
    fn rates_are_known_after_one_window() {
        let mut series = Series::default();
        assert_eq!(steady(&mut series, 0..10), Some(Err(Unknown::New)));
        let rates = steady(&mut series, 10..11).unwrap().unwrap();
        assert_eq!((rates.arrivals, rates.settled, rates.lasting_arrivals), (10.0, 8.0, 10.0));
        assert_eq!((rates.is_idle, rates.drain), (false, None));
    }

    #[test]
    fn figures_that_fall_back_are_unknown_for_a_window() {
        let mut series = Series::default();
        steady(&mut series, 0..20).unwrap().unwrap();
        for second in [20, 22, 24, 26, 28] {
            assert_eq!(series.add(Ok(sample(second, 5 + second, 0, 0)), Movement::None), Err(Unknown::Reset));
        }
        assert!(series.add(Ok(sample(30, 35, 0, 0)), Movement::None).is_ok());
    }

    #[test]
    fn one_lost_answer_costs_nothing_and_many_cost_a_window() {
        let mut series = Series::default();
        steady(&mut series, 0..20).unwrap().unwrap();
        assert_eq!(series.add(Err(Unknown::Unanswered), Movement::None), Err(Unknown::Unanswered));
        assert!(steady(&mut series, 22..24).unwrap().is_ok());
        assert!(steady(&mut series, 50..52).unwrap().is_ok());
        assert_eq!(steady(&mut series, 82..84), Some(Err(Unknown::New)));
    }

    #[test]
    fn what_is_delivered_again_while_partitions_move_did_not_arrive() {
        let mut series = Series::default();
        steady(&mut series, 0..20).unwrap().unwrap();
        let again =
            |series: &mut Series, movement| series.add(Ok(sample(20, 1148, 40, 4)), movement).unwrap();
        let rates = again(&mut series.clone(), Movement::Settling);
        assert_eq!((rates.arrivals, rates.settled), (10.0, 8.0));
        assert!(again(&mut series, Movement::None).arrivals > 200.0);
    }

    #[test]
    fn rates_of_a_consumer_that_is_seldom_sampled_are_known_too() {
        let mut series = Series::default();
        series.add(Ok(sample(0, 4, 0, 4)), Movement::None).unwrap_err();
        for second in (20..200).step_by(20) {
            let rates =
                series.add(Ok(sample(second, 8 * second + 4, 2 * second, 4)), Movement::None).unwrap();
            assert_eq!((rates.arrivals, rates.settled), (10.0, 8.0));
        }
    }

    #[test]
    fn a_consumer_is_idle_when_nothing_came_in_a_window_and_nothing_is_left() {
        let mut series = Series::default();
        let mut last = Err(Unknown::New);
        for second in (0..=10).step_by(2) {
            last = series.add(Ok(sample(second, 7, 0, 0)), Movement::None);
        }
        assert!(last.unwrap().is_idle);
        assert!(!series.add(Ok(sample(12, 8, 0, 0)), Movement::None).unwrap().is_idle);
    }
}
