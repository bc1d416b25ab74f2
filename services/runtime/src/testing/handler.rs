//! Delivers events to a handler, each attempt as the runtime makes it. In: a handler, its binding, an event. Out: what becomes of the event.
//! The handler's own I/O apart, there is none.

use std::{sync::Arc, time::Duration};

use jetwright_crds::{
    dead_letter,
    environment::{Backoff, Binding, DeadLetters, HANDLER_DEADLINE, Ordering, Retry},
};
use prometheus_client::registry::Registry;

use super::{RecordedPublisher, Settled, TestEvent};
use crate::{
    Handler, HandlerError, HandlerOptions, Metadata, Source,
    consumer::{DeliveryEnd, HandlerRunner, ObservedAttempt, TestRunner},
    metrics::Metrics,
};

/// The stream of a test that names none.
const DEFAULT_STREAM: &str = "events";
/// Attempts after which [`HandlerTest::deliver_until_settled`] ends, whatever there is to come.
const MAX_DELIVERIES: usize = 1000;

/// A handler, with the binding of its EventConsumer, in the middle of a process that has no connection.
///
/// Events are decoded, bounded by the deadline, tried again, given up and made dead letters of by the code that does so in a pod. What a pod
/// does beside it is not here: JetStream's own redelivery, concurrency, the order between events, threads of the handler's own and the watchdog.
///
/// Where a test does not say, the binding is that of an EventConsumer that says nothing: unordered, six attempts, 500 ms to a minute between
/// them, a deadline of 20 s, dead letters kept. Changing it later in a test is a restart of the process: what was known of events that
/// come again is forgotten.
pub struct HandlerTest<H> {
    name: &'static str,
    handler: Arc<H>,
    options: HandlerOptions,
    binding: Binding,
    dead_letters: RecordedPublisher,
    runner: Option<TestRunner<Shared<H>>>,
    last_sequence: u64,
}

/// The handler outlives the runner, which is built again with each change of the binding.
struct Shared<H>(Arc<H>);

impl<H: Handler> Handler for Shared<H> {
    type Event = H::Event;

    async fn handle(&self, event: H::Event, metadata: &Metadata) -> Result<(), HandlerError> {
        self.0.handle(event, metadata).await
    }
}

impl<H: Handler> HandlerTest<H> {
    /// For the handler of the EventConsumer of this name, whose events are in a stream `events`.
    #[must_use]
    pub fn new(name: &'static str, handler: H) -> Self {
        let binding = Binding {
            stream: DEFAULT_STREAM.to_owned(),
            consumer: name.to_owned(),
            ack_wait: HANDLER_DEADLINE,
            max_ack_pending: 1,
            retry: Retry::default(),
            handler_deadline: HANDLER_DEADLINE,
            partitions: None,
            ordering: None,
            dead_letters: Some(dead_letters(DEFAULT_STREAM, name)),
        };
        Self {
            name,
            handler: Arc::new(handler),
            options: HandlerOptions::default(),
            binding,
            dead_letters: RecordedPublisher::new(),
            runner: None,
            last_sequence: 0,
        }
    }

    /// With events of this stream.
    #[must_use]
    pub fn stream(self, stream: &str) -> Self {
        let name = self.name;
        self.changed(|binding| {
            stream.clone_into(&mut binding.stream);
            binding.dead_letters = binding.dead_letters.take().map(|_| dead_letters(stream, name));
        })
    }

    /// With so many calls for one event, the first included.
    #[must_use]
    pub fn max_attempts(self, max_attempts: u32) -> Self {
        self.changed(|binding| binding.retry.max_attempts = max_attempts.max(1))
    }

    /// With delays between the attempts that grow by a factor.
    #[must_use]
    pub fn backoff(self, initial: Duration, factor: u32, max: Duration) -> Self {
        let backoff = Backoff {
            initial: jetwright_crds::Duration(initial),
            factor,
            max: jetwright_crds::Duration(max),
        };
        self.changed(|binding| binding.retry.backoff = backoff)
    }

