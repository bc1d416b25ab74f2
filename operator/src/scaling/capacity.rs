//! In: samples of one consumer and the pods that are ready. Out: how much one pod settles, and whether the pods that came last were of use.
//! Pure.
//!
//! Both are learnt while the number of ready pods stays the same. A pod that waits for messages says nothing of what it could do, so only time
//! counts in which something waited at each sample.

use std::time::Duration;

use super::{
    figures::{BusyProcesses, ProcessCounts, Sample},
    rates::{Saturation, WINDOW},
    spec::as_f64,
};

/// Fewest settled messages that make a rate: with fewer, the end of one handler changes it too much.
const MIN_SETTLED: u64 = 10;
/// Time after which fewer messages than pods had in hand make a rate, too: the others may be waiting for their next attempt.
const LONG: Duration = Duration::from_mins(2);
/// Length of a window from which on one is enough to say that new pods bring too little: in a shorter one that may be chance.
const LONG_WINDOW: Duration = Duration::from_mins(1);
/// Time after a change of the number of ready pods that is not counted: new pods fill caches and connections first.
pub const WARMUP: Duration = Duration::from_secs(5);
/// Weight of the newest capacity in the mean.
const ALPHA: f64 = 0.5;
/// Fraction of the expected gain that new pods have to bring. Less is `NoGain`.
const MIN_GAIN: f64 = 0.1;

/// Pods that came, and what they should bring.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Trial {
    /// What was settled before them, in messages a second.
    before: f64,
    /// What they should add to it.
    expected: f64,
    /// Pods before them, and with them.
    from: u32,
    pods: u32,
    /// What one pod was taken to settle before them.
    each: f64,
    /// Processes that were busy before them; None without order per key, and where it is not known.
    busy: Option<u32>,
    /// They brought too little in one window, which may be chance.
    is_doubted: bool,
}

/// When pods changed last, and where what is counted began.
#[derive(Clone, Debug, PartialEq)]
struct Span {
    changed_at: Duration,
    /// Any work of these pods.
    all: Option<Sample>,
    /// Work of these pods while each look found some of them busy.
    behind: Option<Sample>,
    /// Work of these pods while each look found all of them busy.
    saturated: Option<Sample>,
    /// Work of those that each look found busy, where others were not.
    busy: Option<BusyProcesses>,
}

impl Span {
    fn begin(at: Duration) -> Self {
        Self { changed_at: at, all: None, behind: None, saturated: None, busy: None }
    }
}

/// What was sampled of the pods.
#[derive(Clone, Debug)]
pub struct Work {
    pub sample: Sample,
    pub saturation: Saturation,
    /// Pods that are ready.
    pub ready: u32,
    /// Those that have as much to do as they can, where others have not.
    pub busy: Option<BusyProcesses>,
}

/// What is known of one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Capacity {
    /// Messages that one pod settles in a second.
    learnt: Option<f64>,
    span: Option<Span>,
    ready: u32,
    trial: Option<Trial>,
    /// More pods did not help: from which rate on, of all pods in messages a second, they may.
    no_gain: Option<f64>,
}

impl Capacity {
    /// With what was learnt before.
    #[must_use]
    pub fn of(learnt: Option<f64>) -> Self {
        Self { learnt: learnt.filter(|rate| rate.is_finite() && *rate > 0.0), ..Self::default() }
    }

    /// The same, where the pods that came last had brought too little.
    #[must_use]
    pub fn with_no_gain_below(self, rate: Option<f64>) -> Self {
        Self { no_gain: rate.filter(|rate| rate.is_finite()), ..self }
    }

    /// Messages that have to be settled in a second before pods are added again, where those that came last brought too little.
    #[must_use]
    pub fn no_gain_below(&self) -> Option<f64> {
        self.no_gain
    }

    /// Messages that one pod settles in a second, where it is known.
    #[must_use]
    pub fn learnt(&self) -> Option<f64> {
        self.learnt
    }

