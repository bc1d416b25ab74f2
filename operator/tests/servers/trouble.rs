//! Kills, restarts and servers that are away.

use std::time::Duration;

use futures::{StreamExt, future, stream};
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{NatsServer, RawClient, await_until};
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

use crate::{
    fake_jetstream::FakeJetStream,
    world::{SOON, World, conditions},
};

const LONG: Duration = Duration::from_mins(1);

async fn declare_many(world: &World, count: usize) {
    stream::iter(0..count)
        .for_each_concurrent(8, |number| async move {
            world
                .stream(
                    &format!("s{number}"),
                    &format!("{{subjects: ['s{number}.*'], deletionPolicy: Delete}}"),
                )
                .await;
        })
        .await;
}

/// How many EventStreams are ready, and how many streams there are.
async fn progress(world: &World) -> (usize, usize) {
    let objects = world.streams().list(&ListParams::default()).await.unwrap();
    let is_ready = |object: &&EventStream| {
        conditions(object).iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let names: Vec<_> = world.jetstream.stream_names().collect().await;
    (objects.items.iter().filter(is_ready).count(), names.into_iter().flatten().count())
}

async fn await_all(world: &World, count: usize) {
    await_until(&format!("{count} streams are there and ready"), LONG, || async {
        match progress(world).await {
            (ready, there) if (ready, there) == (count, count) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn an_operator_killed_in_the_middle_of_a_hundred_creates_leaves_nothing_undone() {
    let world = World::start().await;
    let declared = declare_many(&world, 100);
    let killed = async {
        await_until("some streams are there", SOON, || async {
            let (_, there) = progress(&world).await;
            if there >= 10 { Ok(()) } else { Err(there.to_string()) }
        })
        .await;
        world.operator.kill();
    };
    tokio::join!(declared, killed);
    let (ready, _) = progress(&world).await;
    assert!(ready < 100, "it was killed too late to show anything");
    let _next = world.another_operator(&[]);
    await_all(&world, 100).await;
    // Nothing was taken for somebody else's, and nothing was seen as changed by others.
    for object in world.streams().list(&ListParams::default()).await.unwrap() {
        assert_eq!(object.status.unwrap().drift, None);
    }
}

#[tokio::test]
async fn two_operators_at_once_do_no_harm() {
    let world = World::start().await;
    let _second = world.another_operator(&[]);
    declare_many(&world, 40).await;
    await_all(&world, 40).await;
    for object in world.streams().list(&ListParams::default()).await.unwrap() {
        assert_eq!(object.status.unwrap().drift, None);
    }
}

#[tokio::test]
async fn memory_streams_are_made_again_after_a_restart_of_nats() {
    let world = World::start().await;
    world.stream("kept", "subjects: [kept]").await;
    world.stream("lost", "{subjects: [lost], storage: Memory}").await;
    world.consumer("reader", "streamRef: {name: lost}").await;
    world.await_ready::<EventStream>("kept").await;
    world.await_ready::<EventConsumer>("reader").await;
    world.nats.stop().await;
    world.nats.start_again().await;
    await_until("the memory stream and its consumer are back", SOON, || async {
        let stream = world.jetstream.get_stream("lost").await.map_err(|error| error.to_string())?;
        stream.consumer_info("reader").await.map_err(|error| error.to_string())
    })
    .await;
    world.await_ready::<EventStream>("lost").await;
    world.await_ready::<EventStream>("kept").await;
}

#[tokio::test]
async fn changes_made_while_the_operator_was_cut_off_are_put_right_when_it_is_back() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    world.operator.kill();
    let edited = async_nats::jetstream::stream::Config { max_messages: 3, ..world.config("orders").await };
    world.jetstream.update_stream(edited).await.unwrap();
    let _next = world.another_operator(&[]);
    world.await_config("orders", |config| config.max_messages == -1).await;
}

/// The lone carriage return is no end of a line to the server, and makes the task of the client that receives it panic (async-nats
/// 0.51).
const POISON: &[u8] = b"NATS/1.0\r\nNote: a\rb\r\n\r\n";

#[tokio::test]
async fn when_its_client_ends_for_good_the_operator_goes_on_with_another() {
    let world = World::with(NatsServer::start().await, &["--jetstream-resync-interval=1h"]).await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    let mut raw = RawClient::connect(world.nats.url()).await;
    for round in 1..=2 {
        raw.publish("$JS.EVENT.ADVISORY.STREAM.UPDATED.orders", POISON, b"").await;
        await_until("another client", SOON, async || {
            let rebuilt = world.operator.log().matches("rebuilding NATS client").count();
            if rebuilt == round { Ok(()) } else { Err(format!("{rebuilt} of {round}")) }
        })
        .await;
        // What is declared is created, and what others change is heard of and corrected.
        let name = format!("more{round}");
        world.stream(&name, &format!("subjects: [{name}]")).await;
        world.await_ready::<EventStream>(&name).await;
        let edited = async_nats::jetstream::stream::Config { max_messages: 3, ..world.config(&name).await };
        world.jetstream.update_stream(edited).await.unwrap();
        world.await_config(&name, |config| config.max_messages == -1).await;
    }
    assert_eq!(world.admin("/readyz").await.unwrap().0, 200);
    assert!(world.admin("/metrics").await.unwrap().1.contains("jetwright_operator_nats_connected 1"));
}

#[tokio::test]
async fn nats_away_is_told_after_a_while_and_over_when_it_is_back() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    world.nats.stop().await;
    let message = await_until("the object says that NATS is away", LONG, || async {
        let object = world.streams().get("orders").await.unwrap();
        let ready = conditions(&object).into_iter().find(|condition| condition.type_ == "Ready").unwrap();
        if ready.reason == "Disconnected" && ready.status == "Unknown" {
            Ok(ready.message)
        } else {
            Err(ready.reason)
        }
    })
    .await;
    assert!(message.contains(world.nats.url()), "{message}");
    assert_eq!(world.admin("/livez").await.unwrap().0, 200);
    assert_eq!(world.admin("/readyz").await.unwrap().0, 200);
    world.nats.start_again().await;
    world.await_ready::<EventStream>("orders").await;
}

#[tokio::test]
async fn without_the_advisories_the_comparison_finds_what_others_changed() {
    // A user that may not listen to the advisories.
    let config = r#"
        accounts: {
          main: {
            jetstream: enabled
            users: [
              {user: operator, password: pw, permissions: {publish: ">", subscribe: {deny: ["$JS.EVENT.>"]}}}
              {user: admin, password: pw}
            ]
          }
        }
        no_auth_user: admin
    "#;
    let nats = jetwright_testing::NatsServer::builder().config(config).start().await;
    let secret = jetwright_testing::MountedSecret::new(&[("username", "operator"), ("password", "pw")]);
    let folder = format!("--nats-credentials-folder={}", secret.path().display());
    let world = World::with(nats, &[&folder, "--jetstream-resync-interval=1s"]).await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    let edited = async_nats::jetstream::stream::Config { max_messages: 3, ..world.config("orders").await };
    world.jetstream.update_stream(edited).await.unwrap();
    world.await_config("orders", |config| config.max_messages == -1).await;
    let log = world.operator.log();
    assert!(log.contains("to subscribe to $JS.EVENT.ADVISORY."), "{log}");
}

#[tokio::test]
async fn the_figures_in_a_status_follow_what_happens_in_the_stream() {
    let world = World::with(
        jetwright_testing::NatsServer::start().await,
        &["--jetstream-resync-interval=1s", "--status-stats-interval=1s"],
    )
    .await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.consumer("reader", "streamRef: {name: orders}").await;
    world.await_ready::<EventConsumer>("reader").await;
    for number in 0..3 {
        world.jetstream.publish(format!("orders.{number}"), "x".into()).await.unwrap().await.unwrap();
    }
    await_until("the figures are in the statuses", SOON, || async {
        let status = world.streams().get("orders").await.unwrap().status;
        let stream = status.and_then(|status| status.stream).ok_or("its stream is not in the status yet")?;
        let lag = world.consumers().get("reader").await.unwrap().status.unwrap().lag;
        if (stream.messages, lag) == (3, Some(3)) { Ok(()) } else { Err(format!("{stream:?} {lag:?}")) }
    })
    .await;
}

/// A JetStream that hangs, while NATS itself answers.
#[tokio::test]
async fn a_reconcile_that_takes_too_long_is_told_in_the_status() {
    let (nats, fake) = FakeJetStream::start().await;
    fake.set_silent(true);
    let jetstream = nats.jetstream().await;
    let world = World::on(nats, jetstream, &["--jetstream-timeout=5m"]).await;
    world.stream("orders", "subjects: [orders.*]").await;
    // The first reconciles wait for lists of JetStream before, for at most this time.
    let lists = Duration::from_secs(20);
    let message = await_until("the status says so", lists + LONG + SOON, || async {
        let object = world.streams().get("orders").await.unwrap();
        let ready = conditions(&object).into_iter().find(|condition| condition.type_ == "Ready");
        let ready = ready.ok_or("no condition")?;
        if (ready.status.as_str(), ready.reason.as_str()) == ("False", "Failed") {
            Ok(ready.message)
        } else {
            Err("another")
        }
    })
    .await;
    assert!(message.contains("took longer than 60s"), "{message}");
}

#[tokio::test]
async fn a_stream_whose_creation_took_effect_when_its_object_was_deleted_already_goes_with_it() {
    let (nats, fake) = FakeJetStream::start().await;
    let world = World::with(nats, &["--jetstream-timeout=1s"]).await;
    fake.set_slow(true);
    world.stream("orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
    world.await_condition::<EventStream>("orders", "Ready", "Unknown", "JetStreamUnavailable").await;
    let asked = fake.asked("STREAM.INFO");
    world.delete::<EventStream>("orders").await;
    await_until("JetStream was asked for it, and had none", SOON, || async {
        if fake.asked("STREAM.INFO") > asked { Ok(()) } else { Err("not yet") }
    })
    .await;
    fake.catch_up().await;
    world.await_gone::<EventStream>("orders").await;
    assert!(!fake.has_stream("orders"));
}

#[tokio::test]
async fn a_stream_that_was_created_for_an_object_that_lost_its_finalizer_meanwhile_goes_too() {
    let (nats, fake) = FakeJetStream::start().await;
    let world = World::with(nats, &["--jetstream-timeout=15s"]).await;
    fake.set_slow(true);
    world.stream("orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
    await_until("the stream is being created", SOON, || async {
        if fake.asked("STREAM.CREATE") > 0 { Ok(()) } else { Err("not yet") }
    })
    .await;
    // As an API server does that deletes the object while it gets its finalizer.
    let lost = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    world.streams().patch("orders", &PatchParams::default(), &lost).await.unwrap();
    world.delete::<EventStream>("orders").await;
    world.await_gone::<EventStream>("orders").await;
    fake.catch_up().await;
    await_until("the stream is gone", SOON, || async {
        if fake.has_stream("orders") || fake.asked("STREAM.DELETE") == 0 { Err("not yet") } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn an_object_that_others_change_all_the_time_is_made_and_deleted() {
    let world = World::start().await;
    let changing = (0..2).map(|writer| {
        let api = world.streams();
        async move {
            for number in 0_u64.. {
                let change = Patch::Merge(
                    json!({"metadata": {"annotations": {format!("w{writer}"): number.to_string()}}}),
                );
                // It is there between its creation and its end.
                let _ = api.patch("orders", &PatchParams::default(), &change).await;
            }
        }
    });
    let life = async {
        world.stream("orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
        world.await_config("orders", |_| true).await;
        world.delete::<EventStream>("orders").await;
        world.await_gone::<EventStream>("orders").await;
    };
    tokio::select! {
        () = life => {}
        _ = future::join_all(changing) => {}
    }
}
