//! In: what is desired, what JetStream has, what was seen of it and what the status records. Out: what to do. Pure: every step is decided
//! before the first is taken.

use jetwright_crds::{conditions::Reason, stream::Replicas};
use serde_json::Value;

use super::{
    asset::{Asset, Desired, Granted},
    claim::{Claim, claim, with_takeover},
    config::{Config, METADATA},
    diff::difference,
    history::History,
    ownership::matches_last_applied,
    stream_config::{FIRST_SEQ, MIRROR, REPLICAS},
};
use crate::outcome::{Adoption, Blocked, CreationTime as _, Recorded};

/// How far beyond the highest sequence that was seen a stream begins that is recreated. Statuses are a minute old at times, and
/// the cache as old as its last resync: no stream takes a thousand million messages in between.
const SEQUENCE_MARGIN: u64 = 1_000_000_000;

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// JetStream has what is declared.
    Unchanged,
    Create {
        config: Config,
        /// What to settle for where a cluster has too few servers.
        fallback: Option<Config>,
        /// What to settle for on a server that is in no cluster.
        alone: Option<Config>,
    },
    Update {
        /// Whole configurations, in order.
        steps: Vec<Config>,
        /// Fields that change, by JetStream's names.
        fields: Vec<&'static str>,
        cause: Cause,
    },
    /// Nothing can be done until something changes.
    Blocked(Blocked),
}

/// Why something is updated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The declaration is another one.
    Declaration,
    /// Another writer changed it: what is declared had been applied already.
    Drift,
    /// It becomes the object's.
    Adoption(Adoption),
}

impl Plan {
    /// Whether it asks for more replicas than there are.
    #[must_use]
    pub fn scales(&self) -> bool {
        matches!(self, Self::Update { fields, .. } if fields.contains(&REPLICAS))
    }

    /// Whether something becomes the object's that was not.
    #[must_use]
    pub fn claims(&self) -> bool {
        matches!(self, Self::Create { .. } | Self::Update { cause: Cause::Adoption(_), .. })
    }

    /// Whether it changes anything in JetStream.
    #[must_use]
    pub fn writes(&self) -> bool {
        matches!(self, Self::Create { .. } | Self::Update { .. })
    }
}

/// What a plan is decided on, beside what is desired.
#[derive(Debug)]
pub struct Known<'a, A: Asset> {
    /// What JetStream has; None where it does not exist.
    pub actual: Option<&'a A::Info>,
    pub history: &'a History,
    pub recorded: &'a Recorded,
    /// The most messages that the servers allow to be unacknowledged at once, where they refused more; 0 where that is theirs to say.
    pub max_ack_pending: Option<u32>,
}

// Derived, they would ask the same of the asset.
impl<A: Asset> Clone for Known<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A: Asset> Copy for Known<'_, A> {}

/// Decides what to do.
pub fn plan<A: Asset>(desired: &Desired<A>, known: Known<'_, A>) -> Plan {
    match known.actual {
        Some(actual) => change(desired, actual, known),
        None => create(desired, known),
    }
}

/// One that existed before is recreated as it was, but for its sequences: they go on far beyond those it had.
fn create<A: Asset>(desired: &Desired<A>, known: Known<'_, A>) -> Plan {
    let recorded = known.recorded;
    let highest = recorded.highest_sequence.max(known.history.highest_sequence(&desired.owner.uid));
    let max_ack_pending = allowed(desired.max_ack_pending, known.max_ack_pending);
    let config = |replicas| beginning_beyond(highest, desired.stamped(Granted { replicas, max_ack_pending }));
    let exact = |replicas| Plan::Create { config: config(replicas), fallback: None, alone: None };
    let wished = match desired.replicas {
        None => return exact(None),
        Some(Replicas::Exactly(replicas)) => return exact(Some(replicas)),
        Some(Replicas::Prefer(replicas)) => replicas,
    };
    let least = recorded.replicas.unwrap_or(1);
    let replicas = wished.max(least);
    Plan::Create {
        config: config(Some(replicas)),
        fallback: (least < replicas).then(|| config(Some(least))),
        // However many it had: a server that is not clustered has one of everything.
        alone: (replicas > 1).then(|| config(Some(1))),
    }
}

/// What was acknowledged, numbered or dead-lettered under an old sequence must never mean a new event. Servers refuse a first sequence
/// for a mirror (10143): it has its origin's sequences.
fn beginning_beyond(highest: Option<u64>, config: Config) -> Config {
    match highest {
        Some(highest) if config.get(MIRROR).is_none() => {
            config.with(FIRST_SEQ, highest.saturating_add(SEQUENCE_MARGIN))
        }
        _ => config,
    }
}

