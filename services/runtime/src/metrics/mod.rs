//! What the runtime counts. [`catalogue`] has what there is.

pub(crate) mod catalogue;

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabel, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder},
    metrics::{
        counter::Counter,
        exemplar::HistogramWithExemplars,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::ErrorKind;
use opentelemetry::trace::TraceId;

/// The outcome of a successful write.
const STORED: &str = "stored";

/// The runtime's metrics. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics(Arc<Families>);

#[derive(Debug)]
struct Families {
    attempts: Family<Attempt, Counter>,
    duration: Family<OfConsumer, HistogramWithExemplars<Traced>>,
    delay: Family<OfConsumer, HistogramWithExemplars<Traced>>,
    in_flight: Family<OfConsumer, Gauge>,
    held: Gauge,
    unconfirmed: Family<OfConsumer, Counter>,
    dead_letters: Family<DeadLetter, Counter>,
    order_checked: Family<OfConsumer, Counter>,
    order_violations: Family<Violation, Counter>,
    recoveries: Family<Recovery, Counter>,
    held_partitions: Family<HeldPartition, Gauge>,
    partition_changes: Family<Change, Counter>,
    memberships_lost: Counter,
    publishes: Family<Publish, Counter>,
    publishing: Histogram,
    /// Those that count with every event, looked up once.
    stored: Counter,
    connected: Gauge,
    connections: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HeldPartition {
    event_consumer: &'static str,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Change {
    event_consumer: &'static str,
    change: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfConsumer {
    event_consumer: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(clippy::struct_field_names, reason = "the fields are the labels")]
struct Attempt {
    event_consumer: &'static str,
    outcome: HandledOutcome,
    attempt: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeadLetter {
    event_consumer: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Violation {
    event_consumer: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Recovery {
    event_consumer: &'static str,
    cause: &'static str,
}

/// How one attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HandledOutcome {
    Done,
    Ignored,
    Retried,
    /// For this reason.
    DeadLettered(&'static str),
}

impl EncodeLabelValue for HandledOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let word = match self {
            Self::Done => "done",
            Self::Ignored => "ignored",
            Self::Retried => "retried",
            Self::DeadLettered(reason) => reason,
        };
        EncodeLabelValue::encode(&word, encoder)
    }
}

/// The trace of an exemplar. Written as digits at a scrape alone: every event has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Traced(TraceId);

impl EncodeLabelSet for Traced {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        ("trace_id", self.0.to_string()).encode(encoder.encode_label())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Publish {
    kind: WriteKind,
    outcome: &'static str,
}

/// What a write stores: for a key of a bucket, conflicts between writers are normal, for events they are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum WriteKind {
    Event,
    State,
    DeadLetter,
}

impl EncodeLabelValue for WriteKind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let word = match self {
            Self::Event => "event",
            Self::State => "state",
            Self::DeadLetter => "dead-letter",
        };
        EncodeLabelValue::encode(&word, encoder)
    }
}

/// The metrics of one handler. Those that count with every event are looked up once.
#[derive(Clone, Debug)]
pub(crate) struct HandlerMetrics {
    all: Metrics,
    event_consumer: &'static str,
    duration: HistogramWithExemplars<Traced>,
    delay: HistogramWithExemplars<Traced>,
    in_flight: Gauge,
    /// Attempts that succeeded, the first ones of their events.
    done_at_once: Counter,
    order_checked: Counter,
}

/// Counts an attempt as in flight while it lives.
#[derive(Debug)]
pub(crate) struct InFlight<'a>(&'a Gauge);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        // 1 ms to 17 minutes: a handler's deadline is its owner's choice.
        let duration: fn() -> _ = || HistogramWithExemplars::new(exponential_buckets(0.001, 2.0, 21));
        // To 4.7 hours: events wait while nobody consumes.
        let delay: fn() -> _ = || HistogramWithExemplars::new(exponential_buckets(0.001, 2.0, 25));
        let publishes = Family::<Publish, Counter>::default();
        let stored = Publish { kind: WriteKind::Event, outcome: STORED };
        let stored = publishes.get_or_create(&stored).clone();
        let families = Families {
            attempts: Family::default(),
            duration: Family::new_with_constructor(duration),
            delay: Family::new_with_constructor(delay),
            in_flight: Family::default(),
            held: Gauge::default(),
            unconfirmed: Family::default(),
            dead_letters: Family::default(),
            order_checked: Family::default(),
            order_violations: Family::default(),
            recoveries: Family::default(),
            held_partitions: Family::default(),
            partition_changes: Family::default(),
            memberships_lost: Counter::default(),
            stored,
            publishes,
            // 0.5 ms to 8 s: a publish fails after five.
            publishing: Histogram::new(exponential_buckets(0.0005, 2.0, 15)),
            connected: Gauge::default(),
            connections: Counter::default(),
        };
        families.register(registry);
        Self(Arc::new(families))
    }

    /// Bytes of events that are in memory.
    pub(crate) fn held(&self) -> Gauge {
        self.0.held.clone()
    }

    /// Sets whether there is a connection, and adds the connections since the last call.
    pub(crate) fn connection(&self, connected: bool, made: u64) {
        self.0.connected.set(i64::from(connected));
        self.0.connections.inc_by(made);
    }

    /// Counts a write that was stored (or existed already), or why it was not, and its duration.
    pub(crate) fn published(&self, kind: WriteKind, outcome: Result<bool, ErrorKind>, took: Duration) {
        self.0.publishing.observe(took.as_secs_f64());
        if (kind, &outcome) == (WriteKind::Event, &Ok(false)) {
            self.0.stored.inc();
            return;
        }
        let outcome = match outcome {
            Ok(false) => STORED,
            Ok(true) => "duplicate",
            Err(kind) => kind.as_str(),
        };
        self.0.publishes.get_or_create(&Publish { kind, outcome }).inc();
    }

    /// Sets how many partitions of a consumer are in a state.
    pub(crate) fn held_partitions(&self, event_consumer: &'static str, state: &'static str, count: usize) {
        let held = self.0.held_partitions.get_or_create(&HeldPartition { event_consumer, state }).clone();
        held.set(count.try_into().unwrap_or(i64::MAX));
    }

    /// Counts a partition that the process takes or gives up.
    pub(crate) fn partition_changed(&self, event_consumer: &'static str, change: &'static str) {
        self.0.partition_changes.get_or_create(&Change { event_consumer, change }).inc();
    }

    /// Counts a membership that is over.
    pub(crate) fn membership_lost(&self) {
        self.0.memberships_lost.inc();
    }

    pub(crate) fn handler(&self, event_consumer: &'static str) -> HandlerMetrics {
        let label = OfConsumer { event_consumer };
        let duration = self.0.duration.get_or_create(&label).clone();
        let delay = self.0.delay.get_or_create(&label).clone();
        let in_flight = self.0.in_flight.get_or_create(&label).clone();
        let done = Attempt { event_consumer, outcome: HandledOutcome::Done, attempt: attempt(1) };
        let done_at_once = self.0.attempts.get_or_create(&done).clone();
        let order_checked = self.0.order_checked.get_or_create(&label).clone();
        HandlerMetrics {
            all: self.clone(),
            event_consumer,
            duration,
            delay,
            in_flight,
            done_at_once,
            order_checked,
        }
    }
}