    /// With so long for one attempt, in the time of tokio: a test with `#[tokio::test(start_paused = true)]` does not wait for it.
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        self.changed(|binding| binding.handler_deadline.0 = deadline)
    }

    /// As where the binding keeps order: a failed attempt is repeated in its place, and attempts begin again with each delivery.
    #[must_use]
    pub fn ordered(self) -> Self {
        self.changed(|binding| binding.ordering = Some(Ordering { key_tokens: Vec::new() }))
    }

    /// Without dead letters, as with `deadLetter.policy: Drop`.
    #[must_use]
    pub fn drop_dead_letters(self) -> Self {
        self.changed(|binding| binding.dead_letters = None)
    }

    /// With the options that the service adds its handler with.
    #[must_use]
    pub fn options(self, options: HandlerOptions) -> Self {
        Self { options, ..self.changed(|_| {}) }
    }

    fn changed(mut self, change: impl FnOnce(&mut Binding)) -> Self {
        change(&mut self.binding);
        self.runner = None;
        self
    }

    /// The handler under test.
    #[must_use]
    pub fn handler(&self) -> &H {
        &self.handler
    }

    /// The dead letters, in the order in which they were written. They are written as any event is, so a test can have that
    /// [fail](RecordedPublisher::fail_next).
    #[must_use]
    pub fn dead_letters(&self) -> &RecordedPublisher {
        &self.dead_letters
    }

    /// Delivers an event, and makes one attempt. Where order is kept, what was to be repeated in its place is dropped.
    ///
    /// The same [sequence](TestEvent::sequence) and time delivered again are the same event: what this process knows of it counts.
    pub async fn deliver(&mut self, event: TestEvent) -> Settled {
        let (event, metadata) = self.numbered(event);
        let runner = self.runner();
        let ObservedAttempt { decision, end } =
            runner.attempt(runner.deliver(metadata, event.payload(), event.calls())).await;
        Settled::of(decision, &end)
    }

    /// Delivers an event until it does not come again, and says what became of it each time. The delays between the attempts do not pass: it
    /// is delivered again at once. It ends after 1,000 attempts at the latest.
    pub async fn deliver_until_settled(&mut self, event: TestEvent) -> Vec<Settled> {
        let (event, mut metadata) = self.numbered(event);
        let runner = self.runner();
        let mut next = Some(runner.deliver(metadata.clone(), event.payload(), event.calls()));
        metadata.attempt = metadata.attempt.max(event.calls().saturating_add(1));
        let mut outcomes = Vec::new();
        while let Some(pending) = next.take()
            && outcomes.len() < MAX_DELIVERIES
        {
            let ObservedAttempt { decision, end } = runner.attempt(pending).await;
            outcomes.push(Settled::of(decision, &end));
            next = match end {
                DeliveryEnd::Acknowledged | DeliveryEnd::Terminated { .. } => None,
                DeliveryEnd::Repeated { next, .. } => Some(next),
                DeliveryEnd::Redelivered { .. } => {
                    metadata.attempt = metadata.attempt.saturating_add(1);
                    Some(runner.deliver(metadata.clone(), event.payload(), 0))
                }
            };
        }
        outcomes
    }

    /// The event, which has the next sequence where it has none, and what is delivered with it.
    fn numbered(&mut self, event: TestEvent) -> (TestEvent, Metadata) {
        let source = Source {
            stream: self.binding.stream.clone(),
            consumer: self.binding.consumer.clone(),
            event_consumer: self.name.to_owned(),
            epoch: 0,
        };
        let event = event.or_sequence(self.last_sequence + 1);
        let metadata = event.metadata(&Arc::new(source));
        self.last_sequence = self.last_sequence.max(metadata.sequence);
        (event, metadata)
    }

    fn runner(&mut self) -> &TestRunner<Shared<H>> {
        let Self { name, handler, options, binding, dead_letters, .. } = self;
        self.runner.get_or_insert_with(|| {
            let metrics = Metrics::register(&mut Registry::default()).handler(name);
            let (handler, tools) = (Shared(Arc::clone(handler)), (dead_letters.publisher(), metrics));
            TestRunner::new(HandlerRunner::new((*name, handler), *options, binding, tools))
        })
    }
}

