//! In: the desired stream, what JetStream has, and what the status remembers. Out: what to do. Pure: every step is decided
//! before the first is taken.

use super::validate::{Desired, Replicas};
use crate::{
    jetstream::{Config, StreamInfo, fields},
    outcome::Remembered,
    plan::{self, Change, Plan},
};

/// What to do where a field would have to change that never does.
const REMEDY: &str = "back up what is in the stream, delete it, and it is made again as declared";

/// How far beyond the highest sequence that was seen a stream begins that is made again. Statuses are a minute old at times, and
/// the mirror as old as its last comparison: no stream takes a thousand million messages in between.
const SEQUENCE_MARGIN: u64 = 1_000_000_000;

/// Decides what to do.
pub fn plan(desired: &Desired, actual: Option<&StreamInfo>, remembered: &Remembered) -> Plan {
    let Some(actual) = actual else { return create(desired, remembered) };
    plan::change(&Change {
        kind: "stream",
        name: &desired.name,
        identity: &desired.identity,
        desired: &desired.config(settled(desired.replicas, &actual.config, remembered)),
        actual: &actual.config,
        made_by_us: remembered.is_of(&actual.created),
        fields: fields::STREAM,
        remedy: REMEDY,
    })
}

/// One that was made before is made again as it was, but for its sequences: they go on far beyond those of before.
fn create(desired: &Desired, remembered: &Remembered) -> Plan {
    let (replicas, fewer) = match (desired.replicas, remembered.replicas) {
        (Replicas::Exactly(replicas), _) | (Replicas::UpTo(_), Some(replicas)) => (replicas, 1..1),
        (Replicas::UpTo(most), None) => (most, 1..most),
    };
    let config = |replicas| beginning_beyond(remembered.highest_sequence, desired.config(replicas));
    Plan::Create { config: config(replicas), fewer: fewer.rev().map(config).collect() }
}

/// What was acknowledged, numbered or dead-lettered under a sequence of before must never mean a new event. Servers refuse a first
/// sequence for a mirror (10143): it has its origin's sequences.
fn beginning_beyond(highest: Option<u64>, config: Config) -> Config {
    match highest {
        Some(highest) if config.get("mirror").is_none() => {
            config.with(fields::FIRST_SEQ, highest.saturating_add(SEQUENCE_MARGIN))
        }
        _ => config,
    }
}

/// Replicas that were settled when the stream was made are kept, whatever servers came or went.
fn settled(wish: Replicas, actual: &Config, remembered: &Remembered) -> u8 {
    let there =
        actual.get("num_replicas").and_then(serde_json::Value::as_u64).and_then(|n| u8::try_from(n).ok());
    match wish {
        Replicas::Exactly(replicas) => replicas,
        Replicas::UpTo(_) => remembered.replicas.or(there).unwrap_or(1),
    }
}

#[cfg(test)]
mod tests {
    use jetwright_crds::conditions::Reason;
    use serde_json::{Value, json};

    use super::*;
    use crate::stream::validate::tests::{desired, desired_at};

    const SPEC: &str = "{subjects: [orders.>], limits: {maxAge: 1h}}";

    fn info(config: &Config) -> StreamInfo {
        serde_json::from_value(json!({
            "config": config, "created": "2026-11-21T10:00:00.123456789Z",
            "state": {"messages": 0, "bytes": 0, "first_seq": 0, "last_seq": 0},
        }))
        .unwrap()
    }

    fn existing(spec: &str) -> StreamInfo {
        info(&desired(spec).config(1))
    }

    fn edited(spec: &str, field: &'static str, value: impl Into<Value>) -> StreamInfo {
        info(&desired(spec).config(1).with(field, value))
    }

    fn plan_for(spec: &str, actual: Option<&StreamInfo>) -> Plan {
        plan(&desired(spec), actual, &Remembered::default())
    }

    fn blocked_by(plan: Plan) -> Reason {
        let Plan::Blocked(blocked) = plan else { panic!("not blocked: {plan:?}") };
        blocked.reason
    }

    #[test]
    fn a_missing_stream_is_made_whole() {
        assert_eq!(plan_for(SPEC, None), Plan::Create { config: desired(SPEC).config(1), fewer: vec![] });
    }

    #[test]
    fn a_profile_settles_for_fewer_replicas_but_remembers_what_was_settled() {
        let spec = "{subjects: [a], profile: Critical}";
        let config = |replicas| desired(spec).config(replicas);
        assert_eq!(
            plan_for(spec, None),
            Plan::Create { config: config(3), fewer: vec![config(2), config(1)] }
        );
        let remembered = Remembered { replicas: Some(3), ..Remembered::default() };
        assert_eq!(
            plan(&desired(spec), None, &remembered),
            Plan::Create { config: config(3), fewer: vec![] }
        );
        assert_eq!(plan_for(spec, Some(&existing(spec))), Plan::Unchanged);
    }

