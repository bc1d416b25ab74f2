//! What to do about a stream or a consumer: the part of planning that is the same for both. Pure.

use jetwright_crds::conditions::Reason;

use crate::{
    identity::{Identity, was_applied},
    jetstream::{Config, config::METADATA, diff::difference, fields::Field},
    outcome::{Blocked, applied_generation},
};

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Nothing: JetStream has what is declared.
    Unchanged,
    /// Make it.
    Create {
        /// As it is to be.
        config: Config,
        /// What to settle for, best first, where there are too few servers.
        fewer: Vec<Config>,
    },
    /// Change it, step by step.
    Update {
        /// Whole configurations, in order.
        steps: Vec<Config>,
        /// Fields that change, by JetStream's names.
        fields: Vec<&'static str>,
        /// Whether it was somebody else who changed them: what is declared had been applied already.
        drift: bool,
    },
    /// Nothing can be done until something changes.
    Blocked(Blocked),
}

impl Plan {
    /// Whether it changes anything in JetStream.
    #[must_use]
    pub fn writes(&self) -> bool {
        matches!(self, Self::Create { .. } | Self::Update { .. })
    }
}

/// What is to become of something that exists.
pub struct Change<'a> {
    /// `stream` or `consumer`.
    pub kind: &'static str,
    /// Its name in JetStream.
    pub name: &'a str,
    /// Whose it is to be.
    pub identity: &'a Identity,
    /// As it is to be, whole.
    pub desired: &'a Config,
    /// As it is.
    pub actual: &'a Config,
    /// Whether the status remembers that the operator made it.
    pub made_by_us: bool,
    /// What its configuration consists of.
    pub fields: &'a [Field],
    /// What to do where a field would have to change that never does.
    pub remedy: &'static str,
}

/// Decides what to do about something that exists: whether it may be touched at all, what differs, and whether that can change.
#[must_use]
pub fn change(change: &Change<'_>) -> Plan {
    let Change { kind, name, identity, desired, actual, made_by_us, fields, remedy } = *change;
    let applied = match applied_generation(identity, (kind, name), actual, made_by_us) {
        Ok(applied) => applied,
        Err(blocked) => return Plan::Blocked(blocked),
    };
    let difference = difference(desired, actual, fields);
    if !difference.stuck.is_empty() {
        let stuck = difference.stuck.join(", ");
        let message = format!(
            "JetStream never changes {stuck} of {kind} {name}: set the field to what the {kind} has, or {remedy}"
        );
        return Plan::Blocked(Blocked { reason: Reason::ImmutableField, message });
    }
    if difference.is_empty() {
        return Plan::Unchanged;
    }
    Plan::Update {
        steps: steps(&desired.over(actual, fields), actual, &difference.changed),
        fields: difference.changed,
        drift: applied.is_some() && was_applied(desired, actual),
    }
}

/// The server refuses new replicas and a new placement in one update (10123): the placement goes first.
fn steps(target: &Config, actual: &Config, changed: &[&str]) -> Vec<Config> {
    if !(changed.contains(&"num_replicas") && changed.contains(&"placement")) {
        return vec![target.clone()];
    }
    let kept = |name| actual.get(name).cloned().unwrap_or_default();
    // What was applied is marked with the last step, so that a second one that fails is not taken for somebody else's change.
    let first = target.clone().with("num_replicas", kept("num_replicas")).with(METADATA, kept(METADATA));
    vec![first, target.clone()]
}
