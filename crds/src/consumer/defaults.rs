//! What an EventConsumer's fields are where they are left out, and the names that are derived from it. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;

use super::{
    Autoscaling, AutoscalingMode, BackoffSpec, ConsumerState, DeadLetterPolicy, DeadLetterSpec,
    DeliverPolicy, EventConsumer, EventConsumerSpec, Ordering, RetrySpec,
};
use crate::{
    AdoptionPolicy, DeletionPolicy, Duration, EventStream,
    environment::{Backoff, HANDLER_DEADLINE, Retry},
    names::consumer_names,
};

/// JetStream's own time to wait for an acknowledgement.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// JetStream's own bound of unacknowledged messages.
const MAX_ACK_PENDING: u32 = 1000;
/// The bound where the runtime consumes. It takes only what it has room for, and what failed and waits for its next attempt counts
/// too: as many may fail at once before they hold up others.
const MAX_ACK_PENDING_OF_PODS: u32 = 10_000;
/// How long the next owner of a partition waits for what the one before it took and did not settle; owners keep what they have by
/// in-progress acknowledgements.
const ACK_WAIT_OF_A_PARTITION: Duration = Duration::from_secs(10);
/// The bound for each partition: what waits behind a key that failed takes room here.
const MAX_ACK_PENDING_OF_A_PARTITION: u32 = 256;
/// max_deliver of a consumer that delivers without end: Jetwright's runtime counts the attempts itself.
const WITHOUT_END: i64 = -1;

impl EventConsumer {
    /// Durable name of the consumer in JetStream.
    #[must_use]
    pub fn consumer_name(&self) -> String {
        self.spec.consumer_name.clone().unwrap_or_else(|| self.name_any())
    }

    /// The partitions of its consumer on the stream of its EventStream, of which each has a JetStream consumer of its own; None where it has
    /// one for all events.
    #[must_use]
    pub fn partitions_on(&self, stream: &EventStream) -> Option<u32> {
        stream.partition_count().filter(|_| self.spec.is_per_key())
    }

    /// What its consumers are called in JetStream, on the stream of its EventStream.
    #[must_use]
    pub fn jetstream_names(&self, stream: &EventStream) -> Vec<String> {
        consumer_names(&self.consumer_name(), self.partitions_on(stream))
    }

    /// The same in two lists: those that it has as its status says, and those that it is divided into, of which some may be there already.
    #[must_use]
    pub fn jetstream_names_by_status(&self, stream: &EventStream) -> (Vec<String>, Vec<String>) {
        let mut all = self.jetstream_names(stream);
        let there = match (self.partitions_on(stream), self.known_consumer(stream)) {
            (Some(count), Some(known)) if known.partitions != Some(count) => known.partitions,
            _ => return (all, Vec::new()),
        };
        let there = consumer_names(&self.consumer_name(), there);
        all.retain(|name| !there.contains(name));
        (there, all)
    }

    /// What its status says of its consumer on the stream of its EventStream, where that can be: a status may be written by others, and there are as
    /// many partitions as are declared, or fewer of which each is divided.
    #[must_use]
    pub fn known_consumer(&self, stream: &EventStream) -> Option<&ConsumerState> {
        let known = self.status.as_ref()?.consumer.as_ref()?;
        let declared = self.partitions_on(stream);
        let can_be = |count: u32| declared.is_some_and(|declared| declared.is_multiple_of(count));
        (known.stream == stream.stream_name() && known.partitions.is_none_or(can_be)).then_some(known)
    }

    /// The conditions of its status; none before the first reconcile.
    #[must_use]
    pub fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default()
    }
}

impl EventConsumerSpec {
    /// How long a dead letter is kept by default.
    pub const DEAD_LETTER_MAX_AGE: Duration = Duration::from_secs(90 * 24 * 60 * 60);

    /// Whether pods consume, its own or those of another EventConsumer.
    #[must_use]
    pub fn has_pods(&self) -> bool {
        self.workload.is_some() || self.workload_ref.is_some()
    }

    /// Whether the events of one key are handled one after another, so that each partition has a JetStream consumer.
    #[must_use]
    pub fn is_per_key(&self) -> bool {
        self.ordering.unwrap_or_default() == Ordering::PerKey
    }

    /// Where a new consumer begins.
    #[must_use]
    pub fn effective_deliver_policy(&self) -> DeliverPolicy {
        self.deliver_policy.unwrap_or_default()
    }

    /// How long JetStream waits for an acknowledgement.
    #[must_use]
    pub fn effective_ack_wait(&self) -> Duration {
        self.ack_wait.unwrap_or(if self.is_per_key() { ACK_WAIT_OF_A_PARTITION } else { ACK_WAIT })
    }

