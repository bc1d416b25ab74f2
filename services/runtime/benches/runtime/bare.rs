//! The bare side: what a competent hand writes with async-nats alone, for each job in the plainest way that is fast.

use std::{collections::VecDeque, future::IntoFuture, sync::Arc, time::Duration};

use async_nats::{
    Client,
    jetstream::{
        self,
        consumer::{PullConsumer, pull::Stream},
        context::{ContextBuilder, PublishAckFuture},
    },
};
use futures::{StreamExt, future::join_all};
use prost::Message;
use tokio::time::MissedTickBehavior;

use crate::{
    count::{Count, now},
    event::{Measured, headers},
    job::{Acknowledge, Job, Kind, Report, Watch},
    requests,
    setting::CONSUMER,
};

pub async fn run(url: String, job: Job) -> Report {
    let client = async_nats::connect(&url).await.unwrap();
    let jetstream = ContextBuilder::new().max_ack_inflight(job.room()).build(client.clone());
    let report = match job.kind {
        Kind::Consume { .. } => {
            let count = Count::new(&job);
            consume(&client, messages(&jetstream, &job).await, &job, &count).await;
            count.report().await
        }
        Kind::Publish => {
            // As the other side does to have its connection.
            send(&jetstream, &job, job.events).await.await.unwrap();
            publish(&jetstream, &job).await
        }
        Kind::Request => return requests::over_client(url, &job).await,
        Kind::Both { rate, .. } => both(&jetstream, &job, rate).await,
    };
    client.flush().await.unwrap();
    report
}

async fn messages(jetstream: &jetstream::Context, job: &Job) -> Stream {
    let consumer: PullConsumer = jetstream.get_consumer_from_stream(CONSUMER, &job.stream).await.unwrap();
    consumer.stream().max_messages_per_batch(job.room()).messages().await.unwrap()
}

async fn consume(client: &Client, mut messages: Stream, job: &Job, count: &Count) {
    let handle = |message: &jetstream::Message| {
        count.handled(&Measured::decode(message.payload.as_ref()).unwrap());
    };
    match job.acknowledge() {
        Acknowledge::Sent => {
            while !count.is_done() {
                let message = messages.next().await.unwrap().unwrap();
                handle(&message);
                message.ack().await.unwrap();
            }
        }
        // In the order of the stream: each is handled before the next one is taken.
        Acknowledge::Confirmed => {
            let handled = messages.map(|message| {
                let message = message.unwrap();
                handle(&message);
                // Ten times as fast as `double_ack`, which subscribes for each message.
                let client = client.clone();
                async move { client.request(message.reply.clone().unwrap(), "+ACK".into()).await.unwrap() }
            });
            let mut settled = handled.buffer_unordered(job.room());
            for _ in 0..job.events {
                settled.next().await.unwrap();
            }
        }
    }
}

/// Publishes the events of a job.
pub async fn publish(jetstream: &jetstream::Context, job: &Job) -> Report {
    let watch = Watch::start();
    let mut acks: VecDeque<<PublishAckFuture as IntoFuture>::IntoFuture> =
        VecDeque::with_capacity(job.room());
    for number in 0..job.events {
        if acks.len() == job.room() {
            acks.pop_front().unwrap().await.unwrap();
        }
        acks.push_back(send(jetstream, job, number).await.into_future());
    }
    for ack in acks {
        ack.await.unwrap();
    }
    watch.report()
}

async fn send(jetstream: &jetstream::Context, job: &Job, number: u64) -> PublishAckFuture {
    let event = Measured::new(number, now());
    let payload = event.encode_to_vec().into();
    let headers = headers(number, job.tracing);
    jetstream.publish_with_headers(event.subject(&job.stream), headers, payload).await.unwrap()
}

async fn both(jetstream: &jetstream::Context, job: &Job, rate: u64) -> Report {
    let count = Arc::new(Count::new(job));
    let (messages, consuming, consumed) = (messages(jetstream, job).await, job.clone(), Arc::clone(&count));
    let client = jetstream.client();
    tokio::spawn(async move { consume(&client, messages, &consuming, &consumed).await });
    steadily(job.events, rate, |numbers| {
        let (jetstream, job) = (jetstream.clone(), job.clone());
        tokio::spawn(async move {
            let sent = numbers.map(async |number| {
                send(&jetstream, &job, number).await.await.unwrap();
            });
            join_all(sent).await;
        });
    })
    .await;
    count.report().await
}

/// Begins with the numbers below `events` at this rate per second, those of each millisecond together. One that comes late does not
/// put off those after it.
pub async fn steadily(events: u64, rate: u64, mut begin: impl FnMut(std::ops::Range<u64>)) {
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (watch, mut reached) = (Watch::start(), 0);
    while reached < events {
        ticks.tick().await;
        let due = (watch.elapsed().as_micros() * u128::from(rate) / 1_000_000).try_into().unwrap_or(u64::MAX);
        let due = due.min(events);
        begin(reached..due);
        reached = due;
    }
}
