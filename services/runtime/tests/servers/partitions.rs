//! Partitions of a stream, as a server makes them.

use async_nats::jetstream::{self, consumer, stream};
use jetwright_partitions::subjects::Partitions;
use jetwright_testing::NatsServer;

fn partitioned(name: &str, partitions: &Partitions) -> stream::Config {
    stream::Config {
        name: name.to_owned(),
        subjects: vec![partitions.transform_source().to_owned()],
        subject_transform: Some(stream::SubjectTransform {
            source: partitions.transform_source().to_owned(),
            destination: partitions.transform_destination(),
        }),
        ..Default::default()
    }
}

/// A subject like this one, with other tokens instead of its wildcards.
fn subject_like(pattern: &str, number: u64) -> String {
    let tokens = pattern.split('.').enumerate();
    let token = |(index, token): (usize, &str)| match token {
        "*" => format!("{number}-{index}é"),
        token => token.to_owned(),
    };
    tokens.map(token).collect::<Vec<_>>().join(".")
}

async fn publish(jetstream: &jetstream::Context, subject: String) {
    jetstream.publish(subject, "".into()).await.unwrap().await.unwrap();
}

/// How many events a consumer with these filters has before it.
async fn pending(stream: &stream::Stream, filters: Vec<String>) -> u64 {
    let config = consumer::pull::Config { filter_subjects: filters, ..Default::default() };
    let consumer = stream.create_consumer(config).await.unwrap();
    consumer.cached_info().num_pending
}

#[tokio::test]
async fn a_server_stores_each_event_in_the_partition_that_is_computed_here() {
    let nats = NatsServer::start().await;
    let jetstream = nats.jetstream().await;
    for (name, subject, key_tokens, count) in
        [("a", "a.*.*", &[2][..], 8), ("b", "b.*.x.*", &[4, 2], 13), ("c", "c.*", &[2], 1)]
    {
        let partitions = Partitions::new(subject, key_tokens, count).unwrap();
        let stream = jetstream.create_stream(partitioned(name, &partitions)).await.unwrap();
        let mut sizes = vec![0; usize::try_from(count).unwrap()];
        for number in 1..=100 {
            let published = subject_like(subject, number);
            publish(&jetstream, published.clone()).await;
            let stored = stream.get_raw_message(number).await.unwrap();
            let partition = partitions.partition_of(&published);
            assert_eq!(partitions.published(&stored.subject), (published.as_str(), Some(partition)));
            sizes[usize::try_from(partition).unwrap()] += 1;
        }
        for (partition, size) in (0..).zip(sizes) {
            assert_eq!(pending(&stream, partitions.filters_of(partition, &[]).unwrap()).await, size);
        }
    }
}

#[tokio::test]
async fn filters_without_order_match_the_events_from_before_the_partitions_too() {
    let nats = NatsServer::start().await;
    let jetstream = nats.jetstream().await;
    let partitions = Partitions::new("orders.*.*", &[2], 4).unwrap();
    let with = partitioned("orders", &partitions);
    let stream =
        jetstream.create_stream(stream::Config { subject_transform: None, ..with.clone() }).await.unwrap();
    let publish_some = async || {
        for number in 0..10 {
            publish(&jetstream, format!("orders.{number}.placed")).await;
            publish(&jetstream, format!("orders.{number}.paid")).await;
        }
    };
    publish_some().await;
    jetstream.update_stream(with).await.unwrap();
    publish_some().await;
    let filters = |filter: &str, earlier| partitions.filters_of_all(&[filter.to_owned()], earlier).unwrap();
    assert_eq!(pending(&stream, filters("orders.*.placed", true)).await, 20);
    assert_eq!(pending(&stream, filters("orders.*.placed", false)).await, 10);
    assert_eq!(pending(&stream, filters("orders.7.>", true)).await, 4);
    let mut of_partitions = 0;
    for partition in 0..4 {
        let filters = partitions.filters_of(partition, &["orders.*.placed".to_owned()]).unwrap();
        of_partitions += pending(&stream, filters).await;
    }
    assert_eq!(of_partitions, 10);
}