    /// How long a handler may take for one attempt.
    #[must_use]
    pub fn effective_handler_deadline(&self) -> Duration {
        self.handler_deadline.unwrap_or(HANDLER_DEADLINE)
    }

    /// Most messages that may be unacknowledged at once, where servers do not limit them further; with ordering PerKey, of one partition.
    #[must_use]
    pub fn effective_max_ack_pending(&self) -> u32 {
        let default = match (self.is_per_key(), self.has_pods()) {
            (true, _) => MAX_ACK_PENDING_OF_A_PARTITION,
            (false, true) => MAX_ACK_PENDING_OF_PODS,
            (false, false) => MAX_ACK_PENDING,
        };
        self.max_ack_pending.unwrap_or(default)
    }

    /// How often JetStream delivers a message; -1 without end, as where the runtime counts attempts, and where each new owner of a
    /// partition gets what is not settled once more.
    #[must_use]
    pub fn effective_max_deliver(&self) -> i64 {
        let is_counted = !self.has_pods() && !self.is_per_key();
        let limit = self.retry.as_ref().and_then(|retry| retry.max_attempts).filter(|_| is_counted);
        limit.map_or(WITHOUT_END, i64::from)
    }

    /// When, and how often, the runtime tries a failed message again.
    #[must_use]
    pub fn effective_retry(&self) -> Retry {
        let Retry { max_attempts, backoff: Backoff { initial, factor, max } } = Retry::default();
        let RetrySpec { max_attempts: set_attempts, backoff } = self.retry.clone().unwrap_or_default();
        let BackoffSpec { initial: set_initial, factor: set_factor, max: set_max } =
            backoff.unwrap_or_default();
        Retry {
            max_attempts: set_attempts.unwrap_or(max_attempts),
            backoff: Backoff {
                initial: set_initial.unwrap_or(initial),
                factor: set_factor.unwrap_or(factor),
                max: set_max.unwrap_or(max),
            },
        }
    }

    /// How long each dead letter is kept; None where there are none: nobody writes them, or the policy is Drop.
    #[must_use]
    pub fn dead_letter_max_age(&self) -> Option<Duration> {
        let DeadLetterSpec { policy, max_age } = self.dead_letter.clone().unwrap_or_default();
        let kept = self.has_pods() && policy.unwrap_or_default() == DeadLetterPolicy::Keep;
        kept.then(|| max_age.unwrap_or(Self::DEAD_LETTER_MAX_AGE))
    }

    /// Whether deleting the object deletes the consumer: unless the spec says otherwise, since a forgotten durable pins messages.
    #[must_use]
    pub fn deletes(&self) -> bool {
        self.deletion_policy != Some(DeletionPolicy::Retain)
    }

    /// What to do where JetStream has something of the name that is not the object's.
    #[must_use]
    pub fn effective_adoption_policy(&self) -> AdoptionPolicy {
        self.adoption_policy.unwrap_or_default()
    }
}

impl Autoscaling {
    /// Fewest pods.
    #[must_use]
    pub fn effective_min_replicas(&self) -> i32 {
        self.min_replicas.unwrap_or(1)
    }

    /// Time in which what waits should be worked off.
    #[must_use]
    pub fn effective_target_drain_time(&self) -> Duration {
        self.target_drain_time.unwrap_or(Duration::from_secs(30))
    }

    /// Unsettled messages for each pod, while what a pod can do is unknown.
    #[must_use]
    pub fn effective_lag_per_replica(&self) -> u32 {
        self.lag_per_replica.unwrap_or(100)
    }

    /// How long fewer pods must have been enough before there are fewer.
    #[must_use]
    pub fn effective_scale_down_after(&self) -> Duration {
        self.scale_down_after.unwrap_or(Duration::from_secs(60))
    }

    /// Whether there are as many pods as the operator decides.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.mode.unwrap_or_default() == AutoscalingMode::Active
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(rest: &str) -> EventConsumerSpec {
        serde_saphyr::from_str(&format!("{{streamRef: {{name: orders}}{rest}}}")).unwrap()
    }

    const PODS: [&str; 2] =
        [", workload: {template: {spec: {containers: [{name: app}]}}}", ", workloadRef: {name: other}"];

    #[test]
    fn what_fails_in_pods_may_wait_in_numbers_unless_they_are_set() {
        assert_eq!(spec("").effective_max_ack_pending(), 1000);
        for pods in PODS {
            assert_eq!(spec(pods).effective_max_ack_pending(), 10_000);
            assert_eq!(spec(&format!("{pods}, maxAckPending: 7")).effective_max_ack_pending(), 7);
        }
    }

