//! In: how the partitions of a consumer are shared out, and whether pods are wanted. Out: what the status of its object says of that. Pure.

use std::fmt::Write as _;

use jetwright_crds::{
    conditions::{Reason, State},
    consumer::{EmptyingPod, PartitionsStatus, WaitingPartition},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    registry::Known,
    sharing::{Sharing, Wait, Waiting},
};
use crate::scale_down::words;

/// Most partitions that a message names.
const MAX_NAMED: usize = 3;

/// What a status says of an ordered consumer's partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub condition: State,
    /// None where it is not known: what was said before stays.
    pub status: Option<PartitionsStatus>,
}

/// What the status says. `is_scaled_to_zero`: there are no pods on purpose.
#[must_use]
pub fn view(known: &Known, is_scaled_to_zero: bool) -> View {
    match known {
        Known::Unavailable(problem) => View {
            condition: State {
                status: None,
                reason: Reason::BucketUnavailable,
                message: format!("partitions cannot be shared out: {problem}"),
            },
            status: None,
        },
        Known::Shared(sharing) => View {
            condition: condition(sharing, is_scaled_to_zero),
            status: Some(status(sharing, is_scaled_to_zero)),
        },
    }
}

fn condition(sharing: &Sharing, is_scaled_to_zero: bool) -> State {
    let Sharing { count, owned, draining, unowned, waiting, emptying } = sharing;
    let (status, reason, mut message) = match () {
        () if owned == count => (true, Reason::Owned, format!("all {count} partitions have their owners")),
        () if is_scaled_to_zero && unowned == count => {
            (true, Reason::NotNeeded, "there are no pods, so no partition needs an owner".to_owned())
        }
        () if *unowned > 0 => {
            let mut what = format!("{unowned} of {count} partitions have no owner");
            if !waiting.is_empty() {
                let _ = write!(what, ": {}", waits(waiting));
            }
            (false, Reason::WithoutOwner, what)
        }
        () => {
            let what = format!("{draining} of {count} partitions are handed over: {}", waits(waiting));
            (false, Reason::HandingOver, what)
        }
    };
    let emptying = emptying.iter().filter(|pod| pod.left > 0 && !is_scaled_to_zero);
    let emptying = emptying.take(MAX_NAMED).map(|pod| (pod.pod.as_str(), Some(pod.left)));
    if let Some(emptying) = words(emptying) {
        let _ = write!(message, "; {emptying}");
    }
    State { status: Some(status), reason, message }
}

fn waits(waiting: &[Waiting]) -> String {
    let words = |Waiting { partition, wait, since }: &Waiting| match wait {
        Wait::Finish(who) => {
            format!("{partition} waits since {since:.0} for {who} to finish what it has begun")
        }
        Wait::Take(who) => format!("{partition} waits since {since:.0} for {who} to take it"),
        Wait::Join => format!("{partition} waits since {since:.0} for a pod or program to join"),
    };
    let named: Vec<_> = waiting.iter().take(MAX_NAMED).map(words).collect();
    named.join("; ")
}