    #[test]
    fn a_stream_that_vanished_begins_far_beyond_every_sequence_of_before_with_however_many_replicas() {
        let spec = "{subjects: [a], profile: Critical}";
        let remembered = Remembered { highest_sequence: Some(7), ..Remembered::default() };
        let config = |replicas| desired(spec).config(replicas).with("first_seq", 1_000_000_007_u64);
        assert_eq!(
            plan(&desired(spec), None, &remembered),
            Plan::Create { config: config(3), fewer: vec![config(2), config(1)] }
        );
    }

    #[test]
    fn a_mirror_has_the_sequences_of_its_origin() {
        let mirror = desired(SPEC).config(1).with("mirror", json!({"name": "origin"}));
        assert_eq!(beginning_beyond(Some(7), mirror.clone()), mirror);
    }

    #[test]
    fn an_update_carries_where_the_stream_began_as_it_is() {
        let actual = info(&desired(SPEC).config(1).with("first_seq", 1_000_000_007_u64).with("max_age", 5));
        let remembered = Remembered { highest_sequence: Some(2_000_000_000), ..Remembered::default() };
        let Plan::Update { steps, fields, .. } = plan(&desired(SPEC), Some(&actual), &remembered) else {
            panic!("no update")
        };
        assert_eq!(fields, ["max_age"]);
        assert_eq!(steps, [desired(SPEC).config(1).with("first_seq", 1_000_000_007_u64)]);
    }

    #[test]
    fn what_is_as_declared_stays_untouched() {
        assert_eq!(plan_for(SPEC, Some(&existing(SPEC))), Plan::Unchanged);
    }

    #[test]
    fn a_field_that_another_changed_is_drift() {
        let actual = edited(SPEC, "max_age", 5);
        let Plan::Update { steps, fields, drift } = plan_for(SPEC, Some(&actual)) else {
            panic!("no update")
        };
        assert_eq!((steps, fields, drift), (vec![desired(SPEC).config(1)], vec!["max_age"], true));
    }

    #[test]
    fn a_new_generation_is_an_update_and_no_drift() {
        let next = desired_at(2, "{subjects: [orders.>], limits: {maxBytes: 1Gi}}");
        let plan = plan(&next, Some(&existing(SPEC)), &Remembered::default());
        let Plan::Update { fields, drift, .. } = plan else { panic!("no update") };
        assert_eq!((fields, drift), (vec!["max_bytes", "max_age", "metadata"], false));
    }

    #[test]
    fn an_older_generation_is_never_applied() {
        let older = desired_at(0, SPEC);
        assert_eq!(
            blocked_by(plan(&older, Some(&existing(SPEC)), &Remembered::default())),
            Reason::NewerGeneration
        );
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let foreign = edited(SPEC, "metadata", json!({"jetwright.dev/owner": "east/shop/other"}));
        assert_eq!(blocked_by(plan_for(SPEC, Some(&foreign))), Reason::NameConflict);
        let unowned = edited(SPEC, "metadata", json!({}));
        assert_eq!(blocked_by(plan_for(SPEC, Some(&unowned))), Reason::NameConflict);
    }

    #[test]
    fn a_stream_whose_metadata_were_wiped_is_still_ours_if_we_made_it() {
        let wiped = edited(SPEC, "metadata", json!({}));
        let remembered =
            Remembered { created: Some(1_795_255_200), replicas: Some(1), ..Remembered::default() };
        let plan = plan(&desired(SPEC), Some(&wiped), &remembered);
        let Plan::Update { fields, drift, .. } = plan else { panic!("no update: {plan:?}") };
        assert_eq!((fields, drift), (vec!["metadata"], true));
    }

    #[test]
    fn what_jetstream_never_changes_is_blocked_before_anything_is_done() {
        let actual = info(&desired(SPEC).config(1).with("storage", "memory").with("max_age", 5));
        assert_eq!(blocked_by(plan_for(SPEC, Some(&actual))), Reason::ImmutableField);
    }

    #[test]
    fn placement_and_replicas_are_two_steps() {
        let actual = info(&desired(SPEC).config(3).with("placement", json!({"cluster": "east"})));
        let Plan::Update { steps, .. } = plan_for(SPEC, Some(&actual)) else { panic!("no update") };
        assert_eq!(steps, [desired(SPEC).config(3), desired(SPEC).config(1)]);
    }
}
