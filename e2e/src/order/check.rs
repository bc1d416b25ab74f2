//! Whether a history is in order. Pure.
//!
//! In: a history, and how many events of each key were published. Out: what was counted, and every violation.
//!
//! A process that was killed ends what it handled, whatever it wrote. One that was frozen past its lease may have begun what its
//! successor handles meanwhile, or begin right after it is woken what its successor has handled: that is all that is allowed, and is
//! counted as `unfenced`. An event is repeated only where a process that began it was interrupted later.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use super::history::{Entry, History, Interruption, Step};

/// A frozen process was past its lease after this at the earliest: its last renewal was sent before, 5 s apart, and
/// a request takes 3 s at most.
const FROZEN_PAST_LEASE: Duration = Duration::from_secs(22);
/// A process looks at its lease right before it begins. It may be frozen between the two, and begins this long after it is woken at
/// the latest: a busy machine takes its time to wake it.
const MAX_WAKE_UP: Duration = Duration::from_millis(200);
/// Maximum violations of one kind that are listed.
const MAX_LISTED: usize = 5;

/// What is counted in a history in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Events that were handled to their end.
    pub handled: u64,
    /// Events that were begun more than once.
    pub repeated: u64,
    /// Attempts that began beside those of a process that was frozen past its lease: while it had begun an event of the same key, or
    /// its own, where it was frozen between its look at the lease and the begin.
    pub unfenced: u64,
    /// The epochs under which partitions were handled.
    pub epochs: usize,
}

/// What is not in order.
#[derive(Clone, PartialEq, Eq)]
pub struct Violations {
    report: Report,
    by_kind: BTreeMap<&'static str, Vec<Violation>>,
}

/// A violation, and the processes involved.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Violation {
    what: String,
    processes: Vec<usize>,
}

impl Violations {
    fn listed(&self) -> impl Iterator<Item = &Violation> {
        self.by_kind.values().flat_map(|violations| violations.iter().take(MAX_LISTED))
    }

    /// The processes that those are about that are listed.
    #[must_use]
    pub fn processes(&self) -> BTreeSet<usize> {
        self.listed().flat_map(|violation| violation.processes.iter().copied()).collect()
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "violations in {:?}:", self.report)?;
        for (kind, violations) in &self.by_kind {
            write!(formatter, "\n{} times: {kind}", violations.len())?;
        }
        self.listed().try_for_each(|violation| write!(formatter, "\n{}", violation.what))
    }
}

/// A test that unwraps a report prints what people read.
impl fmt::Debug for Violations {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// The newest event of a key.
#[derive(Debug)]
struct Newest {
    sequence: u64,
    number: u64,
    is_done: bool,
    running: Option<usize>,
    /// Who began it so far, and when.
    begun: Vec<(usize, Duration)>,
}

impl Newest {
    fn described(&self) -> String {
        let Self { sequence, is_done, begun, .. } = self;
        let begun: Vec<_> = begun.iter().map(|(by, at)| format!("{by} at {:.3}", at.as_secs_f64())).collect();
        format!(", after {sequence} (done: {is_done}) was begun by {}", begun.join(", "))
    }
}

struct Checker<'h> {
    history: &'h History,
    keys: BTreeMap<&'h str, Newest>,
    epochs: BTreeMap<u32, u64>,
    seen_epochs: BTreeSet<u64>,
    report: Report,
    violations: BTreeMap<&'static str, Vec<Violation>>,
}

/// Judges a history.
///
/// # Errors
///
/// Its violations.
pub fn check(history: &History, published: &BTreeMap<String, u64>) -> Result<Report, Violations> {
    let mut checker = Checker {
        history,
        keys: BTreeMap::new(),
        epochs: BTreeMap::new(),
        seen_epochs: BTreeSet::new(),
        report: Report::default(),
        violations: BTreeMap::new(),
    };
    for entry in &history.entries {
        match entry.step {
            Step::Begin => checker.begin(entry),
            step => checker.end(entry, step),
        }
    }
    checker.is_complete(published);
    checker.report.epochs = checker.seen_epochs.len();
    let Checker { report, violations, .. } = checker;
    if violations.is_empty() { Ok(report) } else { Err(Violations { report, by_kind: violations }) }
}

