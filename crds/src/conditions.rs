//! The conditions in status, and the reasons that they carry.
//!
//! They follow kstatus, so that `kubectl wait`, Argo CD and Flux understand them: Ready says whether all is as declared,
//! Reconciling=True that work goes on, Stalled=True that it takes a change, since trying again rarely helps.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use strum::VariantArray as _;

use crate::text::cut;

/// Longest message, in bytes. Kubernetes takes 32,768, but an object has several of these, and a list thousands.
pub const MAX_MESSAGE_BYTES: usize = 2000;

/// All is as declared.
pub const READY: &str = "Ready";
/// Work towards what is declared goes on.
pub const RECONCILING: &str = "Reconciling";
/// The object, or one that it refers to, has to change; meanwhile it is tried again rarely.
pub const STALLED: &str = "Stalled";
/// As many servers keep a current copy of the stream as are declared, or as its profile asks for.
pub const DURABLE: &str = "Durable";
/// The JetStream consumer is as declared.
pub const CONSUMER_READY: &str = "ConsumerReady";
/// The stream that keeps the consumer's dead letters is as it has to be.
pub const DEAD_LETTERS_READY: &str = "DeadLettersReady";
/// The Deployment has the replicas that it should have.
pub const WORKLOAD_READY: &str = "WorkloadReady";
/// Each partition of an ordered consumer is handled where it belongs.
pub const PARTITIONS_OWNED: &str = "PartitionsOwned";
/// The partitions of a stream that exists are being changed: False while the change waits, absent where there is none.
pub const PARTITIONS_CHANGING: &str = "PartitionsChanging";
/// The number of pods follows what waits for them, or would.
pub const SCALING_ACTIVE: &str = "ScalingActive";

/// Why a condition is as it is: one word for programs and for the REASON column of `kubectl get`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, strum::EnumString, strum::IntoStaticStr, strum::VariantArray,
)]
pub enum Reason {
    /// All is as declared.
    Reconciled,
    /// A field of the spec has a value that cannot be.
    Invalid,
    /// JetStream cannot change this field of what exists.
    ImmutableField,
    /// An update would lose messages, and nobody has accepted that.
    DataLoss,
    /// The name is taken by something that this object does not own.
    NameConflict,
    /// A newer generation of this object was applied by another process.
    NewerGeneration,
    /// Another client writes the same stream or consumer as often as the operator.
    Contested,
    /// No NATS connection serves this namespace.
    NoConnection,
    /// The NATS servers cannot be reached.
    Disconnected,
    /// NATS is connected, and JetStream does not answer for the stream or consumer.
    JetStreamUnavailable,
    /// JetStream refused the configuration.
    Refused,
    /// JetStream or Kubernetes failed; it is tried again.
    Failed,
    /// JetStream adds, moves or removes copies of the stream.
    Scaling,
    /// There are fewer servers than the profile asks for copies.
    TooFewServers,
    /// A server that keeps a copy is away, or behind.
    NotCurrent,
    /// An object that the spec names does not exist.
    NotFound,
    /// The EventStream that the spec names is not ready.
    StreamNotReady,
    /// Other objects still use what is to be deleted.
    InUse,
    /// What belongs to the object is being deleted.
    Deleting,
    /// Pods are on their way.
    RollingOut,
    /// The rollout makes no progress.
    RolloutStuck,
    /// Kubernetes refuses to make the pods: a quota, an admission policy, a ServiceAccount that is not there.
    PodsRefused,
    /// The pods are more than the operator's level of Pod Security allows.
    PodSecurity,
    /// A pod fits on no node.
    Unschedulable,
    /// A volume of a pod cannot be mounted, as where its Secret is missing.
    VolumeMount,
    /// A pod's network or sandbox cannot be set up on its node.
    PodSandbox,
    /// The image of a container cannot be pulled.
    ImagePull,
    /// A container cannot be started as it is configured.
    ContainerConfig,
    /// A container ends again and again.
    CrashLoop,
    /// There are no pods on purpose.
    ScaledToZero,
    /// Each partition is handled where it belongs.
    Owned,
    /// There are no pods on purpose, so no partition needs an owner.
    NotNeeded,
    /// Partitions are on their way to other owners.
    HandingOver,
    /// Partitions have no owner.
    WithoutOwner,
    /// The bucket by which partitions are shared out cannot be made or read.
    BucketUnavailable,
    /// Events are stored in a stream whose partitions are to change.
    StreamIsBusy,
    /// A consumer would miss events once the partitions of its stream change.
    FiltersTooNarrow,
    /// The partitions of a stream change, or a consumer on it is divided after that.
    ChangingPartitions,
    /// There are as many pods as the load takes.
    Steady,
    /// The load takes more pods, and those that there are have to be ready first.
    Starting,
    /// The load took more pods.
    ScaledUp,
    /// The load took fewer pods for a while.
    ScaledDown,
    /// The load takes more pods than autoscaling may make.
    AtMaximum,
    /// The load takes more pods, and the last ones brought too little.
    NoGain,
    /// More pods would get nothing: as many messages as may be are unacknowledged.
    AckPendingLimit,
    /// What autoscaling decides by is unknown.
    FiguresUnknown,
    /// Autoscaling says what it would do, and does nothing.
    Observing,
}