fn dead_letters(stream: &str, consumer: &str) -> DeadLetters {
    DeadLetters { prefix: dead_letter::prefix(stream, consumer), max_age: None }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use parking_lot::Mutex;

    use super::*;
    use crate::{EVENT_TYPE, UnknownTypes, testing};

    /// How long blocking code runs: much longer than a deadline of 50 ms, also on a busy machine.
    const BLOCKS: Duration = Duration::from_secs(1);

    #[derive(Clone, PartialEq, prost::Message)]
    struct Order {
        /// What the handler does with it.
        #[prost(string, tag = "1")]
        what: String,
    }

    impl prost::Name for Order {
        const NAME: &'static str = "Order";
        const PACKAGE: &'static str = "tests.v1";
    }

    /// Does what the event says, and remembers what it was called with.
    #[derive(Default)]
    struct Obedient {
        calls: Mutex<Vec<Metadata>>,
        /// How often its blocking code ended.
        ended: Arc<AtomicUsize>,
    }

    impl Obedient {
        fn calls(&self) -> Vec<Metadata> {
            self.calls.lock().clone()
        }
    }

    impl Handler for Obedient {
        type Event = Order;

        async fn handle(&self, order: Order, metadata: &Metadata) -> Result<(), HandlerError> {
            self.calls.lock().push(metadata.clone());
            match order.what.as_str() {
                "fail" => Err(HandlerError::transient("busy")),
                "fail until the last attempt" if !metadata.is_last_attempt => {
                    Err(HandlerError::transient("not yet"))
                }
                "wait" => Err(HandlerError::retry_after(Duration::from_secs(7), "full")),
                "refuse" => Err(HandlerError::permanent("never")),
                "panic" => panic!("no such order"),
                "hang" => std::future::pending().await,
                "block" => {
                    let ended = Arc::clone(&self.ended);
                    let code = move || {
                        std::thread::sleep(BLOCKS);
                        ended.fetch_add(1, SeqCst);
                    };
                    crate::blocking(code).await
                }
                _ => Ok(()),
            }
        }
    }

    fn test() -> HandlerTest<Obedient> {
        HandlerTest::new("shipping", Obedient::default()).stream("orders").max_attempts(3)
    }

    fn order(what: &str) -> TestEvent {
        testing::event("orders.7.placed", &Order { what: what.to_owned() })
    }

    fn busy_for_three_attempts() -> Vec<Settled> {
        vec![
            Settled::retried(Duration::from_millis(500), "busy"),
            Settled::retried(Duration::from_secs(1), "busy"),
            Settled::dead_lettered("last-attempt", "busy"),
        ]
    }

    fn attempts(test: &HandlerTest<Obedient>) -> Vec<(u64, u32, bool)> {
        let attempt = |call: &Metadata| (call.sequence, call.attempt, call.is_last_attempt);
        test.handler().calls().iter().map(attempt).collect()
    }

    #[tokio::test]
    async fn a_handler_is_called_with_what_the_event_says() {
        let mut test = test();
        let time = "2026-11-21T09:00:00Z".parse().unwrap();
        let event = order("").header("Color", "red").partition(3).sequence(9).time(time).lag(4);
        assert_eq!(test.deliver(event).await, Settled::Acknowledged);
        let mut headers = crate::HeaderMap::new();
        for (name, value) in
            [("Event-Type", "tests.v1.Order"), ("Content-Type", "application/protobuf"), ("Color", "red")]
        {
            headers.insert(name, value);
        }
        let source = Source {
            stream: "orders".to_owned(),
            consumer: "shipping".to_owned(),
            event_consumer: "shipping".to_owned(),
            epoch: 0,
        };
        let expected = Metadata {
            subject: "orders.7.placed".into(),
            partition: Some(3),
            headers,
            source: Arc::new(source),
            sequence: 9,
            time,
            attempt: 1,
            is_last_attempt: false,
            lag: 4,
        };
        assert_eq!(test.handler().calls(), [expected]);
    }

    #[tokio::test]
    async fn a_failing_event_is_tried_again_after_growing_delays_until_it_is_a_dead_letter() {
        let mut test = test();
        assert_eq!(test.deliver_until_settled(order("fail")).await, busy_for_three_attempts());
        assert_eq!(attempts(&test), [(1, 1, false), (1, 2, false), (1, 3, true)]);
        let letters = test.dead_letters().events();
        let [letter] = letters.as_slice() else { panic!("{letters:?}") };
        assert_eq!(
            (letter.stream.as_str(), letter.decode()),
            ("orders-dlq", Ok(Order { what: "fail".into() }))
        );
        assert_eq!(letter.subject, "jetwright.dlq.orders.shipping.1.1767225600000000000");
        let headers = [dead_letter::ATTEMPTS, dead_letter::REASON, dead_letter::ERROR, EVENT_TYPE];
        let values = ["3", "last-attempt", "busy", "tests.v1.Order"];
        assert_eq!(headers.map(|name| letter.header(name)), values.map(Some));
    }

    #[tokio::test]
    async fn where_order_is_kept_attempts_follow_each_other_in_one_delivery() {
        let mut test = test().ordered();
        assert_eq!(test.deliver_until_settled(order("fail")).await, busy_for_three_attempts());
        assert_eq!(attempts(&test), [(1, 1, false), (1, 2, false), (1, 3, true)]);
        // Attempts begin again with every delivery.
        let delivered_again = test.deliver(order("fail").deliveries(3)).await;
        assert_eq!(delivered_again, busy_for_three_attempts()[0]);
        assert_eq!(test.deliver(order("fail").attempt(3)).await, busy_for_three_attempts()[2]);
    }

    #[tokio::test]
    async fn an_event_that_was_only_handed_over_is_not_at_its_last_attempt() {
        let mut test = test();
        let event = || order("fail until the last attempt");
        let last = Settled::Acknowledged;
        let not_yet = Settled::retried(Duration::from_secs(2), "not yet");
        assert_eq!(test.deliver(event().attempt(3)).await, last);
        assert_eq!(test.deliver(event().deliveries(3)).await, not_yet);
        // The same event again, of which this process knows that it called the handler with it.
        assert_eq!(test.deliver(event().sequence(2).deliveries(4)).await, last);
    }

    #[tokio::test]
    async fn a_delay_is_what_the_binding_or_the_handler_says() {
        let seconds = Duration::from_secs;
        let mut test = test().backoff(seconds(2), 10, seconds(15)).max_attempts(9);
        let mut delays = Vec::new();
        for attempt in 1..=3 {
            delays.push(test.deliver(order("fail").attempt(attempt)).await);
        }
        assert_eq!(delays, [2, 15, 15].map(|delay| Settled::retried(seconds(delay), "busy")));
        assert_eq!(test.deliver(order("wait")).await, Settled::retried(seconds(7), "full"));
    }

    #[tokio::test]
    async fn what_trying_again_cannot_mend_is_a_dead_letter_at_once() {
        let mut test = test();
        assert_eq!(test.deliver(order("refuse")).await, Settled::dead_lettered("permanent", "never"));
        let untyped = testing::untyped_event("orders.7.placed", "x");
        let expected = Settled::dead_lettered("undecodable", "header Event-Type is missing");
        assert_eq!(test.deliver(untyped).await, expected);
        let malformed = testing::raw_event("orders.7.placed", "tests.v1.Order", "x");
        let outcome = test.deliver(malformed).await;
        assert!(matches!(outcome, Settled::DeadLettered { reason: "undecodable", .. }), "{outcome:?}");
        let too_often = test.deliver(order("").deliveries(27)).await;
        assert!(
            matches!(too_often, Settled::DeadLettered { reason: "delivered-too-often", .. }),
            "{too_often:?}"
        );
        assert_eq!((test.dead_letters().events().len(), attempts(&test).len()), (4, 1));
    }

    #[tokio::test]
    async fn an_unknown_type_is_given_up_or_ignored_as_the_options_say() {
        let unknown = || testing::raw_event("orders.7.moved", "tests.v1.Moved", "");
        let expected =
            Settled::dead_lettered("undecodable", r#"event type "tests.v1.Moved" is not handled here"#);
        assert_eq!(test().deliver(unknown()).await, expected);
        let options = HandlerOptions { unknown_types: UnknownTypes::Ignore, ..HandlerOptions::default() };
        assert_eq!(test().options(options).deliver(unknown()).await, Settled::Ignored);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_and_a_missed_deadline_are_tried_again() {
        let mut test = test().deadline(Duration::from_secs(30));
        let first = |error: &str| Settled::retried(Duration::from_millis(500), error);
        assert_eq!(test.deliver(order("panic")).await, first("the handler panicked: no such order"));
        assert_eq!(test.deliver(order("hang")).await, first("the handler took longer than 30s"));
    }

    #[tokio::test]
    async fn an_event_whose_dead_letter_cannot_be_written_comes_again_and_is_not_handled_again() {
        for mut test in [test(), test().ordered()] {
            test.dead_letters().fail_next(2);
            let delayed = Settled::DeadLetterDelayed {
                after: Duration::from_mins(1),
                reason: "permanent",
                error: "never".to_owned(),
            };
            let expected = [delayed.clone(), delayed, Settled::dead_lettered("permanent", "never")];
            assert_eq!(test.deliver_until_settled(order("refuse")).await, expected);
            assert_eq!((test.dead_letters().events().len(), attempts(&test).len()), (1, 1));
        }
    }

    #[tokio::test]
    async fn a_test_ends_where_an_event_would_not() {
        let mut test = test();
        test.dead_letters().fail_next(usize::MAX);
        assert_eq!(test.deliver_until_settled(order("refuse")).await.len(), MAX_DELIVERIES);
    }

    #[tokio::test]
    async fn where_no_dead_letters_are_kept_the_event_is_terminated() {
        let mut test = test().drop_dead_letters();
        let expected = Settled::Terminated { reason: "permanent", error: "never".to_owned() };
        assert_eq!(test.deliver(order("refuse")).await, expected);
        assert_eq!(test.dead_letters().events(), []);
    }

    #[tokio::test]
    async fn an_ordered_attempt_ends_with_its_blocking_code() {
        for (mut test, ended) in [(test().ordered(), 1), (test(), 0)] {
            test = test.deadline(Duration::from_millis(50));
            let expected = Settled::retried(Duration::from_millis(500), "the handler took longer than 50ms");
            assert_eq!(test.deliver(order("block")).await, expected);
            assert_eq!(test.handler().ended.load(SeqCst), ended);
        }
    }

    #[tokio::test]
    async fn an_event_that_was_delivered_too_often_is_known_to_be_when_the_lease_is_back() {
        let mut test = test();
        let (event, metadata) = test.numbered(order("").deliveries(27));
        let runner = test.runner();
        let pending = runner.attempt_without_lease(runner.deliver(metadata, event.payload(), 0)).await;
        let end = runner.attempt(pending).await.end;
        assert!(matches!(end, DeliveryEnd::Terminated { is_kept: true }));
        assert!(test.handler().calls().is_empty(), "it was delivered too often to be handled");
    }

    #[tokio::test]
    async fn a_failure_without_the_lease_is_none_before_it_is_written() {
        let mut test = test();
        let (event, metadata) = test.numbered(order("refuse"));
        let runner = test.runner();
        let pending = runner.attempt_without_lease(runner.deliver(metadata, event.payload(), 0)).await;
        assert_eq!(test.dead_letters().events(), [], "the next owner may succeed");
        test.runner().attempt(pending).await;
        assert_eq!((test.handler().calls().len(), test.dead_letters().events().len()), (2, 1));
    }

    #[tokio::test]
    async fn an_event_that_was_given_up_is_known_to_be_when_the_lease_is_back() {
        let mut test = test().ordered();
        test.dead_letters().fail_next(1);
        let (event, metadata) = test.numbered(order("refuse"));
        let runner = test.runner();
        let attempt = runner.attempt(runner.deliver(metadata, event.payload(), 0)).await;
        let DeliveryEnd::Repeated { next: pending, .. } = attempt.end else {
            panic!("its dead letter was written")
        };
        let pending = runner.attempt_without_lease(pending).await;
        assert_eq!(test.dead_letters().events(), []);
        let end = test.runner().attempt(pending).await.end;
        assert!(matches!(end, DeliveryEnd::Terminated { is_kept: true }));
        assert_eq!((test.handler().calls().len(), test.dead_letters().events().len()), (1, 1));
    }
}
