//! What reading costs the server, how histories that take long are read in the end, and events that no client can be sent.

use std::time::Duration;

use async_nats::{Client, Subscriber, jetstream::stream};
use futures::{StreamExt, future::join_all};
use jetwright_crds::Duration as Text;
use jetwright_runtime::{AggregateError, Aggregates, Decision, NewEvent};
use jetwright_testing::await_until;
use prometheus_client::{encoding::text::encode, registry::Registry};
use prost::Message;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::{
    accounts::{Account, Balances, Bank, Closed, Paid, config, paid},
    support::SOON,
};

/// A header block that async-nats cannot parse.
const UNPARSABLE: &[u8] = b"NATS/1.0\r\nEvent-Type: tests.v1.Paid\r\nX Trace: 1\r\n\r\n";

/// Hears what is asked of JetStream.
struct Requests {
    client: Client,
    requests: Subscriber,
}

impl Requests {
    async fn to(bank: &Bank) -> Self {
        let client = async_nats::connect(&bank.url).await.unwrap();
        let requests = client.subscribe("$JS.API.>").await.unwrap();
        let mut requests = Self { client, requests };
        // The server knows of it when it has heard this.
        requests.taken().await;
        requests
    }

    /// What was asked for since this was called last.
    async fn taken(&mut self) -> Vec<Value> {
        const MARK: &str = "$JS.API.MARK";
        self.client.publish(MARK, "".into()).await.unwrap();
        let mut taken = Vec::new();
        loop {
            let request = self.requests.next().await.unwrap();
            if request.subject.as_str() == MARK {
                return taken;
            }
            taken.push(serde_json::from_slice(&request.payload).unwrap());
        }
    }
}

/// Publishes with a header block as it is.
async fn publish_raw(bank: &Bank, subject: &str, header: &[u8], payload: &[u8]) {
    let connection = TcpStream::connect(bank.url.trim_start_matches("nats://")).await.unwrap();
    let (read, mut write) = connection.into_split();
    let mut lines = BufReader::new(read).lines();
    let head = format!("HPUB {subject} {} {}\r\n", header.len(), header.len() + payload.len());
    let connect = "CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n";
    let all = [connect.as_bytes(), head.as_bytes(), header, payload, b"\r\nPING\r\n"].concat();
    write.write_all(&all).await.unwrap();
    while let Some(line) = lines.next_line().await.unwrap() {
        assert!(!line.starts_with("-ERR"), "{line}");
        if line == "PONG" {
            return;
        }
    }
}

/// Stores a payment that no client can be sent.
async fn pay_unparsable(bank: &Bank, id: &str) {
    let before = bank.stored("accounts").await;
    let payload = Paid { amount: 5 }.encode_to_vec();
    publish_raw(bank, &format!("accounts.{id}.paid"), UNPARSABLE, &payload).await;
    await_until("the payment is stored", SOON, async || match bank.stored("accounts").await {
        stored if stored > before => Ok(()),
        stored => Err(stored),
    })
    .await;
}

/// How often a program has connected to NATS.
fn connections(registry: &Registry) -> u64 {
    let mut metrics = String::new();
    encode(&mut metrics, registry).unwrap();
    let start = "jetwright_nats_connections_total ";
    metrics.lines().find_map(|line| line.strip_prefix(start)).unwrap().parse().unwrap()
}

async fn append(accounts: &Aggregates<Account>, id: &str, event: fn() -> NewEvent) -> u64 {
    let updated = accounts.update(id, |_| Ok::<_, AggregateError>(Decision::Append(event(), ())));
    updated.await.unwrap().sequence
}

fn closed() -> NewEvent {
    NewEvent::new("closed", Closed {})
}

#[tokio::test]
async fn a_short_history_is_read_without_the_server_looking_through_the_stream() {
    for bank in Bank::both().await {
        let accounts = bank.accounts().await;
        for event in [|| paid(1), || paid(2), closed] {
            append(&accounts, "ann", event).await;
            bank.pay("bob", [1; 10]).await;
        }
        let mut requests = Requests::to(&bank).await;
        let ann = accounts.load("ann").await.unwrap();
        assert_eq!((ann.last_sequence(), ann.state()), (23, &Account::default()));
        let expected = [json!({"last_by_subj": "accounts.ann.>"}), json!({"seq": 12}), json!({"seq": 1})];
        assert_eq!(requests.taken().await, expected);
        // An account that begins is one question.
        append(&accounts, "eve", || paid(1)).await;
        requests.taken().await;
        assert_eq!(accounts.load("eve").await.unwrap().state().payments, 1);
        assert_eq!(requests.taken().await, [json!({"last_by_subj": "accounts.eve.>"})]);
    }
}