    /// Whether the pods that came last brought too little.
    #[must_use]
    pub fn has_no_gain(&self) -> bool {
        self.no_gain.is_some()
    }

    /// Forgets that more pods did not help: there are enough, or something else is declared.
    pub fn forget_no_gain(&mut self) {
        self.no_gain = None;
    }

    /// The figures are not comparable with earlier ones: the measurement and the trial end.
    pub fn interrupt(&mut self) {
        (self.span, self.trial) = (None, None);
    }

    /// The newest pods need not show what they bring: pods are removed, or what is behind is nothing that they could take.
    pub fn drop_trial(&mut self) {
        self.trial = None;
    }

    /// Pods are added, which are judged where it is known what one can do. `rate` is what all settled in the last window, in messages a second:
    /// where handlers that began together ended in it, that is more than they can do. `busy` processes have as much as they can work at, where that
    /// is known.
    pub fn scaled_up(&mut self, from: u32, to: u32, rate: f64, busy: Option<u32>) {
        let Some(each) = self.learnt.filter(|each| *each > 0.0 && from > 0) else { return };
        let more = each * f64::from(to.saturating_sub(from));
        let before = rate.min(each * f64::from(from));
        // Pods of an earlier step that were not judged yet are judged together with these.
        let earlier = self.trial.unwrap_or(Trial {
            before,
            expected: 0.0,
            from,
            pods: from,
            each,
            busy,
            is_doubted: false,
        });
        self.trial = Some(Trial { expected: earlier.expected + more, pods: to, ..earlier });
    }

    /// So many of the pods that were added are ready, and no others are waited for: these have to show what they bring.
    pub fn limit_trial(&mut self, ready: u32) {
        self.trial = self.trial.and_then(|trial| {
            let pods = trial.pods.min(ready);
            let came = pods.checked_sub(trial.from).filter(|came| *came > 0)?;
            let share = f64::from(came) / f64::from(trial.pods - trial.from);
            Some(Trial { pods, expected: trial.expected * share, ..trial })
        });
    }

    /// Whether pods that were added have yet to show what they bring.
    #[must_use]
    pub fn has_trial(&self) -> bool {
        self.trial.is_some()
    }

    /// Partitions move: what was counted says nothing, since what one process gave back is delivered again to the next.
    pub fn restart(&mut self, at: Duration, ready: u32) {
        // They have had their time to warm up when they have moved.
        (self.span, self.ready) = (Some(Span::begin(at.saturating_sub(WARMUP))), ready);
    }

    /// Takes over what was sampled.
    pub fn add(&mut self, work: Work) {
        let Work { sample, saturation, ready, busy } = work;
        let known = self.span.take().filter(|_| ready == self.ready);
        let mut span = known.unwrap_or_else(|| Span::begin(sample.at));
        self.ready = ready;
        if saturation == Saturation::None {
            // They do what there is to do.
            self.trial = self.trial.filter(|trial| ready < trial.pods);
            span.behind = None;
        }
        if saturation != Saturation::Full {
            span.saturated = None;
        }
        if ready > 0 && sample.at >= span.changed_at + WARMUP {
            if let Some(rate) = span.behind.and_then(|since| settled_since(&since, &sample)) {
                let is_judged = self.judge(rate, ready, sample.processes);
                span.behind = span.behind.filter(|_| !(is_judged || rate.is_whole()));
            }
            if saturation != Saturation::None {
                span.behind = span.behind.or(Some(sample));
            }
            let pods = sample.processes.map_or(ready, |processes| processes.busy + processes.idle);
            span.all = self.learn(span.all, sample, pods, false).or(Some(sample));
            if saturation == Saturation::Full {
                span.saturated = self.learn(span.saturated, sample, pods, true).or(Some(sample));
            }
            span.busy = busy.map(|now| self.learn_of_some(span.busy.take(), now));
        }
        self.span = Some(span);
    }