/// What becomes of something that exists: whether it may be touched at all, what differs, and whether that can change.
fn change<A: Asset>(desired: &Desired<A>, info: &A::Info, known: Known<'_, A>) -> Plan {
    let (kind, name, actual) = (A::KIND, A::name(&desired.key), A::config(info));
    let claim = match claim(desired, (actual, info.created()), known.history) {
        Ok(claim) => claim,
        Err(blocked) => return Plan::Blocked(blocked),
    };
    let stamped = desired.stamped(Granted {
        replicas: desired.replicas.map(|wish| settled(wish, desired, info, known)),
        max_ack_pending: allowed(desired.max_ack_pending, known.max_ack_pending),
    });
    let target = match &claim {
        Claim::Adopt(Adoption::TakenFrom(other)) => with_takeover(&desired.owner, other, stamped, actual),
        Claim::Adopt(Adoption::Unowned) | Claim::Ours(_) => stamped,
    };
    let difference = difference(&target, actual, &desired.owner, A::FIELDS);
    if !difference.immutable.is_empty() {
        let immutable = difference.immutable.join(", ");
        let message = format!(
            "JetStream never changes {immutable} of {kind} {name}: set the field to what the {kind} has, or {}",
            A::REMEDY
        );
        return Plan::Blocked(Blocked { reason: Reason::ImmutableField, message });
    }
    if difference.is_empty() {
        return Plan::Unchanged;
    }
    Plan::Update {
        steps: steps(&target.merge_onto(actual, A::FIELDS), actual, &difference.changed),
        fields: difference.changed,
        cause: match claim {
            Claim::Adopt(adoption) => Cause::Adoption(adoption),
            Claim::Ours(Some(_)) if matches_last_applied(&target, actual) => Cause::Drift,
            Claim::Ours(_) => Cause::Declaration,
        },
    }
}

/// What is preferred, as far as servers allow it.
fn allowed(preferred: Option<u32>, limit: Option<u32>) -> Option<u32> {
    preferred.map(|most| limit.map_or(most, |limit| most.min(limit)))
}

/// Without a number in the spec, the replicas that a stream has are never lowered, and more are asked for where there may be as many
/// servers. What JetStream refused is not asked for again until that is forgotten.
fn settled<A: Asset>(wish: Replicas, desired: &Desired<A>, info: &A::Info, known: Known<'_, A>) -> u8 {
    let wished = match wish {
        Replicas::Exactly(replicas) => return replicas,
        Replicas::Prefer(replicas) => replicas,
    };
    let there = A::config(info).get(REPLICAS).and_then(Value::as_u64);
    let there = there.and_then(|count| u8::try_from(count).ok()).unwrap_or(1);
    let wanted = wished.max(known.recorded.replicas.unwrap_or(there));
    let cannot_grow = !A::is_clustered(info) || known.history.refusal(desired.owner.declaration()).is_some();
    if wanted > there && cannot_grow { there } else { wanted }
}

/// The server refuses new replicas and a new placement in one update (10123): the placement goes first.
fn steps(target: &Config, actual: &Config, changed: &[&str]) -> Vec<Config> {
    if !(changed.contains(&REPLICAS) && changed.contains(&"placement")) {
        return vec![target.clone()];
    }
    let kept = |name| actual.get(name).cloned().unwrap_or_default();
    // What was applied is marked with the last step, so that a second one that fails is not taken for another writer's change.
    let first = target.clone().with(REPLICAS, kept(REPLICAS)).with(METADATA, kept(METADATA));
    vec![first, target.clone()]
}

#[cfg(test)]
mod tests {
    use jetwright_crds::AdoptionPolicy;
    use serde_json::json;

    use super::*;
    use crate::jetstream::{
        asset::{Consumer, ConsumerKey, Stream},
        consumer_config,
        info::{ConsumerInfo, StreamInfo},
        ownership::{Owner, tests::owner},
        stream_config,
    };

    const SPEC: &str = "{subjects: [orders.>], limits: {maxAge: 1h}}";

    fn desired_at(generation: i64, spec: &str) -> Desired<Stream> {
        let spec: jetwright_crds::EventStreamSpec = serde_saphyr::from_str(spec).unwrap();
        Desired {
            key: "orders".into(),
            owner: owner(generation),
            adoption: AdoptionPolicy::Refuse,
            config: stream_config::config("orders", &spec),
            replicas: Some(spec.effective_replicas()),
            max_ack_pending: None,
        }
    }