#[tokio::test]
async fn a_long_history_is_asked_for_by_its_subjects() {
    let bank = Bank::open().await;
    // Pages of the one end at other places than pages of the other.
    for round in 0..40 {
        bank.pay("ann", vec![1; 100]).await;
        bank.pay("bob", [1; 10]).await;
        if round % 4 == 0 {
            bank.close("ann").await;
        }
    }
    let accounts = bank.accounts().await;
    let mut requests = Requests::to(&bank).await;
    let ann = accounts.load("ann").await.unwrap();
    assert_eq!((ann.last_sequence(), ann.state().payments), (4400, 300));
    let requests = requests.taken().await;
    let filters: Vec<_> = requests.iter().filter_map(|request| request["next_by_subj"].as_str()).collect();
    assert!(filters.len() >= 5 && filters.iter().all(|filter| !filter.contains('>')), "{requests:?}");
    // All of them, in their order.
    let history = bank.service().await.reader().history("accounts", "accounts.ann.>").await.unwrap();
    let sequences: Vec<_> = history.events.iter().map(|event| event.sequence).collect();
    assert!(sequences.is_sorted() && sequences.len() == 4010, "{} events", sequences.len());
}

#[tokio::test]
async fn events_of_writers_that_expect_nothing_are_read_as_well_and_deleted_ones_end_nothing() {
    for bank in Bank::both().await {
        let accounts = bank.accounts().await;
        bank.pay("ann", [1]).await;
        append(&accounts, "ann", || paid(2)).await;
        bank.pay("ann", [4]).await;
        let appended = append(&accounts, "ann", || paid(8)).await;
        append(&accounts, "ann", || paid(16)).await;
        assert_eq!(accounts.load("ann").await.unwrap().state(), &Account { balance: 31, payments: 5 });
        bank.jetstream.get_stream("accounts").await.unwrap().delete_message(appended).await.unwrap();
        assert_eq!(accounts.load("ann").await.unwrap().state(), &Account { balance: 23, payments: 4 });
    }
}

#[tokio::test]
async fn what_a_stream_has_from_another_one_is_read_whole() {
    let bank = Bank::open().await;
    let accounts = bank.accounts().await;
    // At other sequences than there, and under names that lead nowhere.
    let copy = stream::Config {
        name: "copies".to_owned(),
        sources: Some(vec![stream::Source { name: "accounts".to_owned(), ..Default::default() }]),
        subjects: vec!["others.>".to_owned()],
        allow_direct: true,
        ..Default::default()
    };
    bank.jetstream.create_stream(copy).await.unwrap();
    bank.jetstream.publish("others.1", "".into()).await.unwrap().await.unwrap();
    for _ in 0..3 {
        append(&accounts, "ann", || paid(1)).await;
    }
    await_until("the copies", SOON, async || match bank.stored("copies").await {
        4 => Ok(()),
        stored => Err(stored),
    })
    .await;
    let copies: Aggregates<Account> = bank.service().await.aggregates("copies", "accounts");
    let ann = copies.load("ann").await.unwrap();
    assert_eq!((ann.last_sequence(), ann.state().payments), (4, 3));
}

#[tokio::test]
async fn of_many_who_load_an_aggregate_at_once_one_reads_its_events() {
    let bank = Bank::open().await;
    bank.pay("ann", vec![1; 5000]).await;
    let accounts = bank.accounts().await;
    let mut requests = Requests::to(&bank).await;
    let loads = join_all((0..32).map(|_| accounts.load("ann"))).await;
    assert!(loads.iter().all(|ann| ann.as_ref().unwrap().state().payments == 5000));
    let pages = requests.taken().await.iter().filter(|request| request["next_by_subj"].is_string()).count();
    // Those who came while the first one read share what the second one reads.
    assert!((5..=12).contains(&pages), "{pages} pages of 32 loads");
}

#[tokio::test]
async fn a_history_that_takes_too_long_is_loaded_in_the_end() {
    let bank = Bank::with(stream::Config { allow_direct: false, ..config() }).await;
    bank.bucket("snapshots").await;
    bank.pay("ann", vec![1; 100_000]).await;
    let service = bank.service().await;
    let accounts = service
        .aggregates::<Account>("accounts", "accounts")
        .with_snapshots(service.key_value("snapshots"), 1000);
    let ann = await_until("a load", Duration::from_mins(3), || accounts.load("ann")).await;
    assert_eq!(ann.state(), &Account { balance: 100_000, payments: 100_000 });
}

