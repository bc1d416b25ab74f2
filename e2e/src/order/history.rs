//! What processes wrote of their attempts. Pure.
//!
//! In: lines of the form `<nanoseconds> begin|done|abandoned <subject> <sequence> <epoch> <number>`. The time is of the monotonic clock that all
//! processes of the machine share, the subject is as it is stored (`<prefix>.<key>.<event>.<partition>`), the number counts the events
//! of its key. Out: entries in the order of time. Other lines are the program's log.

use std::time::Duration;

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The handler begins.
    Begin,
    /// The handler ended, and the event is acknowledged.
    Done,
    /// The handler was ended before its time.
    Abandoned,
}

/// A line that a process wrote of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When, by the monotonic clock.
    pub at: Duration,
    /// Which process: the index of its log.
    pub process: usize,
    /// What.
    pub step: Step,
    /// The event's key.
    pub key: String,
    /// The partition that the server stored it in.
    pub partition: u32,
    /// Sequence of the event in its stream.
    pub sequence: u64,
    /// The epoch that the handler was given.
    pub epoch: u64,
    /// The event's number among those of its key, from 0.
    pub number: u64,
}

/// How a process was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// SIGKILL.
    Killed,
    /// SIGSTOP, and SIGCONT at this time.
    Frozen(Duration),
}

/// Everything that happened.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// In the order of time.
    pub entries: Vec<Entry>,
    /// By whoever interrupted: the process, when, and how.
    pub interruptions: Vec<(usize, Duration, Interruption)>,
}

impl History {
    /// Of the logs of processes.
    ///
    /// # Errors
    ///
    /// A line begins like an entry and is none. The last line of a killed process may be cut off.
    pub fn read<'t>(
        logs: impl IntoIterator<Item = &'t str>,
        interruptions: Vec<(usize, Duration, Interruption)>,
    ) -> Result<Self, String> {
        let mut entries = Vec::new();
        for (process, log) in logs.into_iter().enumerate() {
            let whole = log.rfind('\n').map_or("", |end| &log[..end]);
            for line in whole.lines() {
                entries.extend(entry(process, line)?);
            }
        }
        // A stable sort: lines of one process keep their order.
        entries.sort_by_key(|entry| entry.at);
        Ok(Self { entries, interruptions })
    }
}

/// The entry that a line is, if it is one.
fn entry(process: usize, line: &str) -> Result<Option<Entry>, String> {
    let words: Vec<_> = line.split_whitespace().collect();
    let step = match words.get(1) {
        Some(&"begin") => Step::Begin,
        Some(&"done") => Step::Done,
        Some(&"abandoned") => Step::Abandoned,
        _ => return Ok(None),
    };
    let read = || {
        let [at, _, subject, sequence, epoch, number] = words[..] else { return None };
        let mut tokens = subject.rsplit('.');
        let partition = tokens.next()?.parse().ok()?;
        let key = tokens.nth(1)?.to_owned();
        let at = Duration::from_nanos(at.parse().ok()?);
        let (sequence, epoch, number) = (sequence.parse().ok()?, epoch.parse().ok()?, number.parse().ok()?);
        Some(Entry { at, process, step, key, partition, sequence, epoch, number })
    };
    read().map(Some).ok_or_else(|| format!("process {process} wrote a line that is no entry: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_all_processes_are_in_the_order_of_time() {
        let one = "# joins\n100 begin orders.k7.placed.3 12 90 0\n300 done orders.k7.placed.3 12 90 0\n400 begin orders.k7.pl";
        let other = "INFO ready\n200 begin orders.k8.placed.1 13 91 4\n";
        let history = History::read([one, other], Vec::new()).unwrap();
        let seen: Vec<_> = history
            .entries
            .iter()
            .map(|it| (it.at.as_nanos(), it.process, it.step, it.key.as_str()))
            .collect();
        let expected = [(100, 0, Step::Begin, "k7"), (200, 1, Step::Begin, "k8"), (300, 0, Step::Done, "k7")];
        assert_eq!(seen, expected);
        let Entry { partition, sequence, epoch, number, .. } = history.entries[1];
        assert_eq!((partition, sequence, epoch, number), (1, 13, 91, 4));
    }

    #[test]
    fn a_line_that_cannot_be_read_is_an_error() {
        for line in ["1 begin a.b.c.x 1 2 3\n", "1 done a.b.c.1 1 2\n", "x abandoned a.b.c.1 1 2 3\n"] {
            assert!(History::read([line], Vec::new()).unwrap_err().contains("no entry"));
        }
    }
}
