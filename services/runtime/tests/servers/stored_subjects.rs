//! A stream with partitions stores subjects with a number; programs see them as they were published.

use async_nats::jetstream::{consumer, stream};
use jetwright_runtime::{
    Aggregate, Aggregates, ApplyError, ErrorKind, Expected, Handler, HandlerError, HandlerOptions, Metadata,
    Projection, PublishOptions, StoredEvent,
};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    accounts::{AccountEvent, Bank, Paid, paid},
    support::{Bench, Number, SOON, publish, recorded_spans, spans_of},
};

/// Tells what it is called with.
struct Telling(mpsc::UnboundedSender<Metadata>);

impl Handler for Telling {
    type Event = Number;

    async fn handle(&self, _: Number, metadata: &Metadata) -> Result<(), HandlerError> {
        self.0.send(metadata.clone()).map_err(HandlerError::permanent)
    }
}

#[tokio::test]
async fn a_handler_is_told_the_published_subject_and_the_partition() {
    let exporter = recorded_spans();
    let mut bench = Bench::without_consumer().await;
    let publisher = bench.publisher().await;
    publish(&publisher, 7).await;
    bench = bench.partitioned().await;
    let filters = ["numbers.*", "numbers.*.*"].map(str::to_owned).to_vec();
    let config = consumer::pull::Config { filter_subjects: filters, ..bench.consumer() };
    bench.jetstream.update_consumer_on_stream(config, "numbers").await.unwrap();
    let (sender, mut told) = mpsc::unbounded_channel();
    let service = bench.run_handler(Telling(sender), HandlerOptions::default()).await;
    publish(&publisher, 7).await;
    let stored = bench.jetstream.get_stream("numbers").await.unwrap().get_raw_message(2).await.unwrap();
    let (subject, number) = stored.subject.rsplit_once('.').unwrap();
    assert_eq!(subject, "numbers.7");
    for partition in [None, Some(number.parse().unwrap())] {
        let metadata = timeout(SOON, told.recv()).await.unwrap().unwrap();
        assert_eq!((metadata.subject.as_str(), metadata.partition), ("numbers.7", partition));
    }
    bench.await_drained().await;
    let trace = stored.headers.get("traceparent").unwrap().as_str().split('-').nth(1).unwrap();
    let spans = spans_of(&exporter, trace);
    let of_partition = spans.iter().filter(|span| {
        let is_partition = |attribute: &opentelemetry::KeyValue| {
            attribute.key.as_str() == "messaging.destination.partition.id"
                && attribute.value.as_str() == number
        };
        span.name == "process numbers.*" && span.attributes.iter().any(is_partition)
    });
    assert_eq!(of_partition.count(), 1, "{spans:?}");
    service.stop().await;
}

/// Sequences, subjects and whether there is a partition, under a filter.
async fn history(bank: &Bank, filter: &str) -> Vec<(u64, String, bool)> {
    let history = bank.service().await.reader().history("accounts", filter).await.unwrap();
    history
        .events
        .into_iter()
        .map(|event| (event.sequence, event.subject, event.partition.is_some()))
        .collect()
}

#[tokio::test]
async fn a_history_is_asked_for_by_published_subjects_and_has_what_came_before_the_partitions() {
    for allow_direct in [true, false] {
        let mut bank = Bank::with(stream::Config { allow_direct, ..crate::accounts::config() }).await;
        bank.pay("ann", [1]).await;
        bank.close("bob").await;
        bank.partition().await;
        bank.pay("ann", [2, 3]).await;
        bank.close("ann").await;
        bank.pay("bob", [4]).await;
        let event = |sequence, subject: &str| (sequence, subject.to_owned(), sequence > 2);
        let paid = [1, 3, 4].map(|sequence| event(sequence, "accounts.ann.paid"));
        let closed = event(5, "accounts.ann.closed");
        let bobs = [event(2, "accounts.bob.closed"), event(6, "accounts.bob.paid")];
        assert_eq!(history(&bank, "accounts.ann.paid").await, paid);
        assert_eq!(
            history(&bank, "accounts.ann.>").await,
            [&paid[..], std::slice::from_ref(&closed)].concat()
        );
        assert_eq!(history(&bank, "accounts.bob.>").await, bobs);
        assert_eq!(history(&bank, "accounts.*.closed").await, [bobs[0].clone(), closed]);
        assert_eq!(history(&bank, "accounts.*.paid").await, [&paid[..], &bobs[1..]].concat());
        assert_eq!(history(&bank, ">").await.len(), 6);
        // Nothing was published under what is only stored.
        assert_eq!(history(&bank, "accounts.ann.paid.>").await, []);
    }
}

