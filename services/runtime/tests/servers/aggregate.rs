//! Aggregates: whoever decides on an old state is told, and long histories are read fast and whole.

use std::sync::atomic::{AtomicU32, Ordering};

use async_nats::jetstream::{kv, stream};
use futures::future::join_all;
use jetwright_runtime::{
    Aggregate, AggregateError, Aggregates, Decision, ErrorKind, NewEvent, Snapshot, StoredEvent,
};
use jetwright_testing::{NatsCluster, NatsServer, await_until};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    accounts::{Account, AccountEvent, Bank, Paid, config, paid},
    support::{Number, SOON},
};

#[tokio::test]
async fn an_aggregate_is_its_events_and_whoever_saw_less_is_told() {
    for bank in Bank::both().await {
        let accounts = bank.accounts().await;
        let none = accounts.load("ann").await.unwrap();
        assert_eq!((none.last_sequence(), none.state()), (0, &Account::default()));
        let first = accounts.append(&none, paid(10)).await.unwrap();
        accounts.append(&accounts.assume_new("bob"), paid(1)).await.unwrap();
        let ann = accounts.load("ann").await.unwrap();
        assert_eq!(
            (ann.last_sequence(), ann.state()),
            (first.sequence, &Account { balance: 10, payments: 1 })
        );

        for stale in [none, accounts.assume_new("ann")] {
            assert_eq!(accounts.append(&stale, paid(5)).await.unwrap_err().kind(), ErrorKind::Conflict);
        }
        accounts.append(&accounts.assume_new("eve"), paid(1)).await.unwrap();
        assert!(accounts.is_current(&ann).await.unwrap());
        accounts.append(&ann, paid(-3)).await.unwrap();
        assert!(!accounts.is_current(&ann).await.unwrap());
        assert_eq!(accounts.append(&ann, paid(-3)).await.unwrap_err().kind(), ErrorKind::Conflict);
        let ann = accounts.load("ann").await.unwrap();
        assert_eq!((ann.last_sequence(), ann.into_state()), (4, Account { balance: 7, payments: 2 }));
    }
}

#[tokio::test]
async fn what_is_no_token_of_a_subject_is_no_id_and_no_name() {
    let bank = Bank::open().await;
    let accounts = bank.accounts().await;
    for wrong in ["", "a.b", "*", ">", "a b"] {
        let Err(AggregateError::JetStream(error)) = accounts.load(wrong).await else { panic!("{wrong:?}") };
        assert_eq!(error.kind(), ErrorKind::Refused);
        let named = NewEvent::new(wrong.to_owned(), Paid { amount: 1 });
        let refused = accounts.append(&accounts.assume_new("ann"), named).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused);
    }
    let service = bank.service().await;
    let all: Aggregates<Account> = service.aggregates("accounts", "*");
    assert!(all.load("ann").await.is_err());
}

#[tokio::test]
async fn an_event_that_cannot_be_read_is_named() {
    for bank in Bank::both().await {
        bank.pay("ann", [1]).await;
        bank.store("accounts.ann.counted", "tests.v1.Number", &Number { value: 7 }).await.await.unwrap();
        let error = bank.accounts().await.load("ann").await.unwrap_err();
        assert_eq!(error.to_string(), "failed to read the event 2 on accounts.ann.counted");
    }
}

#[tokio::test]
async fn of_many_who_decide_at_once_each_event_is_stored_once_and_on_what_was_before_it() {
    for bank in Bank::both().await {
        let programs = [bank.accounts().await, bank.accounts().await];
        let writers = (0..8).map(|writer| {
            let accounts = programs[writer % 2].clone();
            async move {
                let mut sequences = Vec::new();
                while sequences.len() < 5 {
                    // Each pays what is there already, and one more.
                    let updated = accounts.update("ann", |account| {
                        Ok::<_, AggregateError>(Decision::Append(paid(account.balance + 1), account.balance))
                    });
                    match updated.await {
                        Ok(updated) => {
                            assert!(updated.appended);
                            sequences.push((updated.sequence, updated.output));
                        }
                        Err(error) => assert!(error.is_conflict(), "{error}"),
                    }
                }
                sequences
            }
        });
        let mut updates: Vec<_> = join_all(writers).await.into_iter().flatten().collect();
        updates.sort_unstable();
        let expected: Vec<_> = (1..=40).map(|sequence| (sequence, (1_i64 << (sequence - 1)) - 1)).collect();
        assert_eq!(updates, expected);
        let ann = programs[0].load("ann").await.unwrap();
        assert_eq!(ann.state(), &Account { balance: (1 << 40) - 1, payments: 40 });
    }
}

