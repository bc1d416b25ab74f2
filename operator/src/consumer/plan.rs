//! In: the desired consumer, what JetStream has, and what the status remembers. Out: what to do. Pure: everything is decided
//! before anything is done.

use super::validate::Desired;
use crate::{
    jetstream::{ConsumerInfo, fields},
    outcome::Remembered,
    plan::{self, Change, Plan},
};

/// What to do where a field would have to change that never does.
const REMEDY: &str =
    "delete the consumer, and it is made again as declared, beginning where spec.deliverPolicy says";

/// Decides what to do.
pub fn plan(desired: &Desired, actual: Option<&ConsumerInfo>, remembered: &Remembered) -> Plan {
    let Some(actual) = actual else {
        return Plan::Create { config: desired.config.clone(), fewer: Vec::new() };
    };
    plan::change(&Change {
        kind: "consumer",
        name: &desired.name,
        identity: &desired.identity,
        desired: &desired.config,
        actual: &actual.config,
        made_by_us: remembered.is_of(&actual.created),
        fields: fields::CONSUMER,
        remedy: REMEDY,
    })
}

#[cfg(test)]
mod tests {
    use jetwright_crds::conditions::Reason;
    use serde_json::json;

    use super::*;
    use crate::{consumer::validate::tests::desired_at, jetstream::Config};

    const SPEC: &str = "{streamRef: {name: orders}, filterSubjects: [orders.*.placed], ackWait: 10s}";

    fn info(config: &Config) -> ConsumerInfo {
        serde_json::from_value(json!({
            "config": config, "created": "2026-11-21T10:00:00Z", "stream_name": "orders", "name": "fulfilment",
        })).unwrap()
    }

    fn existing(generation: i64) -> ConsumerInfo {
        info(&desired_at(generation, SPEC).config)
    }

    fn plan_for(actual: Option<&ConsumerInfo>) -> Plan {
        plan(&desired_at(2, SPEC), actual, &Remembered::default())
    }

    #[test]
    fn a_missing_consumer_is_made_whole() {
        assert_eq!(plan_for(None), Plan::Create { config: desired_at(2, SPEC).config, fewer: Vec::new() });
    }

    #[test]
    fn what_the_server_fills_in_is_no_difference() {
        let filled = desired_at(2, SPEC).config.with("max_waiting", 512).with("num_replicas", 0);
        assert_eq!(plan_for(Some(&info(&filled))), Plan::Unchanged);
    }

    #[test]
    fn an_edit_by_another_is_put_right_and_a_pause_is_left() {
        let edited = existing(2).config.with("ack_wait", 5).with("pause_until", "2030-01-01T00:00:00Z");
        let expected = Plan::Update {
            steps: vec![desired_at(2, SPEC).config.with("pause_until", "2030-01-01T00:00:00Z")],
            fields: vec!["ack_wait"],
            drift: true,
        };
        assert_eq!(plan_for(Some(&info(&edited))), expected);
    }

    #[test]
    fn a_new_declaration_is_an_update_and_no_drift() {
        let other = "{streamRef: {name: orders}, filterSubjects: [orders.*.placed], ackWait: 20s}";
        let expected = Plan::Update {
            steps: vec![desired_at(2, SPEC).config],
            fields: vec!["ack_wait", "metadata"],
            drift: false,
        };
        assert_eq!(plan_for(Some(&info(&desired_at(1, other).config))), expected);
    }

    #[test]
    fn a_generation_that_changes_nothing_in_jetstream_writes_nothing() {
        assert_eq!(plan_for(Some(&existing(1))), Plan::Unchanged);
    }

    #[test]
    fn an_older_generation_is_never_applied() {
        let Plan::Blocked(blocked) = plan_for(Some(&existing(3))) else { panic!("not blocked") };
        assert_eq!(blocked.reason, Reason::NewerGeneration);
    }

    #[test]
    fn a_consumer_of_another_kind_is_blocked_and_one_of_others_left_alone() {
        let push = existing(2).config.with("deliver_subject", "somewhere").with("ack_wait", 5);
        let Plan::Blocked(blocked) = plan_for(Some(&info(&push))) else { panic!("not blocked") };
        assert_eq!(blocked.reason, Reason::ImmutableField);
        assert!(blocked.message.contains("deliver_subject"), "{}", blocked.message);
        let foreign = existing(2).config.with("metadata", json!({}));
        let Plan::Blocked(blocked) = plan_for(Some(&info(&foreign))) else { panic!("not blocked") };
        assert_eq!(blocked.reason, Reason::NameConflict);
    }
}
