//! The operator's part in sharing out the partitions of ordered consumers, with programs that take part.

mod members;
mod pods;
mod scale_down;

use std::{collections::BTreeSet, time::Duration};

use async_nats::jetstream::{consumer, kv, stream};
use jetwright_crds::{EventConsumer, consumer::WaitingPartition};
use jetwright_testing::await_until;
use kube::api::{DeleteParams, Patch, PatchParams, PropagationPolicy};
use serde_json::{Value, json};

use self::members::Member;
use crate::world::{SOON, World};

const ORDERS: &str = "{subjects: ['orders.*.*'], partitions: {count: 4, keyTokens: [2]}}";
const ORDERED: &str = "{streamRef: {name: orders}, ordering: PerKey}";
const BUCKET: &str = "KV_jetwright";
const MAP: &str = "map.orders.fulfilment";

async fn start(consumer: &str, more: &[&str]) -> World {
    let world = World::with(jetwright_testing::NatsServer::start().await, more).await;
    world.stream("orders", ORDERS).await;
    world.consumer("fulfilment", consumer).await;
    world.await_condition::<EventConsumer>("fulfilment", "ConsumerReady", "True", "Reconciled").await;
    world
}

async fn bucket(world: &World) -> kv::Store {
    let store = await_value("the bucket", async || world.jetstream.get_key_value("jetwright").await.ok());
    store.await
}

