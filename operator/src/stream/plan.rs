//! In: the desired stream, what JetStream has, and what the status remembers. Out: what to do. Pure: every step is decided
//! before the first is taken.

use jetwright_crds::conditions::Reason;

use super::validate::{Desired, Replicas};
use crate::{
    jetstream::{Config, StreamInfo, diff::difference, fields},
    outcome::{Blocked, Remembered, applied_generation},
};

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Nothing: JetStream has what is declared.
    Unchanged,
    /// Make the stream. Where there are fewer servers than replicas in one configuration, the next is tried.
    Create(Vec<Config>),
    /// Change the stream, step by step.
    Update {
        /// Whole configurations, in order.
        steps: Vec<Config>,
        /// Fields that change, by JetStream's names.
        fields: Vec<&'static str>,
        /// Whether it was somebody else who changed them: this generation had been applied already.
        drift: bool,
    },
    /// Nothing can be done until something changes.
    Blocked(Blocked),
}

impl Plan {
    /// Whether it changes anything in JetStream.
    pub fn writes(&self) -> bool {
        matches!(self, Self::Create(_) | Self::Update { .. })
    }
}

/// Decides what to do.
pub fn plan(desired: &Desired, actual: Option<&StreamInfo>, remembered: &Remembered) -> Plan {
    let Some(actual) = actual else { return Plan::Create(creations(desired, remembered)) };
    let made_by_us = remembered.is_of(&actual.created);
    let applied =
        match applied_generation(&desired.identity, ("stream", &desired.name), &actual.config, made_by_us) {
            Ok(applied) => applied,
            Err(blocked) => return Plan::Blocked(blocked),
        };
    let whole = desired.config(settled(desired.replicas, &actual.config, remembered));
    let difference = difference(&whole, &actual.config, fields::STREAM);
    if !difference.stuck.is_empty() {
        return Plan::Blocked(immutable(&desired.name, &difference.stuck));
    }
    if difference.is_empty() {
        return Plan::Unchanged;
    }
    Plan::Update {
        steps: steps(&whole, &actual.config, &difference.changed),
        fields: difference.changed,
        drift: applied == Some(desired.identity.generation),
    }
}

/// The configurations to try when the stream is made. One that was made before is made again as it was.
fn creations(desired: &Desired, remembered: &Remembered) -> Vec<Config> {
    match (desired.replicas, remembered.replicas) {
        (Replicas::Exactly(replicas), _) | (Replicas::UpTo(_), Some(replicas)) => {
            vec![desired.config(replicas)]
        }
        (Replicas::UpTo(most), None) => vec![desired.config(most), desired.config(1)],
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

/// The server refuses new replicas and a new placement in one update (10123): the placement goes first.
fn steps(whole: &Config, actual: &Config, changed: &[&str]) -> Vec<Config> {
    let target = whole.over(actual, fields::STREAM);
    if !(changed.contains(&"num_replicas") && changed.contains(&"placement")) {
        return vec![target];
    }
    let replicas = actual.get("num_replicas").cloned().unwrap_or_default();
    vec![target.clone().with("num_replicas", replicas), target]
}

fn immutable(name: &str, stuck: &[&'static str]) -> Blocked {
    Blocked {
        reason: Reason::ImmutableField,
        message: format!(
            "JetStream never changes {} of stream {name}: set the field to what the stream has, or back up what is in the \
             stream, delete it, and it is made again as declared",
            stuck.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(plan_for(SPEC, None), Plan::Create(vec![desired(SPEC).config(1)]));
    }

    #[test]
    fn a_profile_settles_for_one_replica_but_remembers_what_was_settled() {
        let spec = "{subjects: [a], profile: Critical}";
        assert_eq!(
            plan_for(spec, None),
            Plan::Create(vec![desired(spec).config(3), desired(spec).config(1)])
        );
        let remembered = Remembered { created: None, replicas: Some(3) };
        assert_eq!(plan(&desired(spec), None, &remembered), Plan::Create(vec![desired(spec).config(3)]));
        assert_eq!(plan_for(spec, Some(&existing(spec))), Plan::Unchanged);
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
        let remembered = Remembered { created: Some(1_795_255_200), replicas: Some(1) };
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