impl Families {
    fn register(&self, registry: &mut Registry) {
        catalogue::ATTEMPTS.register(registry, self.attempts.clone());
        catalogue::PROCESS_DURATION.register(registry, self.duration.clone());
        catalogue::DELIVERY_DELAY.register(registry, self.delay.clone());
        catalogue::HANDLERS_IN_FLIGHT.register(registry, self.in_flight.clone());
        catalogue::HELD.register(registry, self.held.clone());
        catalogue::SETTLEMENTS_UNCONFIRMED.register(registry, self.unconfirmed.clone());
        catalogue::DEAD_LETTERS.register(registry, self.dead_letters.clone());
        catalogue::ORDER_CHECKED.register(registry, self.order_checked.clone());
        catalogue::ORDER_VIOLATIONS.register(registry, self.order_violations.clone());
        catalogue::ORDER_RECOVERIES.register(registry, self.recoveries.clone());
        catalogue::HELD_PARTITIONS.register(registry, self.held_partitions.clone());
        catalogue::PARTITION_CHANGES.register(registry, self.partition_changes.clone());
        catalogue::MEMBERSHIPS_LOST.register(registry, self.memberships_lost.clone());
        catalogue::PUBLISHES.register(registry, self.publishes.clone());
        catalogue::PUBLISH_DURATION.register(registry, self.publishing.clone());
        catalogue::NATS_CONNECTED.register(registry, self.connected.clone());
        catalogue::NATS_CONNECTIONS.register(registry, self.connections.clone());
    }
}