#[tokio::test]
async fn an_entry_of_more_events_than_an_attempt_has_time_for_is_made_in_the_end() {
    let mut bank = Bank::with(stream::Config { allow_direct: false, ..config() }).await;
    bank.handler_deadline = Text::from_secs(3);
    bank.bucket("balances").await;
    bank.pay("ann", vec![1; 40_000]).await;
    bank.deliver_from(40_000).await;
    // Each program has three attempts.
    let view = bank.service().await.view::<Balances>();
    await_until("the entry", Duration::from_mins(3), async || {
        bank.deliver_from(40_000).await;
        let keeping = bank.keep().await;
        let ended = await_until("its delivery to end", SOON, async || {
            match keeping.handled("done") + keeping.handled("last-attempt") {
                0 => Err("not yet"),
                _ => Ok(()),
            }
        });
        ended.await;
        keeping.stop().await;
        match view.get("ann").await.unwrap() {
            Some(seen) if seen.position.sequence == 40_000 => Ok(seen.entry),
            seen => Err(format!("{seen:?}")),
        }
    })
    .await;
    let ann = view.get("ann").await.unwrap().unwrap();
    assert_eq!(ann.entry, Some(Account { balance: 40_000, payments: 40_000 }));
}

#[tokio::test]
async fn an_event_that_no_client_can_be_sent_is_named_and_costs_one_connection_at_most() {
    for bank in Bank::both().await {
        // So far from both ends that it is in the middle of a page.
        bank.pay("ann", vec![1; 1500]).await;
        pay_unparsable(&bank, "ann").await;
        bank.pay("ann", vec![1; 1500]).await;
        bank.pay("bob", [1; 10]).await;
        let mut registry = Registry::default();
        let service = bank.registered(&mut registry).await;
        let accounts: Aggregates<Account> = service.aggregates("accounts", "accounts");
        for _ in 0..3 {
            let error = accounts.load("ann").await.unwrap_err();
            assert_eq!(error.to_string(), "failed to read the event 1501 on accounts.ann.paid");
            // Others are read as ever.
            assert_eq!(accounts.load("bob").await.unwrap().state().payments, 10);
        }
        // A history shows it among the others.
        let history = service.reader().history("accounts", "accounts.ann.paid").await.unwrap();
        assert_eq!(history.events.len(), 3001);
        let event = &history.events[1500];
        assert_eq!((event.sequence, event.event_type()), (1501, ""));
        let why = event.decode::<Paid>().unwrap_err().to_string();
        assert_eq!(why, "its header name \"X Trace\" is not allowed");
        assert!(connections(&registry) <= 2, "{} connections", connections(&registry));
    }
}

#[tokio::test]
async fn the_newest_event_of_an_aggregate_costs_no_connection_whatever_its_bytes_are() {
    let bank = Bank::open().await;
    let mut registry = Registry::default();
    let service = bank.registered(&mut registry).await;
    let accounts: Aggregates<Account> = service.aggregates("accounts", "accounts");
    for (id, block) in [
        ("ann", UNPARSABLE),
        ("bob", b"NATS/1.0\r\nEvent-Type: tests.v1.Paid\r\nX: a\rb\r\n\r\n"),
        ("eve", b"NATS/1.0\r\nEvent-Type: tests.v1.Paid\r\nX: caf\xe9\r\n\r\n"),
        ("joe", b"NATS/1.0\r\nno colon\r\n\r\n"),
    ] {
        append(&accounts, id, || paid(1)).await;
        publish_raw(&bank, &format!("accounts.{id}.paid"), block, &[]).await;
        await_until("an event that cannot be read", SOON, async || match accounts.load(id).await {
            Err(AggregateError::Unreadable { subject, .. }) => {
                assert_eq!(subject, format!("accounts.{id}.paid"));
                Ok(())
            }
            other => Err(format!("{other:?}")),
        })
        .await;
    }
    assert_eq!(connections(&registry), 1);
}

#[tokio::test]
async fn a_projection_passes_over_what_no_client_can_be_sent() {
    for bank in Bank::both().await {
        bank.bucket("balances").await;
        bank.pay("ann", [1; 20]).await;
        pay_unparsable(&bank, "ann").await;
        bank.pay("ann", [1; 20]).await;
        bank.deliver_from(41).await;
        let keeping = bank.keep().await;
        let view = bank.service().await.view::<Balances>();
        let ann = view.get_at_least("ann", 41, SOON).await.unwrap().unwrap();
        assert_eq!(ann.entry, Some(Account { balance: 40, payments: 40 }));
        keeping.stop().await;

        let mut registry = Registry::default();
        let service = bank.registered(&mut registry).await;
        for _ in 0..2 {
            let rebuilt = service.rebuild::<Balances>("balances").await.unwrap();
            assert_eq!((rebuilt.events, rebuilt.rebuilt), (41, 1));
        }
        assert!(connections(&registry) <= 2, "{} connections", connections(&registry));
    }
}
