//! Projections: right in whatever order and however often events are delivered, and made anew while they are kept.

use std::{collections::BTreeMap, time::Duration};

use async_nats::jetstream::{kv, stream};
use jetwright_runtime::{Decision, Service, Versioned, View, ViewError};
use jetwright_testing::{NatsCluster, await_until};
use serde_json::{Value, json};

use crate::{
    accounts::{Account, Balances, Bank, config, paid},
    support::SOON,
};

/// A bank with a bucket for the projection.
async fn bank() -> (Bank, kv::Store, Service) {
    with_bucket(Bank::open().await).await
}

async fn with_bucket(bank: Bank) -> (Bank, kv::Store, Service) {
    let bucket = bank.bucket("balances").await;
    let service = bank.service().await;
    (bank, bucket, service)
}

/// What is known of an account.
async fn seen(view: &View<Balances>, id: &str) -> Option<Versioned<Account>> {
    view.get(id).await.unwrap()
}

/// Awaits an account's entry, with its event of this sequence in it.
async fn await_entry(view: &View<Balances>, id: &str, sequence: u64) -> Option<Account> {
    view.get_at_least(id, sequence, SOON).await.unwrap().unwrap().entry
}

/// An entry as it is in the bucket.
async fn raw(bucket: &kv::Store, id: &str) -> Value {
    serde_json::from_slice(&bucket.get(id).await.unwrap().unwrap()).unwrap()
}

/// Writes something else into an entry.
async fn falsify(bucket: &kv::Store, id: &str) {
    let mut entry = raw(bucket, id).await;
    entry["entry"]["balance"] = json!(-1_000_000);
    bucket.put(id, entry.to_string().into()).await.unwrap();
}

fn account(balance: i64, payments: u64) -> Account {
    Account { balance, payments }
}

#[tokio::test]
async fn many_deliveries_at_once_and_again_end_in_what_the_events_say() {
    for bank in Bank::both().await {
        let (bank, bucket, service) = with_bucket(bank).await;
        let ids: Vec<_> = (0..10).map(|id| format!("account-{id}")).collect();
        bank.pay_each((1..=30).flat_map(|amount| ids.iter().map(move |id| (id, amount)))).await;
        bank.deliver_from(1).await;
        // Two processes, each with many deliveries of one account in its hands.
        let keeping = [bank.keep().await, bank.keep().await];
        bank.await_delivered().await;
        let view = service.view::<Balances>();
        let mut before = BTreeMap::new();
        for id in &ids {
            assert_eq!(seen(&view, id).await.unwrap().entry, Some(account(465, 30)), "{id}");
            before.insert(id, bucket.entry(id.clone()).await.unwrap().unwrap().revision);
        }
        bank.deliver_from(1).await;
        bank.await_delivered().await;
        for id in &ids {
            assert_eq!(bucket.entry(id.clone()).await.unwrap().unwrap().revision, before[id], "{id}");
        }
        assert_eq!(keeping.iter().map(|keeping| keeping.handled("done")).sum::<u64>(), 600);
        for keeping in keeping {
            keeping.stop().await;
        }
    }
}

#[tokio::test]
async fn a_delivery_brings_its_account_up_to_the_newest_event() {
    let (bank, _, service) = bank().await;
    bank.pay("ann", [1, 2, 3, 4]).await;
    // The second is delivered and the others are not.
    bank.deliver_from(2).await;
    let keeping = bank.keep().await;
    let view = service.view::<Balances>();
    assert_eq!(await_entry(&view, "ann", 4).await, Some(account(10, 4)));
    keeping.stop().await;
}

#[tokio::test]
async fn an_entry_that_has_ended_keeps_its_position_and_can_begin_again() {
    let (bank, _, service) = bank().await;
    bank.pay("ann", [5]).await;
    bank.close("ann").await;
    bank.deliver_from(1).await;
    let keeping = bank.keep().await;
    let view = service.view::<Balances>();
    assert_eq!(await_entry(&view, "ann", 2).await, None);
    bank.deliver_from(1).await;
    bank.await_delivered().await;
    assert_eq!(seen(&view, "ann").await.unwrap().entry, None);
    bank.pay("ann", [7]).await;
    assert_eq!(await_entry(&view, "ann", 3).await, Some(account(7, 1)));
    keeping.stop().await;
}

