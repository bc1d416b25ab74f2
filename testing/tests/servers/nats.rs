//! NATS servers.

use async_nats::ConnectOptions;
use async_nats::jetstream::{self, stream};
use jetwright_testing::{NatsCluster, NatsServer, await_until};
use std::time::Duration;

#[tokio::test]
async fn a_restarted_server_has_its_data_and_its_clients_come_back() {
    let nats = NatsServer::start().await;
    let client = nats.client().await;
    let jetstream = jetstream::new(client.clone());
    jetstream.create_stream(orders(1)).await.unwrap();
    store(&jetstream, 10).await;

    nats.stop().await;
    assert!(NatsServer::start().await.url() != nats.url());
    nats.start_again().await;
    assert_eq!(messages(&jetstream).await, 10);

    nats.kill();
    nats.start_again().await;
    assert_eq!(messages(&nats.jetstream().await).await, 10);
}

#[tokio::test]
async fn a_configuration_snippet_sets_accounts() {
    let accounts = "authorization { users: [ {user: ann, password: secret} ] }";
    let nats = NatsServer::builder().config(accounts).start().await;
    assert!(async_nats::connect(nats.url()).await.is_err());
    let ann = ConnectOptions::new().user_and_password("ann".into(), "secret".into());
    let jetstream = jetstream::new(nats.client_with(ann).await);
    jetstream.create_stream(orders(1)).await.unwrap();
    store(&jetstream, 1).await;
}

#[tokio::test]
#[should_panic(expected = "unknown field \"jetstraem\"")]
async fn a_server_that_does_not_start_says_why() {
    NatsServer::builder().config("jetstraem: true").start().await;
}

#[tokio::test]
#[should_panic(expected = "five times, a port that was free had been taken")]
async fn a_port_that_was_taken_is_tried_again_with_another() {
    let taken = NatsServer::start().await;
    let listen = format!("listen: \"{}\"", taken.url().trim_start_matches("nats://"));
    NatsServer::builder().config(&listen).start().await;
}

#[tokio::test]
async fn a_cluster_survives_the_loss_of_the_member_that_leads() {
    let cluster = NatsCluster::start(3).await;
    let jetstream = cluster.jetstream().await;
    cluster.create_stream(orders(3)).await;
    store(&jetstream, 10).await;

    let lost = cluster.stream_leader("orders").await;
    cluster.servers()[lost].kill();
    await_until("the stream to be led by another member", Duration::from_secs(30), async || {
        let leader = cluster.stream_leader("orders").await;
        if leader == lost { Err("the old one") } else { Ok(()) }
    })
    .await;
    assert_eq!(messages(&jetstream).await, 10);
    assert_ne!(cluster.meta_leader().await, lost);

    cluster.servers()[lost].start_again().await;
    cluster.meta_leader().await;
    await_until("all members to hold the stream", Duration::from_secs(30), async || {
        let info = jetstream.get_stream("orders").await.map_err(|e| e.to_string())?.get_info().await;
        let replicas =
            info.map_err(|e| e.to_string())?.cluster.map(|cluster| cluster.replicas).unwrap_or_default();
        if replicas.iter().filter(|replica| replica.current).count() == 2 {
            Ok(())
        } else {
            Err(format!("{replicas:?}"))
        }
    })
    .await;
}

fn orders(replicas: usize) -> stream::Config {
    stream::Config { name: "orders".into(), num_replicas: replicas, ..stream::Config::default() }
}

async fn store(jetstream: &jetstream::Context, messages: usize) {
    for message in 0..messages {
        let published = jetstream.publish("orders", message.to_string().into()).await.unwrap();
        published.await.unwrap();
    }
}

async fn messages(jetstream: &jetstream::Context) -> u64 {
    await_until("the stream's state", Duration::from_secs(10), async || {
        let stream = jetstream.get_stream("orders").await.map_err(|error| error.to_string())?;
        Ok::<_, String>(stream.cached_info().state.messages)
    })
    .await
}
