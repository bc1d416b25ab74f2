//! What the runtime counts. Labels are names of EventConsumers and words from short lists.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::ErrorKind;

/// The outcome of a successful write.
const STORED: &str = "stored";

/// The runtime's metrics. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics(Arc<Families>);

#[derive(Debug)]
struct Families {
    handled: Family<Handled, Counter>,
    duration: Family<Binding, Histogram>,
    in_flight: Family<Binding, Gauge>,
    unconfirmed: Family<Binding, Counter>,
    dead_letters: Family<DeadLetter, Counter>,
    order_checked: Family<Binding, Counter>,
    order_violations: Family<Violation, Counter>,
    recoveries: Family<Recovery, Counter>,
    publishes: Family<Publish, Counter>,
    publishing: Histogram,
    /// Those that count with every event, looked up once.
    stored: Counter,
    connected: Gauge,
    connections: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Binding {
    binding: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Handled {
    binding: &'static str,
    outcome: HandledOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeadLetter {
    binding: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Violation {
    binding: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Recovery {
    binding: &'static str,
    cause: &'static str,
}

/// How one delivery ended.
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
    binding: &'static str,
    duration: Histogram,
    in_flight: Gauge,
    done: Counter,
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
        let buckets: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 21));
        let publishes = Family::<Publish, Counter>::default();
        let stored = Publish { kind: WriteKind::Event, outcome: STORED };
        let stored = publishes.get_or_create(&stored).clone();
        let families = Families {
            handled: Family::default(),
            duration: Family::new_with_constructor(buckets),
            in_flight: Family::default(),
            unconfirmed: Family::default(),
            dead_letters: Family::default(),
            order_checked: Family::default(),
            order_violations: Family::default(),
            recoveries: Family::default(),
            stored,
            publishes,
            // 0.5 ms to 8 s: a publish fails after five.
            publishing: Histogram::new(exponential_buckets(0.0005, 2.0, 15)),
            connected: Gauge::default(),
            connections: Counter::default(),
        };
        let registry = registry.sub_registry_with_prefix("jetwright");
        registry.register("handled", "Deliveries by their outcome", families.handled.clone());
        let duration = families.duration.clone();
        registry.register("handler_duration_seconds", "Time that a handler took for one attempt", duration);
        let in_flight = families.in_flight.clone();
        registry.register("handlers_in_flight", "Events that are being handled now", in_flight);
        let unconfirmed = families.unconfirmed.clone();
        registry.register(
            "settlements_unconfirmed",
            "Settlements that JetStream did not confirm",
            unconfirmed,
        );
        let dead_letters = families.dead_letters.clone();
        registry.register("dead_letters", "Events that were stored as dead letters", dead_letters);
        registry.register(
            "order_checked",
            "Attempts of ordered consumers that were checked against the order of their key",
            families.order_checked.clone(),
        );
        registry.register(
            "order_violations",
            "Attempts of ordered consumers that began out of the order of their key, by the kind of violation",
            families.order_violations.clone(),
        );
        registry.register(
            "order_recoveries",
            "Recoveries of ordered consumers, which wait until no delivery is unacknowledged elsewhere, by cause",
            families.recoveries.clone(),
        );
        registry.register(
            "publishes",
            "Writes of events and of state by how they ended",
            families.publishes.clone(),
        );
        registry.register(
            "publish_duration_seconds",
            "Time until a write was stored or failed",
            families.publishing.clone(),
        );
        registry.register("nats_connected", "Whether NATS is connected", families.connected.clone());
        registry.register("nats_connections", "Connections to NATS", families.connections.clone());
        Self(Arc::new(families))
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

    pub(crate) fn handler(&self, binding: &'static str) -> HandlerMetrics {
        let label = Binding { binding };
        let duration = self.0.duration.get_or_create(&label).clone();
        let in_flight = self.0.in_flight.get_or_create(&label).clone();
        let done = Handled { binding, outcome: HandledOutcome::Done };
        let done = self.0.handled.get_or_create(&done).clone();
        let order_checked = self.0.order_checked.get_or_create(&label).clone();
        HandlerMetrics { all: self.clone(), binding, duration, in_flight, done, order_checked }
    }
}

impl HandlerMetrics {
    pub(crate) fn begin(&self) -> InFlight<'_> {
        self.in_flight.inc();
        InFlight(&self.in_flight)
    }

    pub(crate) fn took(&self, time: Duration) {
        self.duration.observe(time.as_secs_f64());
    }

    pub(crate) fn handled(&self, outcome: HandledOutcome) {
        let Self { all, binding, done, .. } = self;
        if outcome == HandledOutcome::Done {
            done.inc();
            return;
        }
        all.0.handled.get_or_create(&Handled { binding, outcome }).inc();
    }

    /// Counts an attempt that was checked against the order, and its violation if any.
    pub(crate) fn order_checked(&self, violation: Option<&'static str>) {
        let Self { all, binding, order_checked, .. } = self;
        order_checked.inc();
        if let Some(violation) = violation {
            all.0.order_violations.get_or_create(&Violation { binding, kind: violation }).inc();
        }
    }

    /// Counts a recovery with this cause.
    pub(crate) fn recovery(&self, cause: &'static str) {
        self.all.0.recoveries.get_or_create(&Recovery { binding: self.binding, cause }).inc();
    }

    /// Counts a stored dead letter.
    pub(crate) fn dead_lettered(&self, reason: &'static str) {
        let Self { all, binding, .. } = self;
        all.0.dead_letters.get_or_create(&DeadLetter { binding, reason }).inc();
    }

    /// Counts a delivery that was released without JetStream's confirmation.
    pub(crate) fn ack_unconfirmed(&self) {
        self.all.0.unconfirmed.get_or_create(&Binding { binding: self.binding }).inc();
    }
}