#[tokio::test]
async fn an_event_that_cannot_be_applied_fails_in_its_own_delivery_whichever_came_first() {
    for bank in Bank::both().await {
        let (bank, _, service) = with_bucket(bank).await;
        bank.pay("ann", [1, 0, 3]).await;
        let view = service.view::<Balances>();
        bank.deliver_from(3).await;
        let keeping = bank.keep().await;
        assert_eq!(await_entry(&view, "ann", 3).await, Some(account(4, 2)));
        bank.await_delivered().await;
        assert_eq!(keeping.handled("permanent"), 0);

        bank.deliver_from(1).await;
        bank.await_delivered().await;
        await_until("both to be counted", SOON, async || {
            match (keeping.handled("done"), keeping.handled("permanent")) {
                (3, 1) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        assert_eq!(seen(&view, "ann").await.unwrap().entry, Some(account(4, 2)));
        keeping.stop().await;
    }
}

#[tokio::test]
async fn an_event_that_cannot_be_read_is_passed_over_by_later_ones() {
    let (bank, _, service) = bank().await;
    bank.pay("ann", [1]).await;
    bank.store("accounts.ann.renamed", "tests.v1.Renamed", &()).await.await.unwrap();
    bank.pay("ann", [3]).await;
    bank.deliver_from(1).await;
    let keeping = bank.keep().await;
    let view = service.view::<Balances>();
    assert_eq!(await_entry(&view, "ann", 3).await, Some(account(4, 2)));
    await_until("the event to be given up", SOON, async || match keeping.handled("undecodable") {
        1 => Ok(()),
        other => Err(other),
    })
    .await;
    keeping.stop().await;
}

#[tokio::test]
async fn a_stream_that_was_made_again_begins_its_entries_anew() {
    for bank in Bank::both().await {
        let (bank, _, service) = with_bucket(bank).await;
        bank.pay("bob", [1]).await;
        bank.pay("ann", [100, 200]).await;
        bank.deliver_from(1).await;
        let keeping = bank.keep().await;
        let view = service.view::<Balances>();
        assert_eq!(await_entry(&view, "ann", 3).await, Some(account(300, 2)));
        bank.make_stream_again().await;
        // Before its old position, at it, and behind it.
        bank.pay("ann", [1, 2, 3, 4]).await;
        bank.deliver_from(1).await;
        assert_eq!(await_entry(&view, "ann", 4).await, Some(account(10, 4)));
        // The account that has none of its old sequences.
        bank.pay("bob", [7]).await;
        assert_eq!(await_entry(&view, "bob", 5).await, Some(account(7, 1)));
        keeping.stop().await;
    }
}

#[tokio::test]
async fn what_events_made_stays_when_they_are_gone() {
    let (bank, _, service) = bank().await;
    bank.pay("bob", [1]).await;
    bank.pay("ann", [1, 2]).await;
    bank.deliver_from(1).await;
    let keeping = bank.keep().await;
    let view = service.view::<Balances>();
    assert_eq!(await_entry(&view, "ann", 3).await, Some(account(3, 2)));
    let stream = bank.jetstream.get_stream("accounts").await.unwrap();
    for sequence in [2, 3] {
        stream.delete_message(sequence).await.unwrap();
    }
    bank.pay("ann", [4]).await;
    assert_eq!(await_entry(&view, "ann", 4).await, Some(account(7, 3)));
    stream.purge().await.unwrap();
    bank.pay("ann", [8]).await;
    assert_eq!(await_entry(&view, "ann", 5).await, Some(account(15, 4)));
    keeping.stop().await;
}

#[tokio::test]
async fn an_entry_of_another_program_is_made_anew() {
    let (bank, bucket, service) = bank().await;
    bucket.put("ann", r#"{"time": "2026-11-21T09:00:00Z", "sequence": 9}"#.into()).await.unwrap();
    let view = service.view::<Balances>();
    assert_eq!(seen(&view, "ann").await, None);
    bank.pay("ann", [1]).await;
    bank.deliver_from(1).await;
    let keeping = bank.keep().await;
    assert_eq!(await_entry(&view, "ann", 1).await, Some(account(1, 1)));
    keeping.stop().await;
}

#[tokio::test]
async fn who_wrote_reads_what_was_written_or_is_told_how_far_it_is() {
    let (bank, _, service) = bank().await;
    let (accounts, view) = (bank.accounts().await, service.view::<Balances>());
    let pay = async || {
        let pay = |_: &Account| Ok::<_, jetwright_runtime::AggregateError>(Decision::Append(paid(1), ()));
        accounts.update("ann", pay).await.unwrap().sequence
    };
    let behind = |sequence, minimum_sequence| {
        let (bucket, key) = ("balances", "ann".to_owned());
        Err(ViewError::Behind { bucket, key, sequence, minimum_sequence })
    };
    let first = pay().await;
    let soon = Duration::from_millis(200);
    assert_eq!(view.get_at_least("ann", first, soon).await, behind(0, first));
    assert_eq!(view.get_at_least("ann", 0, soon).await, Ok(None));

    bank.deliver_from(1).await;
    let keeping = bank.keep().await;
    for written in 2..=21_u32 {
        let sequence = pay().await;
        let seen = view.get_at_least("ann", sequence, SOON).await.unwrap().unwrap();
        assert_eq!(
            (seen.position.sequence, seen.entry),
            (sequence, Some(account(written.into(), written.into())))
        );
    }
    keeping.stop().await;
    let (last, next) = (pay().await, 21);
    assert_eq!(view.get_at_least("ann", last, Duration::ZERO).await, behind(next, last));
}

#[tokio::test]
async fn a_rebuild_makes_every_entry_what_its_events_say_while_it_is_being_kept() {
    for bank in Bank::both().await {
        let (bank, bucket, service) = with_bucket(bank).await;
        let ids: Vec<_> = (0..40).map(|id| format!("account-{id}")).collect();
        for id in &ids {
            bank.pay(id, [1; 20]).await;
        }
        bank.deliver_from(1).await;
        let keeping = bank.keep().await;
        bank.await_delivered().await;
        for id in &ids {
            falsify(&bucket, id).await;
        }
        // An account of which the stream knows nothing, and one of another program.
        bucket.put("ghost", raw(&bucket, &ids[0]).await.to_string().into()).await.unwrap();
        bucket.put(&ids[1], "{}".into()).await.unwrap();

        let (paying, rebuilding) = tokio::join!(
            async {
                for round in 0..10 {
                    for id in &ids {
                        bank.pay(id, [1]).await;
                    }
                    bank.pay(&format!("new-{round}"), [1]).await;
                }
            },
            service.rebuild::<Balances>("balances")
        );
        let ((), rebuilt) = (paying, rebuilding.unwrap());
        bank.await_delivered().await;
        let view = service.view::<Balances>();
        for id in &ids {
            assert_eq!(seen(&view, id).await.unwrap().entry, Some(account(30, 30)), "{id}");
        }
        for round in 0..10 {
            assert_eq!(seen(&view, &format!("new-{round}")).await.unwrap().entry, Some(account(1, 1)));
        }
        assert_eq!(seen(&view, "ghost").await, None);
        assert!(rebuilt.events >= 800 && rebuilt.rebuilt >= 40 && rebuilt.removed == 1, "{rebuilt:?}");
        keeping.stop().await;

        // Again, with nobody beside it: every account once.
        let rebuilt = service.rebuild::<Balances>("balances").await.unwrap();
        assert_eq!((rebuilt.events, rebuilt.rebuilt, rebuilt.removed), (1210, 50, 0));
    }
}

#[tokio::test]
async fn a_rebuild_that_was_killed_is_run_again() {
    let (bank, bucket, service) = bank().await;
    let ids: Vec<_> = (0..2000).map(|id| format!("account-{id}")).collect();
    bank.pay_each(ids.iter().map(|id| (id, 2))).await;
    let interrupted = service.rebuild::<Balances>("balances");
    // As long as it runs, and no longer.
    let some = async { while bank.stored("KV_balances").await < 50 {} };
    tokio::select! {
        rebuilt = interrupted => panic!("it was too fast: {rebuilt:?}"),
        () = some => {}
    }
    assert!(bank.stored("KV_balances").await < 2000, "all were made");
    falsify(&bucket, &ids[0]).await;
    let rebuilt = service.rebuild::<Balances>("balances").await.unwrap();
    assert_eq!((rebuilt.events, rebuilt.rebuilt, rebuilt.removed), (2000, 2000, 0));
    let view = service.view::<Balances>();
    for id in &ids {
        assert_eq!(seen(&view, id).await.unwrap().entry, Some(account(2, 1)), "{id}");
    }
}

#[tokio::test]
async fn a_rebuild_leaves_out_what_is_no_key_and_works_on_streams_that_are_read_one_by_one() {
    for bank in Bank::both_with(stream::Config { allow_direct: false, ..config() }).await {
        bank.bucket("balances").await;
        bank.pay("ann@example", [1]).await;
        bank.pay("ann", [1, 0, 2]).await;
        bank.pay("bob", [1]).await;
        bank.close("bob").await;
        bank.pay("nobody", [0]).await;
        let service = bank.service().await;
        let rebuilt = service.rebuild::<Balances>("balances").await.unwrap();
        assert_eq!((rebuilt.events, rebuilt.rebuilt, rebuilt.removed), (7, 2, 0));
        let view = service.view::<Balances>();
        assert_eq!(seen(&view, "ann").await.unwrap().entry, Some(account(3, 2)));
        assert_eq!(seen(&view, "bob").await.unwrap().entry, None);
        assert_eq!(seen(&view, "nobody").await, None);
    }
}

#[tokio::test]
async fn a_rebuild_goes_on_when_a_leader_dies() {
    let cluster = NatsCluster::start(3).await;
    cluster.create_stream(stream::Config { num_replicas: 3, ..config() }).await;
    let jetstream = cluster.jetstream().await;
    let replicated = kv::Config { bucket: "balances".to_owned(), num_replicas: 3, ..kv::Config::default() };
    await_until("the bucket", SOON, async || jetstream.create_key_value(replicated.clone()).await).await;
    let bank = Bank::on((), cluster.url(), jetstream);
    let ids: Vec<_> = (0..1500).map(|id| format!("account-{id}")).collect();
    bank.pay_each(ids.iter().map(|id| (id, 2))).await;
    let service = bank.service().await;
    let (rebuilt, ()) = tokio::join!(service.rebuild::<Balances>("balances"), async {
        while bank.stored("KV_balances").await < 50 {}
        cluster.servers()[cluster.stream_leader("KV_balances").await].kill();
    });
    assert_eq!(rebuilt.unwrap().events, 1500);
    let view = service.view::<Balances>();
    for id in &ids {
        assert_eq!(seen(&view, id).await.unwrap().entry, Some(account(2, 1)), "{id}");
    }
}
