//! Three servers, one of which dies.

use std::time::Duration;

use async_nats::jetstream::{consumer, stream};
use jetwright_crds::{
    dead_letter,
    environment::{Bindings, DeadLetters},
};
use jetwright_process::health::Health;
use jetwright_runtime::{Environment, HandlerError, PublishOptions, Service};
use jetwright_testing::{NatsCluster, await_until};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::support::{Bench, Number, SOON, Scripted};

/// Three servers, with the stream `numbers` on all of them.
pub async fn cluster() -> NatsCluster {
    let cluster = NatsCluster::start(3).await;
    let config = stream::Config {
        name: "numbers".to_owned(),
        subjects: vec!["numbers.*".to_owned()],
        num_replicas: 3,
        ..Default::default()
    };
    cluster.create_stream(config).await;
    cluster
}

async fn service(cluster: &NatsCluster) -> Service {
    service_with(cluster, Bench::bindings(2000)).await
}

async fn service_with(cluster: &NatsCluster, bindings: Bindings) -> Service {
    let servers = cluster.url().split(',').map(|url| url.parse().unwrap()).collect();
    let environment = Environment {
        name: "tests".to_owned(),
        servers,
        credentials: None,
        bindings,
        pod: None,
        unknown_fields: vec![],
    };
    Service::connect(environment, &Health::new(), &mut Registry::default()).await.unwrap()
}

#[tokio::test]
async fn of_two_who_give_one_event_up_at_once_one_keeps_its_dead_letter() {
    const EVENTS: u64 = 300;
    let cluster = cluster().await;
    let jetstream = cluster.jetstream().await;
    let config = stream::Config {
        name: dead_letter::stream("numbers"),
        subjects: vec![dead_letter::subjects("numbers")],
        max_messages_per_subject: 1,
        num_replicas: 3,
        ..Default::default()
    };
    let mut kept = cluster.create_stream(config).await;
    let publisher = service(&cluster).await.publisher();
    for value in 0..EVENTS {
        publisher.publish("numbers.1", &Number { value }, PublishOptions::default()).await.unwrap();
    }
    // Two consumers stand for two pods of one consumer that are both given everything: what they keep has one name.
    let (handler, stop) =
        (Scripted::new(|_, _| async { Err(HandlerError::permanent("no")) }), CancellationToken::new());
    let mut running = Vec::new();
    for consumer in ["one", "other"] {
        let config = consumer::pull::Config {
            durable_name: Some(consumer.to_owned()),
            max_ack_pending: 16,
            ..Default::default()
        };
        cluster.create_consumer("numbers", config).await;
        let mut bindings = Bench::bindings(2000);
        let binding = bindings.bindings.get_mut("numbers").unwrap();
        consumer.clone_into(&mut binding.consumer);
        binding.dead_letters =
            Some(DeadLetters { prefix: dead_letter::prefix("numbers", "tests"), max_age: None });
        let mut service = service_with(&cluster, bindings).await;
        service.handle("numbers", handler.clone()).unwrap();
        running.push(tokio::spawn(service.run(stop.clone())));
    }
    for consumer in ["one", "other"] {
        await_until("everything settled", SOON, async || {
            let asked = jetstream.get_consumer_from_stream(consumer, "numbers").await;
            let consumer: consumer::PullConsumer = asked.map_err(|error| error.to_string())?;
            let info = consumer.cached_info();
            let waiting = (info.num_pending, info.num_ack_pending);
            if waiting == (0, 0) { Ok(()) } else { Err(format!("{waiting:?}")) }
        })
        .await;
    }
    let state = kept.info().await.unwrap().state.clone();
    assert_eq!((state.messages, state.last_sequence), (EVENTS, EVENTS), "one was written twice");
    stop.cancel();
    for running in running {
        running.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_event_that_is_published_twice_at_once_is_stored_once_and_nobody_is_refused() {
    let cluster = cluster().await;
    let publisher = service(&cluster).await.publisher();
    for value in 0..100 {
        let subject = format!("numbers.{value}");
        let options = PublishOptions { message_id: Some(subject.clone()), ..PublishOptions::default() };
        let event = Number { value };
        let (one, other) = tokio::join!(
            publisher.publish(&subject, &event, options.clone()),
            publisher.publish(&subject, &event, options.clone())
        );
        let (one, other) = (one.unwrap(), other.unwrap());
        assert_eq!(one.sequence, other.sequence);
        assert_ne!(one.duplicate, other.duplicate);
    }
}

#[tokio::test]
async fn the_death_of_a_leader_under_load_loses_nothing_that_was_acknowledged() {
    let cluster = cluster().await;
    let config = consumer::pull::Config {
        durable_name: Some("tests".to_owned()),
        ack_wait: Duration::from_secs(2),
        max_ack_pending: 16,
        ..Default::default()
    };
    cluster.create_consumer("numbers", config).await;

    let stop = CancellationToken::new();
    let mut service = service(&cluster).await;
    let handler = Scripted::new(|_, _| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok(())
    });
    service.handle("numbers", handler.clone()).unwrap();
    let publisher = service.publisher();
    let running = tokio::spawn(service.run(stop.clone()));

    let publishing = tokio::spawn(async move {
        let mut stored = Vec::new();
        for value in 0..1500 {
            let answer = publisher
                .publish(&format!("numbers.{value}"), &Number { value }, PublishOptions::default())
                .await;
            if answer.is_ok() {
                stored.push(value);
            }
        }
        stored
    });
    handler.await_calls(100).await;
    cluster.servers()[cluster.stream_leader("numbers").await].kill();
    let stored = publishing.await.unwrap();
    assert!(stored.len() > 1000, "only {} were stored", stored.len());
    await_until("all that was stored", Duration::from_secs(40), async || {
        let values = handler.values();
        let missing = stored.iter().filter(|value| values.binary_search(value).is_err()).count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} of {} are missing", stored.len())) }
    })
    .await;
    stop.cancel();
    running.await.unwrap().unwrap();
}