impl Reason {
    /// The reason that a condition's word is; None of a word that this version does not have.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        word.parse().ok()
    }

    /// Every reason.
    #[must_use]
    pub fn all() -> &'static [Self] {
        Self::VARIANTS
    }

    /// The word as it stands in the condition.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// One condition before it has its times: what [`set`] makes a [`Condition`] of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// True, False, or None for Unknown.
    pub status: Option<bool>,
    /// Why.
    pub reason: Reason,
    /// Why in words, with what to do about it.
    pub message: String,
}

/// Puts a condition into the list, and keeps the time of the last transition where the status stays what it was.
pub fn set(conditions: &mut Vec<Condition>, type_: &str, state: State, generation: Option<i64>, now: &Time) {
    let State { status, reason, mut message } = state;
    if message.len() > MAX_MESSAGE_BYTES {
        message = cut(&message, MAX_MESSAGE_BYTES).into_owned();
    }
    let status = match status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let fresh = |since: Time| Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.as_str().to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: since,
    };
    match conditions.iter_mut().find(|condition| condition.type_ == type_) {
        Some(known) => {
            let since = if known.status == status { known.last_transition_time.clone() } else { now.clone() };
            *known = fresh(since);
        }
        None => conditions.push(fresh(now.clone())),
    }
}

/// Takes a condition that no longer applies out of the list.
pub fn unset(conditions: &mut Vec<Condition>, type_: &str) {
    conditions.retain(|condition| condition.type_ != type_);
}

/// The condition of a type, if it was ever told.
#[must_use]
pub fn get<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn ready(status: bool, reason: Reason) -> State {
        State { status: Some(status), reason, message: String::new() }
    }

    #[test]
    fn every_reason_is_known_by_its_word() {
        for reason in Reason::all() {
            assert_eq!(Reason::named(reason.as_str()), Some(*reason));
        }
        assert_eq!(Reason::CrashLoop.as_str(), "CrashLoop");
        assert_eq!(Reason::named("FromTheFuture"), None);
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut conditions = Vec::new();
        set(&mut conditions, READY, ready(false, Reason::RollingOut), Some(1), &at(1));
        set(&mut conditions, READY, ready(false, Reason::Failed), Some(2), &at(2));
        let condition = get(&conditions, READY).unwrap();
        assert_eq!((condition.last_transition_time.clone(), condition.reason.as_str()), (at(1), "Failed"));
        set(&mut conditions, READY, ready(true, Reason::Reconciled), Some(2), &at(3));
        assert_eq!(get(&conditions, READY).unwrap().last_transition_time, at(3));
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn a_message_is_bounded_whatever_somebody_wrote_into_a_field() {
        let mut list = Vec::new();
        let message = "я".repeat(40_000);
        let state = State { status: Some(false), reason: Reason::Refused, message };
        set(&mut list, READY, state, Some(1), &at(1));
        let bytes = list[0].message.len();
        assert!((MAX_MESSAGE_BYTES - 4..=MAX_MESSAGE_BYTES).contains(&bytes), "{bytes}");
    }
}