#[tokio::test]
async fn what_was_stored_and_its_answer_lost_is_not_decided_once_more() {
    for mut bank in Bank::both().await {
        let proxy = bank.losing_answers().await;
        let accounts = bank.accounts().await;
        for (before, message_id) in [(0, None), (5, Some("orders/1/payments/0"))] {
            proxy.lose(1);
            let updated = accounts.update("ann", |account| {
                let event = match message_id {
                    Some(id) => paid(5).with_message_id(id),
                    None => paid(5),
                };
                Ok::<_, AggregateError>(Decision::Append(event, account.balance))
            });
            let updated = updated.await.unwrap();
            assert_eq!(proxy.left_to_lose(), 0, "no answer was lost");
            // Under an id that others may know, it may have been theirs.
            assert_eq!((updated.output, updated.appended), (before, message_id.is_none()));
        }
        assert_eq!(accounts.load("ann").await.unwrap().into_state(), Account { balance: 10, payments: 2 });
    }
}

#[derive(Debug, PartialEq, thiserror::Error)]
enum Refusal {
    #[error("short")]
    Short,
    #[error(transparent)]
    Account(#[from] AggregateError),
}

#[tokio::test]
async fn a_decision_for_nothing_appends_nothing_and_a_refusal_is_the_callers() {
    let bank = Bank::open().await;
    bank.pay("ann", [4]).await;
    let accounts = bank.accounts().await;
    let nothing = accounts
        .update("ann", |account| Ok::<_, AggregateError>(Decision::NoOp(account.balance)))
        .await
        .unwrap();
    assert_eq!((nothing.output, nothing.appended, nothing.sequence), (4, false, 1));
    let refused = accounts.update("ann", |_| Err::<Decision<()>, _>(Refusal::Short)).await;
    assert_eq!(refused, Err(Refusal::Short));
    assert_eq!(accounts.load("ann").await.unwrap().last_sequence(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_always_comes_too_late_is_told_of_the_conflict_in_the_end() {
    let bank = Bank::open().await;
    let accounts = bank.accounts().await;
    let (tries, runtime) = (AtomicU32::new(0), tokio::runtime::Handle::current());
    let always_late = accounts.update("ann", |_| {
        tries.fetch_add(1, Ordering::Relaxed);
        tokio::task::block_in_place(|| runtime.block_on(bank.pay("ann", [1])));
        Ok::<_, AggregateError>(Decision::Append(paid(100), ()))
    });
    let error = always_late.await.unwrap_err();
    assert!(error.is_conflict(), "{error}");
    assert_eq!(tries.into_inner(), 10);
    let ann = accounts.load("ann").await.unwrap();
    assert_eq!(ann.state(), &Account { balance: 10, payments: 10 });
}

#[tokio::test]
async fn an_event_under_a_message_id_is_appended_once() {
    for bank in Bank::both().await {
        let accounts = bank.accounts().await;
        for appended in [true, false] {
            let pay_once = |account: &Account| {
                let event = paid(1).with_message_id("a delivery");
                Ok::<_, AggregateError>(match account.payments {
                    0 => Decision::Append(event, ()),
                    _ => Decision::NoOp(()),
                })
            };
            let updated = accounts.update("ann", pay_once).await.unwrap();
            assert_eq!((updated.appended, updated.sequence), (appended, 1));
        }
    }
}

#[tokio::test]
async fn an_event_is_not_stored_in_a_stream_that_is_not_the_aggregates() {
    let bank = Bank::open().await;
    let others = stream::Config { name: "others".to_owned(), ..stream::Config::default() };
    bank.jetstream.create_stream(others).await.unwrap();
    let service = bank.service().await;
    let accounts: Aggregates<Account> = service.aggregates("others", "accounts");
    let refused = accounts.append(&accounts.assume_new("ann"), paid(1)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert!(
        refused.to_string().contains("stream accounts has this subject and is not the expected one"),
        "{refused}"
    );
    let mut other = bank.jetstream.get_stream("accounts").await.unwrap();
    assert_eq!(other.info().await.unwrap().state.messages, 0);
}

#[tokio::test]
async fn on_a_stream_with_partitions_aggregates_are_the_same() {
    let mut partitioned = config();
    partitioned.subject_transform = Some(stream::SubjectTransform {
        source: "accounts.*.*".to_owned(),
        destination: "accounts.{{wildcard(1)}}.{{wildcard(2)}}.{{partition(4,1)}}".to_owned(),
    });
    let bank = Bank::with(partitioned).await;
    let accounts = bank.accounts().await;
    let stale = accounts.assume_new("ann");
    for amount in [10, -3] {
        let updated = accounts.update("ann", |_| Ok::<_, AggregateError>(Decision::Append(paid(amount), ())));
        assert!(updated.await.unwrap().appended);
    }
    assert_eq!(accounts.append(&stale, paid(5)).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(accounts.load("ann").await.unwrap().state(), &Account { balance: 7, payments: 2 });
    let stored = bank.jetstream.get_stream("accounts").await.unwrap().get_raw_message(1).await.unwrap();
    assert_eq!(stored.subject.split('.').count(), 4, "{}", stored.subject);
    // Of those who create it at once, one does.
    let creations = (0..8).map(|_| accounts.append(&stale, paid(1)));
    assert!(join_all(creations).await.iter().all(Result::is_err));
    let bob = accounts.assume_new("bob");
    let created = join_all((0..8).map(|_| accounts.append(&bob, paid(1)))).await;
    assert_eq!(created.iter().filter(|created| created.is_ok()).count(), 1, "{created:?}");
}

#[tokio::test]
async fn a_long_history_is_read_whole_and_in_its_order() {
    for bank in Bank::both().await {
        bank.pay("bob", 0..10).await;
        bank.pay("ann", 0..12_345).await;
        bank.pay("bob", 10..20).await;
        let accounts = bank.accounts().await;
        let ann = accounts.load("ann").await.unwrap();
        let sum = (0..12_345).sum();
        assert_eq!((ann.last_sequence(), ann.state()), (12_355, &Account { balance: sum, payments: 12_345 }));

        let history = bank.service().await.reader().history("accounts", "accounts.*.paid").await.unwrap();
        let sequences: Vec<_> = history.events.iter().map(|event| event.sequence).collect();
        assert_eq!(sequences, (1..=12_365).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn large_events_are_read_too() {
    let bank = Bank::open().await;
    for _ in 0..5 {
        let large = Note { text: "x".repeat(700_000) };
        bank.store("accounts.ann.noted", "tests.v1.Note", &large).await.await.unwrap();
    }
    let history = bank.service().await.reader().history("accounts", "accounts.ann.>").await.unwrap();
    assert_eq!(history.events.len(), 5);
}

#[derive(Clone, PartialEq, prost::Message)]
struct Note {
    #[prost(string, tag = "1")]
    text: String,
}

#[tokio::test]
async fn a_stream_that_is_not_read_in_pages_is_read_one_by_one() {
    for bank in Bank::both_with(stream::Config { allow_direct: false, ..config() }).await {
        bank.pay("ann", 0..250).await;
        let ann = bank.accounts().await.load("ann").await.unwrap();
        assert_eq!((ann.last_sequence(), ann.state().balance), (250, (0..250).sum()));
    }
}

#[tokio::test]
async fn a_program_that_may_not_read_pages_reads_one_by_one() {
    let config = r#"accounts: { main: { jetstream: enabled, users: [
        {user: admin, password: admin}
        {user: service, password: pw, permissions: {
            publish: {allow: ["accounts.*.*", "$JS.API.STREAM.MSG.GET.accounts"]}, subscribe: {allow: ["_INBOX.>"]}}}
        ] } }
        no_auth_user: service"#;
    let nats = NatsServer::builder().config(config).start().await;
    let admin = async_nats::ConnectOptions::with_user_and_password("admin".to_owned(), "admin".to_owned());
    let jetstream = async_nats::jetstream::new(nats.client_with(admin).await);
    jetstream.create_stream(self::config()).await.unwrap();
    let url = nats.url().to_owned();
    let bank = Bank::on(nats, &url, jetstream);
    bank.pay("ann", 0..150).await;
    let accounts = bank.accounts().await;
    for _ in 0..2 {
        assert_eq!(accounts.load("ann").await.unwrap().state().payments, 150);
    }
}

#[tokio::test]
async fn what_was_just_written_is_read_through_servers_that_follow() {
    let cluster = NatsCluster::start(3).await;
    cluster.create_stream(stream::Config { num_replicas: 3, ..config() }).await;
    let jetstream = cluster.jetstream().await;
    let leader = cluster.stream_leader("accounts").await;
    // Servers give questions that any of them may answer to a client's own server, so this one answers for itself.
    let follower = &cluster.servers()[(leader + 1) % 3];
    let bank = Bank::on((), follower.url(), jetstream);
    bank.pay("ann", 0..100).await;
    let accounts = bank.accounts().await;
    for round in 0..300 {
        let updated = accounts.update("ann", |_| Ok::<_, AggregateError>(Decision::Append(paid(1), ())));
        let sequence = updated.await.unwrap().sequence;
        let ann = accounts.load("ann").await.unwrap();
        assert_eq!((ann.last_sequence(), ann.state().payments), (sequence, 101 + round));
    }
}

#[tokio::test]
async fn a_load_goes_on_while_the_leader_dies() {
    let cluster = NatsCluster::start(3).await;
    cluster.create_stream(stream::Config { num_replicas: 3, ..config() }).await;
    let jetstream = cluster.jetstream().await;
    let bank = Bank::on((), cluster.url(), jetstream);
    bank.pay("ann", 0..1500).await;
    let accounts = bank.accounts().await;
    let loading = tokio::spawn({
        let accounts = accounts.clone();
        async move {
            let mut loads = 0;
            for _ in 0..50 {
                match accounts.load("ann").await {
                    Ok(ann) => {
                        assert_eq!((ann.state().payments, ann.state().balance), (1500, (0..1500).sum()));
                        loads += 1;
                    }
                    Err(AggregateError::JetStream(error)) => assert_eq!(error.kind(), ErrorKind::Unavailable),
                    Err(error) => panic!("{error}"),
                }
            }
            loads
        }
    });
    cluster.servers()[cluster.stream_leader("accounts").await].kill();
    assert!(loading.await.unwrap() > 0);
    await_until("a load", SOON, || accounts.load("ann")).await;
}

/// Awaits the snapshot of an account.
async fn snapshot(bucket: &kv::Store, id: &str) -> Value {
    await_until(&format!("a snapshot of {id}"), SOON, async || {
        let value = bucket.get(id).await.map_err(|error| error.to_string())?.ok_or("none")?;
        Ok::<Value, String>(serde_json::from_slice(&value).unwrap())
    })
    .await
}

/// Changes the state in a snapshot, by which it can be seen in what is loaded.
async fn mark(bucket: &kv::Store, id: &str) {
    let mut kept = snapshot(bucket, id).await;
    kept["state"]["balance"] = json!(kept["state"]["balance"].as_i64().unwrap() + 1_000_000);
    bucket.put(id, kept.to_string().into()).await.unwrap();
}

/// A bank with snapshots after ten events, and one of them written.
async fn with_snapshot() -> (Bank, kv::Store, Aggregates<Account>) {
    let bank = Bank::open().await;
    let bucket = bank.bucket("snapshots").await;
    let service = bank.service().await;
    let accounts = service
        .aggregates::<Account>("accounts", "accounts")
        .with_snapshots(service.key_value("snapshots"), 10);
    bank.pay("ann", 0..20).await;
    assert_eq!(accounts.load("ann").await.unwrap().state().payments, 20);
    mark(&bucket, "ann").await;
    (bank, bucket, accounts)
}

#[tokio::test]
async fn a_snapshot_is_written_by_a_load_that_folded_enough_and_used_by_the_next() {
    let (bank, bucket, accounts) = with_snapshot().await;
    let ann = accounts.load("ann").await.unwrap();
    assert_eq!((ann.last_sequence(), ann.state()), (20, &Account { balance: 1_000_190, payments: 20 }));

    // What came after it is folded, and is not enough for another one.
    bank.pay("ann", [1; 9]).await;
    bank.pay("bob", [1; 10]).await;
    let ann = accounts.load("ann").await.unwrap();
    assert_eq!((ann.last_sequence(), ann.state()), (29, &Account { balance: 1_000_199, payments: 29 }));
    accounts.load("bob").await.unwrap();
    assert_eq!(snapshot(&bucket, "bob").await["position"]["sequence"], 39);
    assert_eq!(snapshot(&bucket, "ann").await["position"]["sequence"], 20);

    bank.pay("ann", [1]).await;
    accounts.load("ann").await.unwrap();
    await_until("the next snapshot", SOON, async || match snapshot(&bucket, "ann").await {
        kept if kept["position"]["sequence"] == 40 => Ok(()),
        kept => Err(kept),
    })
    .await;
    let ann = accounts.load("ann").await.unwrap();
    assert_eq!(ann.state(), &Account { balance: 1_000_200, payments: 30 });
    accounts.append(&ann, paid(1)).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_of_another_version_is_not_looked_at() {
    #[derive(Clone, Debug, Default, Serialize, Deserialize)]
    struct Later(Account);

    impl Aggregate for Later {
        type Event = AccountEvent;

        fn apply(&mut self, event: AccountEvent, recorded: &StoredEvent) {
            self.0.apply(event, recorded);
        }
    }

    impl Snapshot for Later {
        const VERSION: u32 = 2;
    }

    let (bank, bucket, _) = with_snapshot().await;
    let service = bank.service().await;
    let later = service
        .aggregates::<Later>("accounts", "accounts")
        .with_snapshots(service.key_value("snapshots"), 10);
    assert_eq!(later.load("ann").await.unwrap().into_state().0.balance, 190);
    await_until("a snapshot of the new version", SOON, async || match snapshot(&bucket, "ann").await {
        kept if kept["version"] == 2 => Ok(()),
        kept => Err(kept),
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_of_a_stream_that_was_made_again_is_not_believed() {
    let (bank, _, accounts) = with_snapshot().await;
    bank.make_stream_again().await;
    assert_eq!(accounts.load("ann").await.unwrap().last_sequence(), 0);
    // As many and more, at the same sequences.
    for events in [5, 15, 10] {
        bank.pay("ann", vec![1; events]).await;
        let ann = accounts.load("ann").await.unwrap();
        assert_eq!(ann.state().balance, i64::try_from(ann.state().payments).unwrap());
    }
    assert_eq!(accounts.load("ann").await.unwrap().last_sequence(), 30);
}

#[tokio::test]
async fn without_its_bucket_or_with_an_unreadable_snapshot_an_aggregate_is_loaded_all_the_same() {
    let (bank, bucket, accounts) = with_snapshot().await;
    bucket.put("ann", "{".into()).await.unwrap();
    assert_eq!(accounts.load("ann").await.unwrap().state().balance, 190);
    await_until("a readable snapshot", SOON, async || {
        let value = bucket.get("ann").await.unwrap().unwrap();
        serde_json::from_slice::<Value>(&value).map_err(|error| error.to_string())
    })
    .await;
    bank.jetstream.delete_key_value("snapshots").await.unwrap();
    assert_eq!(accounts.load("ann").await.unwrap().state().balance, 190);
}