    /// Where others have less to do in their partitions, the busy ones show what one can do. What is still to be counted from.
    fn learn_of_some(&mut self, since: Option<BusyProcesses>, now: BusyProcesses) -> BusyProcesses {
        let pods = u32::try_from(now.ids.len()).unwrap_or(u32::MAX);
        let same = since.filter(|since| since.ids == now.ids).map(|since| since.total);
        let total = self.learn(same, now.total, pods, true).unwrap_or(now.total);
        BusyProcesses { total, ..now }
    }

    /// Pods that were busy have shown their capacity; others, that it is no less than what they did. What is still to be counted from.
    fn learn(&mut self, since: Option<Sample>, sample: Sample, pods: u32, is_busy: bool) -> Option<Sample> {
        let since = since?;
        let Some(rate) = settled_since(&since, &sample).filter(Rate::is_typical) else { return Some(since) };
        let each = rate.mean() / f64::from(pods.max(1));
        self.learnt = match self.learnt {
            // What all wait for together is nothing that one can do.
            Some(known) if is_busy && self.no_gain.is_some() => Some(known.max(each)),
            Some(known) if is_busy => Some(known + ALPHA * (each - known)),
            None if is_busy => Some(each),
            known => known.map(|known| known.max(each)),
        };
        None
    }

    /// Whether the pods that were added have shown something.
    fn judge(&mut self, rate: Rate, ready: u32, processes: Option<ProcessCounts>) -> bool {
        if self.no_gain.is_some_and(|enough| rate.is_whole() && rate.mean() >= enough) {
            self.no_gain = None;
        }
        let Some(trial) = self.trial.filter(|trial| ready >= trial.pods) else { return false };
        let enough = trial.before + MIN_GAIN * trial.expected;
        // Handlers that take long settle nothing for a while.
        if !rate.is_whole() && enough * rate.time.as_secs_f64() < as_f64(rate.least) {
            return false;
        }
        let busy = processes.map(|processes| processes.busy);
        // They show nothing where the busiest partitions are together still, and the others are what they got.
        let are_others_idle = trial.busy.zip(busy).is_some_and(|(before, busy)| busy <= before);
        let is_gain = rate.mean() >= enough || are_others_idle;
        let is_chance = !trial.is_doubted && rate.time < LONG_WINDOW;
        self.trial = (!is_gain && is_chance).then_some(Trial { is_doubted: true, ..trial });
        if !is_gain && !is_chance {
            (self.no_gain, self.learnt) = (Some(enough), Some(trial.each));
        }
        true
    }
}

/// What was settled in a window, or longer.
#[derive(Clone, Copy, Debug)]
struct Rate {
    settled: u64,
    time: Duration,
    /// Settled messages that make a rate.
    least: u64,
    /// Messages that pods worked at at its beginning, of those that are waited for.
    in_hand: u64,
}

impl Rate {
    fn mean(&self) -> f64 {
        as_f64(self.settled) / self.time.as_secs_f64()
    }

    fn is_whole(&self) -> bool {
        self.settled >= self.least
    }

    /// Whether handlers of more than one generation ended in it: those that began together may all do so in a part of it.
    fn is_typical(&self) -> bool {
        self.is_whole() && self.settled >= 2 * self.in_hand
    }
}