async fn await_value<T>(what: &str, find: impl AsyncFn() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        if let Some(found) = find().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn value(store: &kv::Store, key: &str) -> Option<Value> {
    let bytes = store.get(key).await.unwrap()?;
    serde_json::from_slice(&bytes).ok()
}

/// The member that each partition is mapped to.
async fn targets(store: &kv::Store) -> Vec<String> {
    let map = value(store, MAP).await.unwrap_or_default();
    let partitions = map["partitions"].as_object().cloned().unwrap_or_default();
    partitions.values().map(|entry| entry["to"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Waits until the partitions are mapped to these members, so many to each.
async fn await_shares(store: &kv::Store, shares: &[(&Member, usize)], within: Duration) {
    await_until("the map is as wanted", within, || async {
        let targets = targets(store).await;
        let of = |member: &Member| targets.iter().filter(|id| **id == member.id).count();
        let is_right = shares.iter().all(|(member, share)| of(member) == *share);
        if is_right { Ok(()) } else { Err(format!("{targets:?}")) }
    })
    .await;
}

/// Two programs that take part, with half of the partitions each.
async fn two_members(world: &World, store: &kv::Store) -> [Member; 2] {
    let members = [Member::join(world, "default", None).await, Member::join(world, "default", None).await];
    await_shares(store, &[(&members[0], 2), (&members[1], 2)], SOON).await;
    members
}

async fn await_owned(world: &World, status: &str, reason: &str) -> String {
    world.await_condition::<EventConsumer>("fulfilment", "PartitionsOwned", status, reason).await
}

async fn last_sequence(world: &World) -> u64 {
    world.jetstream.get_stream(BUCKET).await.unwrap().cached_info().state.last_sequence
}

#[tokio::test]
async fn the_bucket_is_made_with_the_first_ordered_consumer_kept_as_it_has_to_be_and_never_deleted() {
    let world = World::start().await;
    world.stream("orders", ORDERS).await;
    world.consumer("plain", "{streamRef: {name: orders}}").await;
    world.await_ready::<EventConsumer>("plain").await;
    assert!(world.jetstream.get_stream(BUCKET).await.is_err(), "nobody needs it");
    world.consumer("fulfilment", ORDERED).await;
    let is_kept = |config: &stream::Config| {
        let is_bucket = config.subjects == ["$KV.jetwright.>"] && config.max_messages_per_subject == 1;
        is_bucket
            && config.storage == stream::StorageType::File
            && config.discard == stream::DiscardPolicy::New
            && config.allow_message_ttl
            && config.deny_delete
            && config.deny_purge
            && !config.allow_direct
            && !config.allow_rollup
    };
    bucket(&world).await;
    world.await_config(BUCKET, is_kept).await;
    let config = world.config(BUCKET).await;
    // The operator reads the bucket after this, as it sets the change back.
    let before = last_sequence(&world).await;
    world.jetstream.update_stream(stream::Config { allow_direct: true, ..config }).await.unwrap();
    world.await_config(BUCKET, is_kept).await;

    world.jetstream.delete_stream(BUCKET).await.unwrap();
    let store = bucket(&world).await;
    await_value("the operator's key", async || store.get("operator").await.ok().flatten()).await;
    assert!(
        last_sequence(&world).await >= before + 1_000_000_000,
        "revisions are epochs, which never go back"
    );

    world.delete::<EventConsumer>("fulfilment").await;
    world.await_gone::<EventConsumer>("fulfilment").await;
    assert!(world.jetstream.get_stream(BUCKET).await.is_ok());
}

#[tokio::test]
async fn a_bucket_that_is_deleted_while_no_operator_runs_begins_beyond_the_one_before() {
    let mut world = start(ORDERED, &[]).await;
    let store = bucket(&world).await;
    await_value("the operator's key", async || store.get("operator").await.ok().flatten()).await;
    let before = last_sequence(&world).await;
    world.stop().await;
    world.jetstream.delete_stream(BUCKET).await.unwrap();
    world.start_again(&[]);
    let store = bucket(&world).await;
    await_value("the operator's key", async || store.get("operator").await.ok().flatten()).await;
    assert!(last_sequence(&world).await > before);
}

#[tokio::test]
async fn partitions_go_to_whoever_joins_and_the_status_says_who_waits_for_whom() {
    let world = start(ORDERED, &[]).await;
    let store = bucket(&world).await;
    let message = await_owned(&world, "False", "WithoutOwner").await;
    assert!(message.contains("4 of 4 partitions have no owner: 0 waits since"), "{message}");
    assert!(message.contains("for a pod or program to join"), "{message}");
    let first = Member::join(&world, "default", None).await;
    await_shares(&store, &[(&first, 4)], SOON).await;
    await_owned(&world, "True", "Owned").await;
    let second = Member::join(&world, "default", None).await;
    await_shares(&store, &[(&first, 2), (&second, 2)], SOON).await;
    await_until("the second one has its share", SOON, || async {
        let held = second.held();
        if held.len() == 2 { Ok(()) } else { Err(format!("{held:?}")) }
    })
    .await;
    await_owned(&world, "True", "Owned").await;
    let status = world.consumers().get("fulfilment").await.unwrap().status.unwrap().partitions.unwrap();
    assert_eq!((status.count, status.owned, status.draining, status.unowned), (4, 4, 0, 0));
    let name = format!("namespace=\"{}\",event_consumer=\"fulfilment\"", world.namespace.name());
    let owned = world.metric(&format!("jetwright_consumer_partitions{{{name},state=\"owned\"}}")).await;
    assert_eq!(owned, Some(4.0));
    let beat = world.metric("jetwright_partitions_heartbeat_timestamp_seconds").await;
    assert!(beat.is_some());

    // The first one says that it stops, and the second takes over.
    first.leave();
    await_shares(&store, &[(&second, 4)], SOON).await;
    await_owned(&world, "True", "Owned").await;
}

#[tokio::test]
async fn a_status_that_somebody_else_wrote_is_replaced_and_partitions_stay_where_they_are() {
    let world = start(ORDERED, &[]).await;
    let store = bucket(&world).await;
    let member = Member::join(&world, "default", None).await;
    await_shares(&store, &[(&member, 4)], SOON).await;
    await_owned(&world, "True", "Owned").await;
    let known = || async { world.consumers().get("fulfilment").await.unwrap().status.unwrap().consumer };
    let written = known().await.unwrap();
    let map = store.entry(MAP).await.unwrap().unwrap().revision;
    for forged in [
        json!(null),
        json!({"stream": "orders", "name": "fulfilment", "partitions": 0}),
        json!({"stream": "others", "name": "fulfilment", "partitions": 2}),
    ] {
        let forged = Patch::Merge(json!({"status": {"consumer": forged}}));
        world.consumers().patch_status("fulfilment", &PatchParams::default(), &forged).await.unwrap();
        await_until("the status is as it was", SOON, || async {
            let known = known().await;
            if known.as_ref() == Some(&written) { Ok(()) } else { Err(format!("{known:?}")) }
        })
        .await;
    }
    let third = Member::join(&world, "default", None).await;
    await_shares(&store, &[(&member, 2), (&third, 2)], SOON).await;
    assert!(store.entry(MAP).await.unwrap().unwrap().revision > map);
    await_owned(&world, "True", "Owned").await;
}

/// Its stream and its consumers stay, and so do those that handle its events.
#[tokio::test]
async fn partitions_go_to_whoever_is_there_while_the_event_stream_is_deleted() {
    let mut world = start(ORDERED, &[]).await;
    let store = bucket(&world).await;
    let members = two_members(&world, &store).await;
    await_owned(&world, "True", "Owned").await;
    world.streams().delete("orders", &DeleteParams::default()).await.unwrap();
    world.await_condition::<EventConsumer>("fulfilment", "ConsumerReady", "False", "NotFound").await;
    let [first, second] = members;
    first.leave();
    await_shares(&store, &[(&second, 4)], SOON).await;
    // An operator that starts knows no more than the status.
    world.operator.kill();
    world.start_again(&[]);
    second.leave();
    await_owned(&world, "False", "WithoutOwner").await;
    let third = Member::join(&world, "default", None).await;
    await_shares(&store, &[(&third, 4)], SOON).await;
    await_owned(&world, "True", "Owned").await;
}

#[tokio::test]
async fn a_partition_whose_consumer_becomes_anothers_holds_up_no_other() {
    let mut world = start(ORDERED, &[]).await;
    let store = bucket(&world).await;
    let members = two_members(&world, &store).await;
    world.operator.kill();
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    stream.delete_consumer("fulfilment-p1").await.unwrap();
    let foreign = consumer::pull::Config { durable_name: Some("fulfilment-p1".into()), ..Default::default() };
    stream.create_consumer(foreign).await.unwrap();
    world.start_again(&[]);
    world.await_condition::<EventConsumer>("fulfilment", "ConsumerReady", "False", "NameConflict").await;
    let [first, second] = members;
    first.leave();
    await_shares(&store, &[(&second, 4)], SOON).await;
    await_owned(&world, "True", "Owned").await;
}

/// The operator's key still moves, so members do not share out themselves.
#[tokio::test]
async fn partitions_go_to_whoever_is_there_also_when_their_event_consumer_was_deleted_without_its_pods() {
    let mut world = start(ORDERED, &[]).await;
    world.consumer("mails", ORDERED).await;
    world.await_condition::<EventConsumer>("mails", "ConsumerReady", "True", "Reconciled").await;
    let store = bucket(&world).await;
    let members = two_members(&world, &store).await;
    let orphan =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
    world.consumers().delete("fulfilment", &orphan).await.unwrap();
    // As Kubernetes' garbage collector does.
    let ends = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    world.consumers().patch("fulfilment", &PatchParams::default(), &ends).await.unwrap();
    assert!(world.consumers().get_opt("fulfilment").await.unwrap().is_none());
    let [first, second] = members;
    first.leave();
    await_shares(&store, &[(&second, 4)], SOON).await;
    // An operator that starts knows no more than the map.
    world.operator.kill();
    world.start_again(&[]);
    let third = Member::join(&world, "default", None).await;
    await_shares(&store, &[(&second, 2), (&third, 2)], SOON).await;
    // What the operator of another cluster shares out is that one's.
    let mut map = value(&store, MAP).await.unwrap();
    map["cluster"] = "west".into();
    let revision = store.put(MAP, map.to_string().into()).await.unwrap();
    second.leave();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(store.entry(MAP).await.unwrap().unwrap().revision, revision);
}

#[tokio::test]
async fn a_hand_over_that_lasts_says_whom_it_waits_for() {
    let world = start(ORDERED, &[]).await;
    let store = bucket(&world).await;
    // A program that has all, and gives up what it is told to when the test says so.
    let put = async |key: &str, value: Value| {
        store.put(key, value.to_string().into()).await.unwrap();
    };
    put("member.default.slow", json!({"consumers": {"orders.fulfilment": {}}})).await;
    for partition in 0..4 {
        let held = json!({"member": "default.slow", "state": "held"});
        put(&format!("held.orders.fulfilment.{partition}"), held).await;
    }
    await_owned(&world, "True", "Owned").await;
    let other = Member::join(&world, "default", None).await;
    await_shares(&store, &[(&other, 2)], SOON).await;
    let message = await_owned(&world, "False", "HandingOver").await;
    assert!(message.contains("for default.slow to finish what it has begun"), "{message}");
    let consumer = world.consumers().get("fulfilment").await.unwrap();
    let waiting = consumer.status.unwrap().partitions.unwrap().waiting;
    assert_eq!(waiting.len(), 2);
    for WaitingPartition { partition, awaited, .. } in waiting {
        assert_eq!(awaited.as_deref(), Some("default.slow"));
        put(
            &format!("held.orders.fulfilment.{partition}"),
            json!({"member": "default.slow", "state": "free"}),
        )
        .await;
    }
    await_owned(&world, "True", "Owned").await;
    let name = format!("namespace=\"{}\",event_consumer=\"fulfilment\"", world.namespace.name());
    let moved = world.metric(&format!("jetwright_consumer_partition_handovers_total{{{name}}}")).await;
    assert_eq!(moved, Some(2.0));
}

#[tokio::test]
async fn what_others_write_into_the_bucket_is_warned_of_and_replaced_and_disturbs_nobody() {
    let world = start(ORDERED, &[]).await;
    let store = bucket(&world).await;
    let member = Member::join(&world, "default", None).await;
    await_shares(&store, &[(&member, 4)], SOON).await;
    for key in [MAP, "member.default.x", "held.orders.fulfilment.9", "held.orders.fulfilment.x", "other"] {
        store.put(key, b"\xff{".as_slice().into()).await.unwrap();
    }
    // What the client cannot parse ends connections, but none that is needed.
    let mut writer = jetwright_testing::RawClient::connect(world.nats.url()).await;
    for number in 0..20 {
        let subject = format!("$KV.jetwright.member.default.foreign{number}");
        writer.publish(subject, b"NATS/1.0\r\nX Trace: 1\r\n\r\n", b"").await;
    }
    await_shares(&store, &[(&member, 4)], SOON).await;
    world.operator.await_log("cannot be read: nothing but Jetwright may write to this bucket", SOON).await;
    world.operator.await_log("$KV.jetwright.member.default.foreign", SOON).await;
    let forged = format!(
        r#"{{"generation":9,"count":4,"partitions":{{"0":{{"to":"{}"}},"1":{{"to":"bank.x"}}}}}}"#,
        member.id
    );
    store.put(MAP, forged.into()).await.unwrap();
    await_shares(&store, &[(&member, 4)], SOON).await;
    await_owned(&world, "True", "Owned").await;
}

#[tokio::test]
async fn two_operators_and_a_restart_leave_a_map_that_is_right_as_it_is() {
    let mut world = start(ORDERED, &[]).await;
    let store = bucket(&world).await;
    let members = [Member::join(&world, "default", None).await, Member::join(&world, "default", None).await];
    let shares = [(&members[0], 2), (&members[1], 2)];
    await_shares(&store, &shares, SOON).await;
    await_until("both have theirs", SOON, || async {
        let held: usize = members.iter().map(|member| member.held().len()).sum();
        if held == 4 { Ok(()) } else { Err(held.to_string()) }
    })
    .await;
    await_owned(&world, "True", "Owned").await;
    let revision = async || store.entry(MAP).await.unwrap().unwrap().revision;
    let before = revision().await;
    let beats = async |count: usize| {
        let seen = parking_lot::Mutex::new(BTreeSet::new());
        await_until("the operators write", Duration::from_secs(40), async || {
            let value = store.get("operator").await.unwrap();
            let mut seen = seen.lock();
            seen.insert(value);
            if seen.len() > count { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
    };
    let another = world.another_operator(&[]);
    beats(1).await;
    assert_eq!(revision().await, before, "both find it right");
    drop(another);
    world.operator.kill();
    world.start_again(&[]);
    beats(1).await;
    assert_eq!(revision().await, before, "it was read, and not written again");
    let third = Member::join(&world, "default", None).await;
    await_shares(&store, &[(&third, 1)], SOON).await;
}

#[tokio::test]
async fn after_a_restart_of_nats_and_with_another_bucket_partitions_are_shared_out_as_before() {
    let world = start(ORDERED, &[]).await;
    let store = bucket(&world).await;
    let first = Member::join(&world, "default", None).await;
    await_shares(&store, &[(&first, 4)], SOON).await;
    world.nats.stop().await;
    world.nats.start_again().await;
    let second = Member::join(&world, "default", None).await;
    await_shares(&store, &[(&first, 2), (&second, 2)], Duration::from_secs(30)).await;
    world.jetstream.delete_stream(BUCKET).await.unwrap();
    // Those that were members of the bucket before are none of this one: they lose their membership, and others join.
    let third = Member::join(&world, "default", None).await;
    await_until("the one that joined is mapped", Duration::from_mins(1), || async {
        let targets = targets(&store).await;
        if targets.contains(&third.id) { Ok(()) } else { Err(format!("{targets:?}")) }
    })
    .await;
}