impl<'h> Checker<'h> {
    fn begin(&mut self, entry: &'h Entry) {
        if !self.is_of_the_newest_epoch(entry) {
            if self.just_woke(entry.process, entry.at) {
                self.report.unfenced += 1;
                return;
            }
            let detail = format!(", {} after {}", entry.epoch, self.epochs[&entry.partition]);
            self.violation(entry, "its epoch is older than one before", &detail, &[]);
        }
        let Entry { at, process, sequence, number, .. } = *entry;
        let Some(newest) = self.keys.get(entry.key.as_str()) else {
            let newest = Newest {
                sequence,
                number,
                is_done: false,
                running: Some(process),
                begun: vec![(process, at)],
            };
            if number != 0 {
                self.violation(entry, "the first events of the key were left out", "", &[]);
            }
            self.keys.insert(&entry.key, newest);
            return;
        };
        if let Some(other) = newest.running.filter(|other| !self.was_killed(*other, at)) {
            if self.is_past_its_lease(other, at) {
                self.report.unfenced += 1;
            } else {
                let detail = format!(", process {other} handles {}", newest.sequence);
                self.violation(entry, "another process handles an event of the key", &detail, &[other]);
            }
        }
        let newest = &self.keys[entry.key.as_str()];
        let problem = match sequence {
            _ if sequence < newest.sequence => Some("a later event began before"),
            _ if sequence == newest.sequence => {
                let is_legal = newest.begun.iter().all(|(by, since)| self.is_interrupted(*by, *since, at));
                (!is_legal).then_some("it is repeated, and no process that began it was interrupted")
            }
            _ if !newest.is_done => Some("an earlier event is not done"),
            _ if number != newest.number + 1 => Some("the event before it was left out"),
            _ => None,
        };
        if let Some(problem) = problem {
            let detail = newest.described();
            let by: Vec<_> = newest.begun.iter().map(|(by, _)| *by).collect();
            self.violation(entry, problem, &detail, &by);
        }
        let Some(newest) = self.keys.get_mut(entry.key.as_str()) else { return };
        if sequence == newest.sequence {
            self.report.repeated += u64::from(newest.begun.len() == 1);
            newest.begun.push((process, at));
        } else {
            *newest = Newest { sequence, number, is_done: false, running: None, begun: vec![(process, at)] };
        }
        newest.running = Some(process);
    }

    fn end(&mut self, entry: &'h Entry, step: Step) {
        let is_running = |newest: &&mut Newest| newest.sequence == entry.sequence;
        let Some(newest) = self.keys.get_mut(entry.key.as_str()).filter(is_running) else {
            // What a frozen process goes on with, after its successor went on to the next event.
            if !self.was_frozen_before(entry.process, entry.at) {
                self.violation(entry, "an event ends that is not the newest of its key", "", &[]);
            }
            return;
        };
        if newest.running == Some(entry.process) {
            newest.running = None;
        }
        if step == Step::Done && !newest.is_done {
            newest.is_done = true;
            self.report.handled += 1;
        }
    }

    /// Epochs of a partition grow, and who begins under an old one has not looked at its lease.
    fn is_of_the_newest_epoch(&mut self, entry: &'h Entry) -> bool {
        self.seen_epochs.insert(entry.epoch);
        let newest = self.epochs.entry(entry.partition).or_default();
        *newest = entry.epoch.max(*newest);
        entry.epoch == *newest
    }