fn status(sharing: &Sharing, is_scaled_to_zero: bool) -> PartitionsStatus {
    let Sharing { count, owned, draining, unowned, waiting, emptying } = sharing;
    let waits = |Waiting { partition, wait, since }: &Waiting| WaitingPartition {
        partition: *partition,
        awaited: match wait {
            Wait::Finish(who) | Wait::Take(who) => Some(who.clone()),
            Wait::Join => None,
        },
        since: Time(k8s_openapi::jiff::Timestamp::from_second(since.as_second()).unwrap_or_default()),
    };
    let waiting = if is_scaled_to_zero { Vec::new() } else { waiting.iter().map(waits).collect() };
    let emptying = emptying.iter().filter(|_| !is_scaled_to_zero).take(PartitionsStatus::MAX_EMPTYING);
    let emptying = emptying.map(|pod| EmptyingPod { pod: pod.pod.clone(), partitions: pod.left });
    PartitionsStatus {
        count: *count,
        owned: *owned,
        draining: *draining,
        unowned: *unowned,
        waiting,
        emptying: emptying.collect(),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::partitions::sharing::Emptying;

    fn sharing(owned: u32, waits: &[Wait]) -> Known {
        let is_draining = |wait: &&Wait| matches!(wait, Wait::Finish(_));
        let draining = u32::try_from(waits.iter().filter(is_draining).count()).unwrap();
        let unowned = u32::try_from(waits.len()).unwrap() - draining;
        let waiting = (owned..).zip(waits).map(|(partition, wait)| Waiting {
            partition,
            wait: wait.clone(),
            since: Timestamp::from_second(60).unwrap(),
        });
        let count = owned + draining + unowned;
        let waiting = waiting.collect();
        Known::Shared(Sharing { count, owned, draining, unowned, waiting, emptying: Vec::new() })
    }

    fn said(known: &Known, is_scaled_to_zero: bool) -> (Option<bool>, Reason, String) {
        let State { status, reason, message } = view(known, is_scaled_to_zero).condition;
        (status, reason, message)
    }

    #[test]
    fn the_condition_says_whose_wait_lasts_since_when() {
        let all = said(&sharing(4, &[]), false);
        assert_eq!(all, (Some(true), Reason::Owned, "all 4 partitions have their owners".into()));
        let (finish, take) = (Wait::Finish("a-1".into()), Wait::Take("a-2".into()));
        let moving = said(&sharing(3, std::slice::from_ref(&finish)), false);
        assert_eq!(moving.1, Reason::HandingOver);
        assert_eq!(
            moving.2,
            "1 of 4 partitions are handed over: 3 waits since 1970-01-01T00:01:00Z for a-1 to finish what it has begun"
        );
        let (status, reason, message) = said(&sharing(1, &[finish, take, Wait::Join, Wait::Join]), false);
        assert_eq!((status, reason), (Some(false), Reason::WithoutOwner));
        assert!(message.starts_with("3 of 5 partitions have no owner: 1 waits"), "{message}");
        assert!(
            message.ends_with("; 3 waits since 1970-01-01T00:01:00Z for a pod or program to join"),
            "{message}"
        );
    }

    #[test]
    fn pods_that_a_scale_down_empties_are_named_with_what_they_have() {
        let Known::Shared(mut emptying) = sharing(3, &[Wait::Finish("a-1".into())]) else { panic!() };
        emptying.emptying = [("a-1", 1), ("a-2", 0)]
            .map(|(pod, left)| Emptying { pod: pod.into(), uid: String::new(), left })
            .into();
        let View { condition, status } = view(&Known::Shared(emptying), false);
        assert!(
            condition.message.ends_with("what it has begun; emptying pod a-1: 1 partition left"),
            "{condition:?}"
        );
        let of = |pod: &str, partitions| EmptyingPod { pod: pod.into(), partitions };
        assert_eq!(status.unwrap().emptying, [of("a-1", 1), of("a-2", 0)]);
    }

    #[test]
    fn without_pods_on_purpose_nobody_waits_for_an_owner() {
        let none = sharing(0, &[Wait::Join, Wait::Join]);
        assert_eq!(said(&none, true).1, Reason::NotNeeded);
        let status = view(&none, true).status.unwrap();
        assert_eq!((status.unowned, status.waiting), (2, Vec::new()));
        assert_eq!(said(&none, false).1, Reason::WithoutOwner);
        assert_eq!(said(&sharing(1, &[Wait::Join]), true).1, Reason::WithoutOwner, "a pod still has one");
    }

    #[test]
    fn where_the_bucket_cannot_be_used_the_last_figures_stay() {
        let known = Known::Unavailable("disk full".into());
        let View { condition, status } = view(&known, false);
        assert_eq!((condition.status, condition.reason, status), (None, Reason::BucketUnavailable, None));
        assert!(condition.message.contains("disk full"));
    }
}
