//! In: the pods of a workload that is deleted, and since when that is tried. Out: whether they have ended, are waited for, or have outlived the
//! time that they were given. Pure.
//!
//! All time is this process's monotonic clock: the times in a pod are the API server's, whose clock may be another.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use crate::deletion::Clock;

/// What a pod may take beyond its grace period until Kubernetes says that it is gone.
const MARGIN: Duration = Duration::from_secs(30);
/// The grace period that Kubernetes gives a pod which asks for none.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);
/// Names that a message has at most.
const MAX_NAMES: usize = 3;
/// Longest time that is counted with: a grace period may be any number of seconds.
const MAX_TIME: Duration = Duration::from_hours(24 * 365);

/// A pod that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningPod {
    pub name: String,
    pub lifetime: Lifetime,
}

/// How long a pod may run yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// How long it may take to stop once it is told.
    pub grace: Duration,
    /// When it has to have stopped, once it was seen to be told.
    pub ends: Option<Instant>,
}

impl Lifetime {
    /// The same of a pod that was seen before: it was told to stop then already.
    #[must_use]
    pub fn seen_before(self, before: &Self) -> Self {
        Self { ends: self.ends.map(|ends| before.ends.map_or(ends, |known| known.min(ends))), ..self }
    }
}

/// How long a pod may run yet that is seen now; None of one whose containers have all ended.
#[must_use]
pub fn lifetime(pod: &Pod, now: Instant) -> Option<Lifetime> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Failed" | "Succeeded")) {
        return None;
    }
    let declared = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    let seconds = pod.metadata.deletion_grace_period_seconds.or(declared);
    let grace = seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    let grace = grace.unwrap_or(DEFAULT_GRACE).min(MAX_TIME);
    Some(Lifetime { grace, ends: pod.metadata.deletion_timestamp.as_ref().map(|_| now + grace) })
}

/// How far the pods of a workload are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drain {
    /// None runs.
    Drained,
    /// They are waited for.
    Waiting {
        /// What runs, and until when it is waited for.
        message: String,
        /// How long the wait may last yet.
        left: Duration,
        /// Whether all should have stopped by now.
        is_late: bool,
    },
    /// They were waited for long enough; what still runs.
    Overdue(String),
}

/// Judges pods whose deletion is tried since a time. Those that nobody told to stop, as where no garbage collector runs, are given `timeout`
/// for it.
#[must_use]
pub fn drain(pods: &[RunningPod], tried: Clock, now: Instant, timeout: Duration) -> Drain {
    let timeout = timeout.min(MAX_TIME);
    let end_of = |pod: &RunningPod| {
        let Lifetime { grace, ends } = pod.lifetime;
        ends.unwrap_or_else(|| tried.started + grace.max(timeout))
    };
    let Some(grace_end) = pods.iter().map(end_of).max() else { return Drain::Drained };
    let bound = grace_end + MARGIN.min(timeout);
    let names = names(pods);
    let left = bound.saturating_duration_since(now);
    if left.is_zero() {
        return Drain::Overdue(names);
    }
    let since = tried.since;
    let until =
        since.saturating_add(bound.saturating_duration_since(tried.started)).unwrap_or(Timestamp::MAX);
    let message =
        format!("waiting since {since:.0} for pods to end, until {until:.0} at the latest: {names}");
    Drain::Waiting { message, left, is_late: grace_end <= now }
}

fn names(pods: &[RunningPod]) -> String {
    let mut names: Vec<_> = pods.iter().map(|pod| pod.name.as_str()).collect();
    names.sort_unstable();
    let more = names.len().saturating_sub(MAX_NAMES);
    names.truncate(MAX_NAMES);
    let names = names.join(", ");
    if more == 0 { names } else { format!("{names} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_mins(10);

    /// What is tried since a moment, which is 1000 s for people.
    fn tried(started: Instant) -> Clock {
        Clock { started, since: Timestamp::from_second(1000).unwrap() }
    }

    fn after(started: Instant, seconds: u64) -> Instant {
        started + Duration::from_secs(seconds)
    }

    fn pod(name: &str, grace: u64, ends: Option<Instant>) -> RunningPod {
        RunningPod { name: name.into(), lifetime: Lifetime { grace: Duration::from_secs(grace), ends } }
    }

    /// The seconds that are left so long after the first try, and whether all should have stopped.
    fn waits(pods: &[RunningPod], started: Instant, seconds: u64, timeout: Duration) -> Option<(u64, bool)> {
        match drain(pods, tried(started), after(started, seconds), timeout) {
            Drain::Waiting { left, is_late, .. } => Some((left.as_secs(), is_late)),
            Drain::Drained | Drain::Overdue(_) => None,
        }
    }

    #[test]
    fn pods_are_waited_for_as_long_as_the_slowest_may_take_and_a_margin() {
        let start = Instant::now();
        assert_eq!(drain(&[], tried(start), start, TIMEOUT), Drain::Drained);
        let pods = [pod("a", 30, Some(after(start, 30))), pod("b", 3600, Some(after(start, 3600)))];
        assert_eq!(waits(&pods, start, 0, TIMEOUT), Some((3630, false)));
        assert_eq!(waits(&pods, start, 3600, TIMEOUT), Some((30, true)));
        let overdue = drain(&pods, tried(start), after(start, 3630), TIMEOUT);
        assert_eq!(overdue, Drain::Overdue("a, b".into()));
        assert_eq!(waits(&pods[..1], start, 60, TIMEOUT), None);
    }

    #[test]
    fn pods_that_nobody_told_to_stop_are_given_the_deletion_timeout_for_it() {
        let start = Instant::now();
        assert_eq!(waits(&[pod("a", 30, None)], start, 0, TIMEOUT), Some((630, false)));
        assert_eq!(waits(&[pod("a", 3600, None)], start, 0, TIMEOUT), Some((3630, false)));
        assert_eq!(waits(&[pod("a", 30, None)], start, 0, Duration::from_secs(2)), Some((32, false)));
    }

    #[test]
    fn a_message_names_some_pods_and_when_it_ends() {
        let start = Instant::now();
        let pods = ["d", "c", "b", "a"].map(|name| pod(name, 30, Some(after(start, 30))));
        let Drain::Waiting { message, .. } = drain(&pods, tried(start), after(start, 1), TIMEOUT) else {
            panic!()
        };
        assert_eq!(
            message,
            "waiting since 1970-01-01T00:16:40Z for pods to end, until 1970-01-01T00:17:40Z at the latest: a, b, c and 1 more"
        );
    }

    #[test]
    fn a_pods_time_is_counted_from_when_it_was_first_seen_to_be_told_whatever_the_clock_of_others_says() {
        let object = |grace: i64| -> Pod {
            let told = serde_json::json!({
                "name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": grace,
            });
            serde_json::from_value(serde_json::json!({ "metadata": told })).unwrap()
        };
        let start = Instant::now();
        let first = lifetime(&object(60), start).unwrap();
        assert_eq!(first.ends, Some(after(start, 60)));
        let again = |grace| lifetime(&object(grace), after(start, 20)).unwrap().seen_before(&first).ends;
        assert_eq!(again(60), Some(after(start, 60)));
        // It was told to be faster.
        assert_eq!(again(10), Some(after(start, 30)));
        assert!(lifetime(&object(i64::MAX), start).unwrap().ends > Some(start));
    }
}