    fn is_complete(&mut self, published: &BTreeMap<String, u64>) {
        for (key, count) in published.iter().filter(|(_, count)| **count > 0) {
            let newest = self.keys.get(key.as_str());
            let is_whole = newest.is_some_and(|newest| newest.is_done && newest.number + 1 == *count);
            if !is_whole {
                let what = format!("of {count} events of key {key}, the newest is {newest:?}");
                let processes = newest.iter().flat_map(|newest| newest.begun.iter().map(|(by, _)| *by));
                let violation = Violation { what, processes: processes.collect() };
                self.violations.entry("events are not handled").or_default().push(violation);
            }
        }
    }

    fn interruptions(&self, process: usize) -> impl Iterator<Item = (Duration, Interruption)> {
        let of_it =
            move |(of, at, how): &(usize, Duration, Interruption)| (*of == process).then_some((*at, *how));
        self.history.interruptions.iter().filter_map(of_it)
    }

    fn was_killed(&self, process: usize, by: Duration) -> bool {
        self.interruptions(process).any(|(at, how)| how == Interruption::Killed && at <= by)
    }

    fn is_past_its_lease(&self, process: usize, now: Duration) -> bool {
        let is_past = |(at, how): (Duration, Interruption)| match how {
            Interruption::Frozen(until) => at + FROZEN_PAST_LEASE <= now && now <= until + MAX_WAKE_UP,
            Interruption::Killed => false,
        };
        self.interruptions(process).any(is_past)
    }

    /// Whether it was frozen past its lease, and woke a moment ago.
    fn just_woke(&self, process: usize, now: Duration) -> bool {
        let woke = |(at, how): (Duration, Interruption)| match how {
            Interruption::Frozen(until) => {
                at + FROZEN_PAST_LEASE <= until && until <= now && now <= until + MAX_WAKE_UP
            }
            Interruption::Killed => false,
        };
        self.interruptions(process).any(woke)
    }

    fn was_frozen_before(&self, process: usize, now: Duration) -> bool {
        self.interruptions(process).any(|(at, how)| matches!(how, Interruption::Frozen(_)) && at <= now)
    }

    fn is_interrupted(&self, process: usize, since: Duration, by: Duration) -> bool {
        self.interruptions(process).any(|(at, how)| match how {
            Interruption::Killed => since <= at && at <= by,
            Interruption::Frozen(until) => since <= until + MAX_WAKE_UP && at <= by,
        })
    }