/// What was settled between two samples; None in less than a window. As many as pods had in hand make a rate: each of their handlers ended
/// once then, of those that began together, too.
fn settled_since(since: &Sample, sample: &Sample) -> Option<Rate> {
    let time = sample.at.saturating_sub(since.at);
    let in_hand = if time < LONG { since.in_hand() } else { 0 };
    let settled = sample.settled().saturating_sub(since.settled());
    (time >= WINDOW).then_some(Rate { settled, time, least: in_hand.max(MIN_SETTLED), in_hand })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many ready pods, of which all are busy where something waits, and what they settled.
    fn work(second: u64, settled: u64, pending: u64, ready: u32) -> Work {
        let at = Duration::from_secs(second);
        let sample = Sample { at, delivered: settled + 5, pending, ack_pending: 5, ..Sample::default() };
        let saturation = if pending > 0 { Saturation::Full } else { Saturation::None };
        Work { sample, saturation, ready, busy: None }
    }

    /// Runs so many ready pods for a while that settle so many a second together.
    fn run(
        capacity: &mut Capacity,
        seconds: std::ops::RangeInclusive<u64>,
        ready: u32,
        rate: u64,
        pending: u64,
    ) {
        let begin = *seconds.start();
        for second in seconds.step_by(2) {
            let settled = 10_000 * u64::from(ready) + (second - begin) * rate;
            capacity.add(work(second, settled, pending, ready));
        }
    }

    #[test]
    fn a_pod_that_waits_for_messages_teaches_nothing() {
        let mut capacity = Capacity::default();
        run(&mut capacity, 0..=60, 1, 1, 0);
        assert_eq!(capacity.learnt(), None);
        run(&mut capacity, 62..=80, 2, 200, 50);
        assert_eq!(capacity.learnt(), Some(100.0));
        run(&mut capacity, 82..=120, 4, 4, 0);
        assert_eq!(capacity.learnt(), Some(100.0));
        // That it can do no less than it did is known all the same.
        run(&mut capacity, 122..=140, 1, 150, 0);
        assert_eq!(capacity.learnt(), Some(150.0));
    }

    #[test]
    fn of_pods_with_partitions_those_that_are_busy_show_what_one_can_do() {
        let mut capacity = Capacity::default();
        for second in (0..=40).step_by(2) {
            // Two of four settle a hundred a second each, the others nearly nothing. Once it is another one, which settled more before.
            let (ids, before) = if second == 20 { (["a", "c"], 5_000) } else { (["a", "b"], 0) };
            let total = work(second, before + 200 * second, 50, 2).sample;
            let ids = ids.map(str::to_owned).into();
            let all = work(second, 5_000 + 202 * second, 0, 4);
            let processes = Some(ProcessCounts { busy: 2, idle: 2 });
            let sample = Sample { processes, ..all.sample };
            let (saturation, busy) = (Saturation::Partial, Some(BusyProcesses { ids, total }));
            capacity.add(Work { sample, saturation, busy, ..all });
            let expected = (second >= 16).then_some(100.0);
            assert_eq!(capacity.learnt(), expected, "{second}");
        }
    }

    #[test]
    fn what_is_delivered_again_to_another_pod_was_not_settled() {
        let mut capacity = Capacity::of(Some(6.0));
        for second in (0..=40).step_by(2) {
            // A pod is lost, and what it had comes again.
            let again = if second >= 20 { 1_024 } else { 0 };
            if second == 20 {
                capacity.restart(Duration::from_secs(second), 1);
                continue;
            }
            capacity.add(work(second, 6 * second + again, 0, 1));
        }
        assert_eq!(capacity.learnt(), Some(6.0));
    }

    #[test]
    fn handlers_that_take_a_minute_are_waited_for() {
        let mut capacity = Capacity::default();
        // Four at once end every minute.
        for second in (0..=240).step_by(2) {
            capacity.add(work(second, second / 60 * 4, 100, 1));
        }
        let learnt = capacity.learnt().unwrap();
        assert!((0.06..0.075).contains(&learnt), "{learnt}");
    }

    #[test]
    fn pods_that_never_get_ready_are_not_judged_and_those_that_do_by_their_share() {
        let mut capacity = Capacity::of(Some(100.0));
        capacity.scaled_up(4, 5, 400.0, None);
        capacity.limit_trial(4);
        run(&mut capacity, 0..=16, 4, 400, 50);
        assert!(!capacity.has_no_gain(), "the only one is on a node that cannot run it");
        // One of ten brings what one should.
        capacity.scaled_up(4, 14, 400.0, None);
        capacity.limit_trial(5);
        run(&mut capacity, 18..=34, 5, 490, 50);
        assert!(!capacity.has_no_gain());
    }

    #[test]
    fn pods_that_bring_nothing_are_no_gain_until_more_is_settled() {
        let mut capacity = Capacity::of(Some(100.0));
        capacity.scaled_up(2, 4, 200.0, None);
        run(&mut capacity, 0..=8, 2, 200, 50);
        assert!(!capacity.has_no_gain(), "those that came are not ready yet");
        let mut settled = 10_000_u64;
        let mut four = |capacity: &mut Capacity, seconds: std::ops::RangeInclusive<u64>, rate: u64| {
            for second in seconds.step_by(2) {
                settled += 2 * rate;
                capacity.add(work(second, settled, 50, 4));
            }
        };
        four(&mut capacity, 10..=26, 210);
        assert!(!capacity.has_no_gain(), "one window may be chance");
        four(&mut capacity, 28..=38, 210);
        assert!(capacity.has_no_gain());
        assert_eq!(capacity.learnt(), Some(100.0), "what they wait for together is nothing that one can do");
        four(&mut capacity, 40..=70, 230);
        assert!(!capacity.has_no_gain(), "what held them up is gone");
        capacity.scaled_up(4, 8, 230.0, None);
        run(&mut capacity, 72..=90, 8, 400, 50);
        assert!(!capacity.has_no_gain());
    }

    #[test]
    fn pods_that_bring_nothing_are_no_gain_also_where_some_have_partitions_with_less_to_do() {
        let judged = |rate| {
            let mut capacity = Capacity::of(Some(100.0));
            capacity.scaled_up(2, 4, 200.0, None);
            for second in (0..=30).step_by(2) {
                let saturation = Saturation::Partial;
                capacity.add(Work { saturation, ..work(second, second * rate, 500, 4) });
            }
            capacity.has_no_gain()
        };
        assert!(judged(210));
        assert!(!judged(300));
    }

    #[test]
    fn pods_that_got_idle_partitions_alone_show_nothing() {
        let judged = |busy| {
            let mut capacity = Capacity::of(Some(100.0));
            capacity.scaled_up(2, 4, 200.0, Some(1));
            for second in (0..=40).step_by(2) {
                let one = work(second, second * 210, 500, 4);
                let processes = Some(ProcessCounts { busy, idle: 4 - busy });
                let sample = Sample { processes, ..one.sample };
                capacity.add(Work { sample, saturation: Saturation::Partial, ..one });
            }
            (capacity.has_no_gain(), capacity.has_trial())
        };
        assert_eq!(judged(1), (false, false));
        assert_eq!(judged(2), (true, false));
    }

    #[test]
    fn what_long_handlers_bring_is_judged_once() {
        let judged = |generation: u64| {
            let mut capacity = Capacity::of(Some(1.0));
            capacity.scaled_up(5, 10, 5.0, None);
            for second in (0..=170).step_by(2) {
                // 640 at once end each 64 s.
                let sample =
                    Sample { ack_pending: 640, ..work(second, second / 64 * generation, 500, 10).sample };
                let sample = Sample { delivered: sample.delivered + 635, ..sample };
                capacity.add(Work { sample, ..work(second, 0, 500, 10) });
            }
            (capacity.has_no_gain(), capacity.has_trial())
        };
        assert_eq!(judged(640), (false, false));
        assert_eq!(judged(340), (true, false));
    }

    #[test]
    fn pods_that_went_before_they_were_judged_are_forgotten() {
        let mut capacity = Capacity::of(Some(100.0));
        capacity.scaled_up(20, 40, 2000.0, None);
        capacity.drop_trial();
        capacity.scaled_up(4, 8, 400.0, None);
        run(&mut capacity, 0..=30, 8, 800, 50);
        assert!(!capacity.has_no_gain());
    }

    #[test]
    fn pods_that_have_nothing_left_to_do_are_not_judged() {
        let mut capacity = Capacity::of(Some(100.0));
        capacity.scaled_up(1, 2, 100.0, None);
        run(&mut capacity, 0..=20, 2, 100, 0);
        run(&mut capacity, 22..=42, 2, 100, 50);
        assert!(!capacity.has_no_gain());
    }
}