#[tokio::test]
async fn an_expected_sequence_that_the_server_would_not_find_is_refused() {
    let [_, bank] = Bank::both().await;
    let publisher = bank.service().await.publisher();
    let pay = async |expected| {
        let options = PublishOptions { expected: Some(expected), ..PublishOptions::default() };
        publisher
            .publish("accounts.ann.paid", &Paid { amount: 1 }, options)
            .await
            .map_err(|error| error.kind())
    };
    // Without a look at it, the server stores both: no stored subject is this one.
    for _ in 0..2 {
        assert_eq!(pay(Expected::none("accounts.ann.paid")).await, Err(ErrorKind::Refused));
    }
    assert_eq!(bank.stored("accounts").await, 0);
    assert!(pay(Expected::none("accounts.ann.>")).await.is_ok());
    assert_eq!(pay(Expected::none("accounts.ann.>")).await, Err(ErrorKind::Conflict));
    assert!(pay(Expected::last(1, "accounts.ann.>")).await.is_ok());
}

/// The names of the account's events, which are the last tokens of their subjects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Names(Vec<String>);

impl Aggregate for Names {
    type Event = AccountEvent;

    fn apply(&mut self, _: AccountEvent, stored: &StoredEvent) {
        self.0.push(stored.subject.rsplit('.').next().unwrap().to_owned());
    }
}

#[tokio::test]
async fn an_aggregate_whose_stream_gets_partitions_goes_on() {
    let mut bank = Bank::open().await;
    let pay_twice = async |bank: &Bank| {
        let accounts = bank.accounts().await;
        for _ in 0..2 {
            let ann = accounts.load("ann").await.unwrap();
            accounts.append(&ann, paid(1)).await.unwrap();
            assert_eq!(accounts.append(&ann, paid(1)).await.unwrap_err().kind(), ErrorKind::Conflict);
        }
    };
    pay_twice(&bank).await;
    // A program that does not know of them yet writes and reads the same events.
    let before = bank.accounts().await;
    bank.partition().await;
    pay_twice(&bank).await;
    bank.close("ann").await;
    assert_eq!(before.load("ann").await.unwrap().last_sequence(), 5);
    let names: Aggregates<Names> = bank.service().await.aggregates("accounts", "accounts");
    let expected = ["paid", "paid", "paid", "paid", "closed"].map(str::to_owned).to_vec();
    assert_eq!(names.load("ann").await.unwrap().into_state(), Names(expected));
}

/// Entries by the last token of a subject, from events of all accounts.
struct ByName;

impl Projection for ByName {
    type Event = AccountEvent;
    type Entry = u64;
    const BUCKET: &'static str = "names";

    fn key(subject: &str) -> Option<&str> {
        subject.rsplit('.').next()
    }

    fn filter(name: &str) -> String {
        format!("accounts.*.{name}")
    }

    fn apply(count: Option<u64>, _: AccountEvent, _: &StoredEvent) -> Result<Option<u64>, ApplyError> {
        Ok(Some(count.unwrap_or_default() + 1))
    }
}

#[tokio::test]
async fn a_projection_may_key_by_the_last_token_of_a_subject() {
    for bank in Bank::both().await {
        bank.bucket("names").await;
        bank.pay("ann", [1, 2]).await;
        bank.close("ann").await;
        bank.pay("bob", [3]).await;
        let service = bank.service().await;
        let rebuilt = service.rebuild::<ByName>("balances").await.unwrap();
        assert_eq!((rebuilt.events, rebuilt.rebuilt, rebuilt.removed), (4, 2, 0));
        let view = service.view::<ByName>();
        for (name, count, sequence) in [("paid", 3, 4), ("closed", 1, 3)] {
            let entry = view.get(name).await.unwrap().unwrap();
            assert_eq!((entry.entry, entry.position.sequence), (Some(count), sequence), "{name}");
        }
    }
}