    fn violation(&mut self, entry: &Entry, kind: &'static str, detail: &str, others: &[usize]) {
        let Entry { at, process, key, sequence, number, .. } = entry;
        let at = at.as_secs_f64();
        let what = format!(
            "at {at:.3}: process {process}, event {sequence} (number {number} of key {key}): {kind}{detail}"
        );
        let processes = others.iter().chain([process]).copied().collect();
        self.violations.entry(kind).or_default().push(Violation { what, processes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries of partition 1 with the key k, as `(seconds, process, step, sequence, epoch)`; numbers count sequences by tens.
    fn history(
        entries: &[(u64, usize, Step, u64, u64)],
        interruptions: &[(usize, u64, Interruption)],
    ) -> History {
        let entry = |(at, process, step, sequence, epoch): &(u64, usize, Step, u64, u64)| Entry {
            at: Duration::from_secs(*at),
            process: *process,
            step: *step,
            key: "k".to_owned(),
            partition: 1,
            sequence: *sequence,
            epoch: *epoch,
            number: sequence / 10,
        };
        let interruption =
            |(process, at, how): &(usize, u64, Interruption)| (*process, Duration::from_secs(*at), *how);
        History {
            entries: entries.iter().map(entry).collect(),
            interruptions: interruptions.iter().map(interruption).collect(),
        }
    }

    fn judged(
        entries: &[(u64, usize, Step, u64, u64)],
        interruptions: &[(usize, u64, Interruption)],
        published: u64,
    ) -> Result<Report, String> {
        let judged = check(&history(entries, interruptions), &[("k".to_owned(), published)].into());
        judged.map_err(|violations| violations.to_string())
    }

    fn frozen_until(seconds: u64) -> Interruption {
        Interruption::Frozen(Duration::from_secs(seconds))
    }

    use Interruption::Killed;
    use Step::{Abandoned, Begin, Done};

    #[test]
    fn events_one_after_another_by_one_owner_after_another_are_in_order() {
        let entries = [
            (1, 0, Begin, 0, 5),
            (2, 0, Done, 0, 5),
            (3, 0, Begin, 10, 5),
            (4, 0, Done, 10, 5),
            (5, 1, Begin, 20, 9),
            (6, 1, Done, 20, 9),
        ];
        let expected = Report { handled: 3, repeated: 0, unfenced: 0, epochs: 2 };
        assert_eq!(judged(&entries, &[], 3), Ok(expected));
    }

    #[test]
    fn what_is_left_out_or_not_ended_is_found() {
        let entries = [(1, 0, Begin, 0, 5), (2, 0, Done, 0, 5), (3, 0, Begin, 10, 5)];
        assert!(judged(&entries, &[], 2).unwrap_err().contains("the newest is Some"));
        assert!(judged(&entries[..2], &[], 2).unwrap_err().contains("of 2 events of key k"));
        assert!(judged(&[], &[], 1).unwrap_err().contains("the newest is None"));
        let entries = [(1, 0, Begin, 0, 5), (2, 0, Done, 0, 5), (3, 0, Begin, 20, 5), (4, 0, Done, 20, 5)];
        assert!(judged(&entries, &[], 3).unwrap_err().contains("the event before it was left out"));
        let entries = [(1, 0, Begin, 10, 5), (2, 0, Done, 10, 5)];
        assert!(judged(&entries, &[], 2).unwrap_err().contains("the first events of the key were left out"));
    }

    #[test]
    fn two_at_a_time_are_found_unless_one_was_killed_or_frozen_past_its_lease() {
        let entries = [(1, 0, Begin, 0, 5), (60, 1, Begin, 0, 9), (61, 1, Done, 0, 9)];
        assert!(judged(&entries, &[], 1).unwrap_err().contains("process 0 handles 0"));
        assert_eq!(judged(&entries, &[(0, 50, Killed)], 1).unwrap().repeated, 1);
        assert!(judged(&entries, &[(0, 61, Killed)], 1).unwrap_err().contains("process 0 handles"));
        assert_eq!(judged(&entries, &[(0, 30, frozen_until(70))], 1).unwrap().unfenced, 1);
        for too_late in [(0, 39, frozen_until(70)), (0, 30, frozen_until(59))] {
            assert!(judged(&entries, &[too_late], 1).unwrap_err().contains("process 0 handles"));
        }
    }

    #[test]
    fn an_event_that_is_repeated_without_an_interruption_is_found() {
        let entries = [(1, 0, Begin, 0, 5), (2, 0, Done, 0, 5), (8, 1, Begin, 0, 9), (9, 1, Done, 0, 9)];
        assert!(judged(&entries, &[], 1).unwrap_err().contains("no process that began it was interrupted"));
        assert_eq!(judged(&entries, &[(0, 3, Killed)], 1).unwrap().repeated, 1);
        assert!(judged(&entries, &[(1, 3, Killed)], 1).is_err(), "the other process was killed");
        let entries = [(1, 0, Begin, 0, 5), (2, 0, Abandoned, 0, 5), (8, 1, Begin, 0, 9), (9, 1, Done, 0, 9)];
        assert!(judged(&entries, &[], 1).is_err());
        assert_eq!(judged(&entries, &[(0, 1, frozen_until(2))], 1).unwrap().repeated, 1);
    }

    #[test]
    fn violations_are_counted_by_kind_and_the_first_of_each_are_listed() {
        let mut entries = vec![(1, 0, Begin, 0, 5), (2, 0, Done, 0, 5)];
        for second in (3..17).step_by(2) {
            entries.extend([(second, 1, Begin, 0, 5), (second + 1, 1, Done, 0, 5)]);
        }
        let violations = check(&history(&entries, &[]), &[("k".to_owned(), 2)].into()).unwrap_err();
        let text = violations.to_string();
        assert!(
            text.contains("1 times: events are not handled") && text.contains("7 times: it is repeated"),
            "{text}"
        );
        assert_eq!(text.matches("\nat ").count(), MAX_LISTED, "{text}");
        assert_eq!(violations.processes(), [0, 1].into());
    }

    #[test]
    fn events_out_of_order_are_found() {
        let entries = [(1, 0, Begin, 0, 5), (2, 0, Abandoned, 0, 5), (3, 0, Begin, 10, 5)];
        assert!(judged(&entries, &[], 2).unwrap_err().contains("an earlier event is not done"));
        let done = [(1, 0, Begin, 0, 5), (2, 0, Done, 0, 5), (3, 0, Begin, 10, 5), (4, 0, Done, 10, 5)];
        let back = [&done[..], &[(5, 0, Begin, 0, 5)]].concat();
        assert!(judged(&back, &[(0, 4, Killed)], 2).unwrap_err().contains("a later event began before"));
    }

    #[test]
    fn who_begins_under_an_old_epoch_is_found() {
        let entries = [(1, 1, Begin, 0, 9), (2, 1, Done, 0, 9), (3, 0, Begin, 10, 5), (4, 0, Done, 10, 5)];
        assert!(judged(&entries, &[], 2).unwrap_err().contains("5 after 9"));
    }

    #[test]
    fn what_a_process_begins_that_was_frozen_after_its_look_at_the_lease_is_counted_and_changes_nothing() {
        let entries = [
            (40, 1, Begin, 0, 9),
            (41, 1, Done, 0, 9),
            (42, 1, Begin, 10, 9),
            (43, 0, Begin, 0, 5),
            (43, 0, Done, 0, 5),
            (44, 1, Done, 10, 9),
            (45, 1, Begin, 20, 9),
            (46, 1, Done, 20, 9),
        ];
        let expected = Report { handled: 3, repeated: 0, unfenced: 1, epochs: 2 };
        assert_eq!(judged(&entries, &[(0, 2, frozen_until(43))], 3), Ok(expected));
        let before =
            [(43, 0, Begin, 0, 5), (43, 0, Abandoned, 0, 5), (44, 1, Begin, 0, 9), (45, 1, Done, 0, 9)];
        let expected = Report { handled: 1, repeated: 1, unfenced: 0, epochs: 2 };
        assert_eq!(
            judged(&before, &[(0, 2, Interruption::Frozen(Duration::from_millis(42_900)))], 1),
            Ok(expected)
        );
        let others = [(2, frozen_until(44)), (2, frozen_until(42)), (2, Killed), (41, frozen_until(43))];
        for (at, other) in others {
            let violations = judged(&entries, &[(0, at, other)], 3).unwrap_err();
            assert!(violations.contains("5 after 9"), "{violations}");
        }
    }

    #[test]
    fn what_a_frozen_process_ends_after_its_successor_went_on_is_no_violation() {
        let entries = [
            (1, 0, Begin, 0, 5),
            (40, 1, Begin, 0, 9),
            (41, 1, Done, 0, 9),
            (42, 1, Begin, 10, 9),
            (43, 0, Done, 0, 5),
            (44, 1, Done, 10, 9),
        ];
        let frozen = [(0, 2, frozen_until(43))];
        let expected = Report { handled: 2, repeated: 1, unfenced: 1, epochs: 2 };
        assert_eq!(judged(&entries, &frozen, 2), Ok(expected));
        let late = (45, 0, Done, 0, 5);
        assert!(judged(&[&entries[..], &[late]].concat(), &[], 2).is_err());
    }
}