    /// Nothing but so many replicas is granted.
    fn granted(replicas: u8) -> Granted {
        Granted { replicas: Some(replicas), ..Granted::default() }
    }

    fn config(spec: &str, replicas: u8) -> Config {
        desired_at(1, spec).stamped(granted(replicas))
    }

    fn info(config: &Config) -> StreamInfo {
        serde_json::from_value(json!({
            "config": config, "created": "2026-11-21T10:00:00.123456789Z",
            "state": {"messages": 0, "bytes": 0, "first_seq": 0, "last_seq": 0},
        }))
        .unwrap()
    }

    fn edited(spec: &str, field: &'static str, value: impl Into<Value>) -> StreamInfo {
        info(&config(spec, 1).with(field, value))
    }

    fn planned(desired: &Desired<Stream>, actual: Option<&StreamInfo>, recorded: &Recorded) -> Plan {
        plan_with(desired, actual, &History::default(), recorded)
    }

    fn plan_with(
        desired: &Desired<Stream>,
        actual: Option<&StreamInfo>,
        history: &History,
        recorded: &Recorded,
    ) -> Plan {
        plan(desired, Known { actual, history, recorded, max_ack_pending: None })
    }

    fn plan_for(spec: &str, actual: Option<&StreamInfo>) -> Plan {
        planned(&desired_at(1, spec), actual, &Recorded::default())
    }

    fn blocked_by(plan: Plan) -> Reason {
        let Plan::Blocked(blocked) = plan else { panic!("not blocked: {plan:?}") };
        blocked.reason
    }

    #[test]
    fn a_missing_stream_is_created_whole() {
        assert_eq!(
            plan_for(SPEC, None),
            Plan::Create { config: config(SPEC, 1), fallback: None, alone: None }
        );
    }

    const CRITICAL: &str = "{subjects: [a], profile: Critical}";

    /// A stream of clustered servers.
    fn clustered(config: &Config) -> StreamInfo {
        let cluster = serde_json::from_value(json!({"name": "east", "leader": "n1"})).unwrap();
        StreamInfo { cluster: Some(cluster), ..info(config) }
    }

    fn with_replicas(replicas: u8) -> Recorded {
        Recorded { replicas: Some(replicas), ..Recorded::default() }
    }