/// The number of an attempt as a label.
fn attempt(number: u32) -> &'static str {
    match number {
        0 | 1 => "1",
        2 => "2",
        _ => "3+",
    }
}

impl HandlerMetrics {
    pub(crate) fn begin(&self) -> InFlight<'_> {
        self.in_flight.inc();
        InFlight(&self.in_flight)
    }

    /// Counts the time of an attempt; `trace` is its trace, if that is recorded.
    pub(crate) fn took(&self, time: Duration, trace: Option<TraceId>) {
        self.duration.observe(time.as_secs_f64(), trace.map(Traced), None);
    }

    /// Counts the time from when an event was stored to its first attempt.
    pub(crate) fn delivered_after(&self, time: Duration, trace: Option<TraceId>) {
        self.delay.observe(time.as_secs_f64(), trace.map(Traced), None);
    }

    /// Counts an attempt by its number, from 1.
    pub(crate) fn attempted(&self, outcome: HandledOutcome, number: u32) {
        let Self { all, event_consumer, done_at_once, .. } = self;
        if (outcome, number) == (HandledOutcome::Done, 1) {
            done_at_once.inc();
            return;
        }
        let labels = Attempt { event_consumer, outcome, attempt: attempt(number) };
        all.0.attempts.get_or_create(&labels).inc();
    }

    /// Counts an attempt that was checked against the order, and its violation if any.
    pub(crate) fn order_checked(&self, violation: Option<&'static str>) {
        let Self { all, event_consumer, order_checked, .. } = self;
        order_checked.inc();
        if let Some(violation) = violation {
            all.0.order_violations.get_or_create(&Violation { event_consumer, kind: violation }).inc();
        }
    }

    /// Counts a recovery with this cause.
    pub(crate) fn recovery(&self, cause: &'static str) {
        self.all.0.recoveries.get_or_create(&Recovery { event_consumer: self.event_consumer, cause }).inc();
    }

    /// Counts a stored dead letter.
    pub(crate) fn dead_lettered(&self, reason: &'static str) {
        let Self { all, event_consumer, .. } = self;
        all.0.dead_letters.get_or_create(&DeadLetter { event_consumer, reason }).inc();
    }

    /// Counts a delivery that was released without JetStream's confirmation.
    pub(crate) fn ack_unconfirmed(&self) {
        self.all.0.unconfirmed.get_or_create(&OfConsumer { event_consumer: self.event_consumer }).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use jetwright_process::metrics::{catalogue as rules, exposition::deviations, page};
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn the_page_has_the_metrics_of_the_runtime() {
        assert_eq!(rules::problems(catalogue::CATALOGUE), [""; 0]);
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
        page::check(&file, "runtime", catalogue::CATALOGUE).unwrap();
    }

    #[test]
    fn what_is_counted_has_the_labels_of_the_catalogue_and_exemplars_have_the_trace() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let handler = metrics.handler("mails");
        let trace = Some(TraceId::from(0xabc));
        handler.took(Duration::from_millis(3), trace);
        handler.delivered_after(Duration::from_secs(20), trace);
        for (outcome, number) in [
            (HandledOutcome::Done, 1),
            (HandledOutcome::Retried, 2),
            (HandledOutcome::DeadLettered("permanent"), 7),
        ] {
            handler.attempted(outcome, number);
        }
        let in_flight = handler.begin();
        handler.order_checked(Some("gap"));
        handler.recovery("reconnect");
        metrics.held_partitions("order-fulfilment", "serving", 3);
        metrics.partition_changed("order-fulfilment", "taken");
        metrics.membership_lost();
        handler.dead_lettered("permanent");
        handler.ack_unconfirmed();
        metrics.held().set(17);
        metrics.connection(true, 1);
        metrics.published(WriteKind::State, Err(ErrorKind::Conflict), Duration::from_millis(1));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        drop(in_flight);
        assert_eq!(deviations(&text, &[catalogue::CATALOGUE]), [""; 0]);
        let rows = catalogue::CATALOGUE.iter().map(|row| row.name);
        let missing: Vec<_> = rows.filter(|name| !text.contains(&format!("# TYPE {name} "))).collect();
        assert_eq!(missing, [""; 0]);
        let exemplar = format!("# {{trace_id=\"{:032x}\"}}", 0xabc);
        assert_eq!(text.matches(&exemplar).count(), 2, "{text}");
        assert!(text.contains("outcome=\"permanent\",attempt=\"3+\"} 1\n"), "{text}");
        assert!(text.contains("jetwright_held_bytes 17\n"), "{text}");
    }
}