    #[test]
    fn jetstream_counts_the_attempts_only_where_no_runtime_does() {
        let retry = ", retry: {maxAttempts: 4}";
        assert_eq!((spec("").effective_max_deliver(), spec(retry).effective_max_deliver()), (-1, 4));
        for pods in PODS {
            let spec = spec(&format!("{pods}{retry}"));
            assert_eq!((spec.effective_max_deliver(), spec.effective_retry().max_attempts), (-1, 4));
        }
    }

    #[test]
    fn a_partition_has_room_and_time_of_its_own_and_is_delivered_without_end() {
        let of = |rest: &str| {
            let spec = spec(&format!(", ordering: PerKey{rest}"));
            (
                spec.effective_max_ack_pending(),
                spec.effective_ack_wait().to_string(),
                spec.effective_max_deliver(),
            )
        };
        for pods in ["", PODS[0], PODS[1]] {
            assert_eq!(of(pods), (256, "10s".into(), -1));
            let set = format!("{pods}, maxAckPending: 7, ackWait: 1m, retry: {{maxAttempts: 4}}");
            assert_eq!(of(&set), (7, "1m".into(), -1));
        }
    }

    #[test]
    fn dead_letters_are_kept_where_there_are_pods_unless_the_policy_is_drop() {
        let kept = |rest: &str| spec(rest).dead_letter_max_age().map(|age| age.to_string());
        for pods in PODS {
            assert_eq!(kept(pods).as_deref(), Some("90d"));
            assert_eq!(kept(&format!("{pods}, deadLetter: {{maxAge: 1w}}")).as_deref(), Some("1w"));
            assert_eq!(kept(&format!("{pods}, deadLetter: {{policy: Keep}}")).as_deref(), Some("90d"));
            assert_eq!(kept(&format!("{pods}, deadLetter: {{policy: Drop}}")), None);
        }
        assert_eq!(kept(", consumerName: alone"), None);
    }

    #[test]
    fn a_consumer_goes_with_its_object_unless_its_spec_says_otherwise() {
        assert!(spec("").deletes() && !spec(", deletionPolicy: Retain").deletes());
    }

    #[test]
    fn each_partition_of_a_consumer_with_order_has_a_name_in_jetstream() {
        let names = |rest: &str, of: &str| {
            let stream = EventStream::new("orders", serde_saphyr::from_str(of).unwrap());
            EventConsumer::new("x", spec(rest)).jetstream_names(&stream)
        };
        let partitioned = "{subjects: [a.*], partitions: {count: 2, keyTokens: [2]}}";
        assert_eq!(names(", ordering: PerKey", partitioned), ["x-p0", "x-p1"]);
        assert_eq!(names("", partitioned), ["x"]);
        assert_eq!(names(", ordering: PerKey", "subjects: [a.*]"), ["x"]);
    }

    #[test]
    fn a_consumer_that_is_divided_has_those_of_before_and_maybe_some_of_the_others() {
        let stream = "{subjects: [a.*], partitions: {count: 4, keyTokens: [2]}}";
        let stream = EventStream::new("orders", serde_saphyr::from_str(stream).unwrap());
        let names = |rest: &str, known: &str| {
            let mut object = EventConsumer::new("x", spec(rest));
            object.status = Some(serde_saphyr::from_str(known).unwrap());
            let (there, coming) = object.jetstream_names_by_status(&stream);
            (there.join(" "), coming.join(" "))
        };
        let known = |more: &str| {
            format!("{{consumer: {{stream: orders, name: x, created: '2026-01-01T00:00:00Z'{more}}}}}")
        };
        let both = |there: &str, coming: &str| (there.to_owned(), coming.to_owned());
        let ordered = ", ordering: PerKey";
        let all = both("x-p0 x-p1 x-p2 x-p3", "");
        assert_eq!(names(ordered, "{}"), all);
        assert_eq!(names(ordered, &known(", partitions: 4")), all);
        assert_eq!(names(ordered, &known(", partitions: 2")), both("x-p0 x-p1", "x-p2 x-p3"));
        assert_eq!(names(ordered, &known("")), both("x", "x-p0 x-p1 x-p2 x-p3"), "it gets order");
        assert_eq!(names("", &known("")), both("x", ""));
        for forged in [", partitions: 0", ", partitions: 3", ", partitions: 4000000000"] {
            assert_eq!(names(ordered, &known(forged)), all, "{forged}");
        }
        assert_eq!(
            names(
                ordered,
                "{consumer: {stream: mails, name: x, created: '2026-01-01T00:00:00Z', partitions: 2}}"
            ),
            all
        );
    }

    #[test]
    fn a_consumer_is_named_like_its_object_unless_its_spec_names_it() {
        let named = |rest: &str| EventConsumer::new("fulfilment", spec(rest)).consumer_name();
        assert_eq!((named(""), named(", consumerName: c")), ("fulfilment".into(), "c".into()));
    }
}