    /// The replicas after a plan for a stream with so many, as the status has them; None where it does nothing.
    fn replicas_after(spec: &str, there: u8, recorded: &Recorded, history: &History) -> Option<u64> {
        let actual = clustered(&config(spec, there));
        match plan_with(&desired_at(1, spec), Some(&actual), history, recorded) {
            Plan::Unchanged => None,
            Plan::Update { steps, .. } => steps.last()?.get(REPLICAS)?.as_u64(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_new_stream_with_a_profile_has_three_replicas_or_one_and_one_that_had_three_has_them_again() {
        let config = |replicas| config(CRITICAL, replicas);
        let created = |replicas, fallback: Option<u8>| Plan::Create {
            config: config(replicas),
            fallback: fallback.map(config),
            alone: Some(config(1)),
        };
        assert_eq!(plan_for(CRITICAL, None), created(3, Some(1)));
        let again = |recorded| planned(&desired_at(1, CRITICAL), None, &with_replicas(recorded));
        assert_eq!(
            [1, 2, 3, 5].map(again),
            [created(3, Some(1)), created(3, Some(2)), created(3, None), created(5, None)]
        );
    }

    #[test]
    fn a_profile_raises_replicas_unless_there_is_no_cluster_or_jetstream_refused_that_to_this_declaration() {
        let after =
            |there, history: &History| replicas_after(CRITICAL, there, &with_replicas(there), history);
        let mut refused = History::default();
        assert_eq!([1, 2, 3, 5].map(|there| after(there, &refused)), [Some(3), Some(3), None, None]);
        assert_eq!(plan_for(CRITICAL, Some(&info(&config(CRITICAL, 1)))), Plan::Unchanged);
        refused.refuse(("u1", 1), "too few".into());
        assert_eq!(after(1, &refused), None);
        refused.refuse(("u1", 0), "too few".into());
        assert_eq!(after(1, &refused), Some(3));
    }

    #[test]
    fn replicas_are_lowered_by_a_number_alone_and_set_back_where_another_writer_changed_them() {
        let none = History::default();
        let after = |spec, there, recorded: &Recorded| replicas_after(spec, there, recorded, &none);
        assert_eq!(after(SPEC, 3, &with_replicas(3)), None, "the profile was taken out");
        assert_eq!(after(SPEC, 3, &Recorded::default()), None);
        assert_eq!(after("{subjects: [a], replicas: 1}", 3, &with_replicas(3)), Some(1));
        assert_eq!(after(SPEC, 3, &with_replicas(1)), Some(1));
        assert_eq!(after(CRITICAL, 1, &with_replicas(3)), Some(3));
        assert_eq!(after(CRITICAL, 5, &with_replicas(3)), Some(3));
    }

    #[test]
    fn a_stream_that_vanished_begins_far_beyond_every_earlier_sequence_with_however_many_replicas() {
        let spec = "{subjects: [a], profile: Critical}";
        let config = |replicas, first: u64| config(spec, replicas).with("first_seq", first);
        let recorded = Recorded { highest_sequence: Some(7), ..Recorded::default() };
        let first = 1_000_000_007;
        assert_eq!(
            planned(&desired_at(1, spec), None, &recorded),
            Plan::Create {
                config: config(3, first),
                fallback: Some(config(1, first)),
                alone: Some(config(1, first))
            }
        );
        // What was seen counts where the status is older.
        let mut history = History::default();
        history.observe(&desired_at(1, spec).stamped(granted(1)), "10:00", Some(9));
        let first = 1_000_000_009;
        assert_eq!(
            plan_with(&desired_at(1, spec), None, &history, &recorded),
            Plan::Create {
                config: config(3, first),
                fallback: Some(config(1, first)),
                alone: Some(config(1, first))
            }
        );
    }

    #[test]
    fn a_mirror_has_the_sequences_of_its_origin() {
        let mirror = config(SPEC, 1).with("mirror", json!({"name": "origin"}));
        assert_eq!(beginning_beyond(Some(7), mirror.clone()), mirror);
    }

    #[test]
    fn an_update_carries_where_the_stream_began_as_it_is() {
        let actual = info(&config(SPEC, 1).with("first_seq", 1_000_000_007_u64).with("max_age", 5));
        let recorded = Recorded { highest_sequence: Some(2_000_000_000), ..Recorded::default() };
        let Plan::Update { steps, fields, .. } = planned(&desired_at(1, SPEC), Some(&actual), &recorded)
        else {
            panic!("no update")
        };
        assert_eq!(fields, ["max_age"]);
        assert_eq!(steps, [config(SPEC, 1).with("first_seq", 1_000_000_007_u64)]);
    }

    #[test]
    fn what_is_as_declared_stays_untouched() {
        assert_eq!(plan_for(SPEC, Some(&info(&config(SPEC, 1)))), Plan::Unchanged);
    }

    #[test]
    fn a_field_that_another_writer_changed_is_drift() {
        let actual = edited(SPEC, "max_age", 5);
        let Plan::Update { steps, fields, cause } = plan_for(SPEC, Some(&actual)) else {
            panic!("no update")
        };
        assert_eq!((steps, fields, cause), (vec![config(SPEC, 1)], vec!["max_age"], Cause::Drift));
    }

    #[test]
    fn a_new_generation_is_an_update_and_no_drift() {
        let next = desired_at(2, "{subjects: [orders.>], limits: {maxBytes: 1Gi}}");
        let plan = planned(&next, Some(&info(&config(SPEC, 1))), &Recorded::default());
        let Plan::Update { steps, fields, cause } = plan else { panic!("no update") };
        assert_eq!((fields, cause), (vec!["max_bytes", "max_age"], Cause::Declaration));
        // The mark is written with it.
        assert_eq!(steps, [next.stamped(granted(1))]);
    }

    #[test]
    fn another_hash_alone_is_no_reason_to_write() {
        let mut marks = json!(config(SPEC, 1))["metadata"].clone();
        marks["jetwright.dev/applied"] = json!("of another version");
        assert_eq!(plan_for(SPEC, Some(&edited(SPEC, "metadata", marks))), Plan::Unchanged);
    }

    #[test]
    fn an_older_generation_is_never_applied() {
        let older = desired_at(0, SPEC);
        let plan = planned(&older, Some(&info(&config(SPEC, 1))), &Recorded::default());
        assert_eq!(blocked_by(plan), Reason::NewerGeneration);
    }

    #[test]
    fn what_is_not_ours_is_not_modified() {
        let foreign = edited(SPEC, "metadata", json!({"jetwright.dev/owner": "east/shop/other"}));
        assert_eq!(blocked_by(plan_for(SPEC, Some(&foreign))), Reason::NameConflict);
        let unowned = edited(SPEC, "metadata", json!({}));
        assert_eq!(blocked_by(plan_for(SPEC, Some(&unowned))), Reason::NameConflict);
        // A status proves nothing.
        let recorded = Recorded { created: Some(1_795_255_200), replicas: Some(1), ..Recorded::default() };
        assert_eq!(
            blocked_by(planned(&desired_at(1, SPEC), Some(&unowned), &recorded)),
            Reason::NameConflict
        );
    }

    #[test]
    fn a_stream_whose_metadata_were_wiped_while_the_operator_watched_is_still_ours() {
        let wiped = edited(SPEC, "metadata", json!({}));
        let mut history = History::default();
        history.observe(&config(SPEC, 1), &wiped.created, Some(0));
        let plan = plan_with(&desired_at(1, SPEC), Some(&wiped), &history, &Recorded::default());
        let Plan::Update { fields, cause, .. } = plan else { panic!("no update: {plan:?}") };
        assert_eq!((fields, cause), (vec!["metadata"], Cause::Drift));
    }

    #[test]
    fn what_an_object_adopts_becomes_as_declared_and_its_own_and_that_is_no_drift() {
        let unowned = edited(SPEC, "metadata", json!({"team": "red"}));
        let adopting = Desired { adoption: AdoptionPolicy::AdoptUnowned, ..desired_at(1, SPEC) };
        let Plan::Update { steps, fields, cause } = planned(&adopting, Some(&unowned), &Recorded::default())
        else {
            panic!("no update")
        };
        assert_eq!((fields, cause), (vec!["metadata"], Cause::Adoption(Adoption::Unowned)));
        let metadata = steps[0].metadata();
        assert_eq!((metadata["team"], metadata["jetwright.dev/owner"]), ("red", "east/shop/orders"));
    }

    #[test]
    fn what_is_taken_over_names_whom_it_was_taken_from_and_is_then_as_declared() {
        let theirs = json!({"jetwright.dev/owner": "west/shop/orders", "jetwright.dev/uid": "w", "jetwright.dev/generation": "9"});
        let actual = edited(SPEC, "metadata", theirs);
        let taking = Desired { adoption: AdoptionPolicy::TakeOver, ..desired_at(1, SPEC) };
        let Plan::Update { steps, cause, .. } = planned(&taking, Some(&actual), &Recorded::default()) else {
            panic!("no update")
        };
        assert_eq!(cause, Cause::Adoption(Adoption::TakenFrom("west/shop/orders".into())));
        assert_eq!(steps[0].metadata()["jetwright.dev/taken-from"], "west/shop/orders");
        assert_eq!(planned(&taking, Some(&info(&steps[0])), &Recorded::default()), Plan::Unchanged);
    }

    #[test]
    fn what_jetstream_never_changes_is_blocked_before_anything_is_done() {
        let actual = info(&config(SPEC, 1).with("storage", "memory").with("max_age", 5));
        assert_eq!(blocked_by(plan_for(SPEC, Some(&actual))), Reason::ImmutableField);
    }

    #[test]
    fn placement_and_replicas_are_two_steps() {
        let actual = info(&config(SPEC, 3).with("placement", json!({"cluster": "east"})));
        let spec = "{subjects: [orders.>], limits: {maxAge: 1h}, replicas: 1}";
        let Plan::Update { steps, .. } = plan_for(spec, Some(&actual)) else { panic!("no update") };
        assert_eq!(steps, [config(SPEC, 3), config(SPEC, 1)]);
    }

    const CONSUMER: &str = "{streamRef: {name: orders}, filterSubjects: [orders.*.placed], ackWait: 10s}";

    fn consumer_at(generation: i64, spec: &str) -> Desired<Consumer> {
        Desired {
            key: ConsumerKey { stream: "orders".into(), name: "fulfilment".into() },
            owner: Owner { name: "fulfilment".into(), ..owner(generation) },
            adoption: AdoptionPolicy::Refuse,
            config: consumer_config::config("fulfilment", &[], &serde_saphyr::from_str(spec).unwrap()),
            replicas: None,
            max_ack_pending: None,
        }
    }

    fn consumer_config_at(generation: i64) -> Config {
        consumer_at(generation, CONSUMER).stamped(Granted::default())
    }

    fn plan_consumer(actual: Option<&Config>) -> Plan {
        plan_consumer_of(&consumer_at(2, CONSUMER), actual, None)
    }

    fn plan_consumer_of(desired: &Desired<Consumer>, actual: Option<&Config>, limit: Option<u32>) -> Plan {
        let info = |config: &Config| -> ConsumerInfo {
            serde_json::from_value(json!({
                "config": config, "created": "2026-11-21T10:00:00Z", "stream_name": "orders", "name": "fulfilment",
            }))
            .unwrap()
        };
        let actual = actual.map(info);
        let (history, recorded) = (History::default(), Recorded::default());
        let known =
            Known { actual: actual.as_ref(), history: &history, recorded: &recorded, max_ack_pending: limit };
        plan(desired, known)
    }

    #[test]
    fn a_missing_consumer_is_created_whole() {
        assert_eq!(
            plan_consumer(None),
            Plan::Create { config: consumer_config_at(2), fallback: None, alone: None }
        );
    }

    #[test]
    fn what_the_server_fills_into_a_consumer_is_no_difference() {
        let filled = consumer_config_at(2).with("max_waiting", 512).with("num_replicas", 0);
        assert_eq!(plan_consumer(Some(&filled)), Plan::Unchanged);
    }

    #[test]
    fn what_pods_prefer_is_lowered_to_what_servers_allow() {
        let desired = Desired { max_ack_pending: Some(10_000), ..consumer_at(2, CONSUMER) };
        let of = |most| desired.stamped(Granted { max_ack_pending: most, ..Granted::default() });
        let planned = |actual: Option<&Config>, limit| plan_consumer_of(&desired, actual, limit);
        let created = |most| Plan::Create { config: of(most), fallback: None, alone: None };
        assert_eq!(planned(None, None), created(Some(10_000)));
        assert_eq!(planned(None, Some(500)), created(Some(500)));
        assert_eq!(planned(Some(&of(Some(500))), Some(500)), Plan::Unchanged);
        assert!(planned(Some(&of(Some(500))), None).writes());
        // Where nobody knows how many, it is the server's choice.
        assert_eq!(planned(Some(&of(None).with("max_ack_pending", 500)), Some(0)), Plan::Unchanged);
    }

    #[test]
    fn an_edit_of_a_consumer_is_corrected_and_a_pause_is_left() {
        let edited = consumer_config_at(2).with("ack_wait", 5).with("pause_until", "2030-01-01T00:00:00Z");
        let expected = Plan::Update {
            steps: vec![consumer_config_at(2).with("pause_until", "2030-01-01T00:00:00Z")],
            fields: vec!["ack_wait"],
            cause: Cause::Drift,
        };
        assert_eq!(plan_consumer(Some(&edited)), expected);
    }

    #[test]
    fn a_new_declaration_of_a_consumer_is_an_update_and_no_drift() {
        let other = "{streamRef: {name: orders}, filterSubjects: [orders.*.placed], ackWait: 20s}";
        let expected = Plan::Update {
            steps: vec![consumer_config_at(2)],
            fields: vec!["ack_wait"],
            cause: Cause::Declaration,
        };
        assert_eq!(plan_consumer(Some(&consumer_at(1, other).stamped(Granted::default()))), expected);
    }

    #[test]
    fn a_generation_that_changes_nothing_in_jetstream_writes_nothing() {
        assert_eq!(plan_consumer(Some(&consumer_config_at(1))), Plan::Unchanged);
    }

    #[test]
    fn an_older_generation_of_a_consumer_is_never_applied() {
        assert_eq!(blocked_by(plan_consumer(Some(&consumer_config_at(3)))), Reason::NewerGeneration);
    }

    #[test]
    fn a_consumer_of_another_kind_is_blocked_and_that_of_others_not_modified() {
        let push = consumer_config_at(2).with("deliver_subject", "somewhere").with("ack_wait", 5);
        let Plan::Blocked(blocked) = plan_consumer(Some(&push)) else { panic!("not blocked") };
        assert_eq!(blocked.reason, Reason::ImmutableField);
        assert!(blocked.message.contains("deliver_subject"), "{}", blocked.message);
        let foreign = consumer_config_at(2).with("metadata", json!({}));
        assert_eq!(blocked_by(plan_consumer(Some(&foreign))), Reason::NameConflict);
    }
}
