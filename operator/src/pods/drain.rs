//! In: the pods of a workload that is deleted, and since when that is tried. Out: whether they have ended, are waited for, or have outlived the
//! time that they were given. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

/// What a pod may take beyond its grace period until Kubernetes says that it is gone.
const MARGIN: Duration = Duration::from_secs(30);
/// The grace period that Kubernetes gives a pod which asks for none.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);
/// Names that a message has at most.
const MAX_NAMES: usize = 3;

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
    /// When it has to have stopped, once it was told.
    pub ends: Option<Timestamp>,
}

/// How long a pod may run yet; None of one whose containers have all ended.
#[must_use]
pub fn lifetime(pod: &Pod) -> Option<Lifetime> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Failed" | "Succeeded")) {
        return None;
    }
    let declared = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    let seconds = pod.metadata.deletion_grace_period_seconds.or(declared);
    let grace = seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    Some(Lifetime {
        grace: grace.unwrap_or(DEFAULT_GRACE),
        ends: pod.metadata.deletion_timestamp.as_ref().map(|time| time.0),
    })
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

/// Judges pods whose deletion is tried `since` a time. Those that nobody told to stop, as where no garbage collector runs, are given `timeout`
/// for it.
#[must_use]
pub fn drain(pods: &[RunningPod], since: Timestamp, now: Timestamp, timeout: Duration) -> Drain {
    let end_of = |pod: &RunningPod| {
        let Lifetime { grace, ends } = pod.lifetime;
        ends.unwrap_or_else(|| later(since, grace.max(timeout)))
    };
    let Some(grace_end) = pods.iter().map(end_of).max() else { return Drain::Drained };
    let bound = later(grace_end, MARGIN.min(timeout));
    let names = names(pods);
    match Duration::try_from(bound.duration_since(now)) {
        Ok(left) if !left.is_zero() => Drain::Waiting {
            message: format!(
                "waiting since {since:.0} for pods to end, until {bound:.0} at the latest: {names}"
            ),
            left,
            is_late: grace_end <= now,
        },
        _ => Drain::Overdue(names),
    }
}

fn later(time: Timestamp, by: Duration) -> Timestamp {
    time.saturating_add(by).unwrap_or(Timestamp::MAX)
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

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(name: &str, grace: u64, ends: Option<i64>) -> RunningPod {
        RunningPod {
            name: name.into(),
            lifetime: Lifetime { grace: Duration::from_secs(grace), ends: ends.map(at) },
        }
    }

    /// The seconds that are left, and whether all should have stopped.
    fn waits(pods: &[RunningPod], now: i64, timeout: Duration) -> Option<(u64, bool)> {
        match drain(pods, at(1000), at(now), timeout) {
            Drain::Waiting { left, is_late, .. } => Some((left.as_secs(), is_late)),
            Drain::Drained | Drain::Overdue(_) => None,
        }
    }

    #[test]
    fn pods_are_waited_for_as_long_as_the_slowest_may_take_and_a_margin() {
        assert_eq!(drain(&[], at(1000), at(1000), TIMEOUT), Drain::Drained);
        let pods = [pod("a", 30, Some(1030)), pod("b", 3600, Some(4600))];
        assert_eq!(waits(&pods, 1000, TIMEOUT), Some((3630, false)));
        assert_eq!(waits(&pods, 4600, TIMEOUT), Some((30, true)));
        assert_eq!(drain(&pods, at(1000), at(4630), TIMEOUT), Drain::Overdue("a, b".into()));
        // Whatever the operator's start was.
        assert_eq!(waits(&pods[..1], 1060, TIMEOUT), None);
    }

    #[test]
    fn pods_that_nobody_told_to_stop_are_given_the_deletion_timeout_for_it() {
        assert_eq!(waits(&[pod("a", 30, None)], 1000, TIMEOUT), Some((630, false)));
        assert_eq!(waits(&[pod("a", 3600, None)], 1000, TIMEOUT), Some((3630, false)));
        assert_eq!(waits(&[pod("a", 30, None)], 1000, Duration::from_secs(2)), Some((32, false)));
    }

    #[test]
    fn a_message_names_some_pods_and_when_it_ends() {
        let pods = ["d", "c", "b", "a"].map(|name| pod(name, 30, Some(1030)));
        let Drain::Waiting { message, .. } = drain(&pods, at(1000), at(1001), TIMEOUT) else { panic!() };
        assert_eq!(
            message,
            "waiting since 1970-01-01T00:16:40Z for pods to end, until 1970-01-01T00:17:40Z at the latest: a, b, c and 1 more"
        );
    }
}
