//! How soon an EventStream is Ready, how soon what others changed is put right, and what it costs to be idle.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use async_nats::jetstream::stream::Config;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use jetwright_crds::EventStream;
use kube::api::{ListParams, PostParams, WatchEvent, WatchParams};

use crate::{
    objects::{event_stream, stream_name as name},
    world::{BOUND, World},
};

/// EventStreams that are made one after another.
const IN_TURN: usize = 100;
/// EventStreams that are made at once.
const AT_ONCE: usize = 500;
/// Requests to the API server under way at once while they are made.
const WRITERS: usize = 32;
/// Edits and deletions that are measured.
const REPAIRS: usize = 50;

impl World {
    /// Makes an EventStream; when the API server answered.
    async fn create(&self, number: usize) -> Instant {
        let object = event_stream(&name(number), "Retain");
        self.streams().create(&PostParams::default(), &object).await.unwrap();
        Instant::now()
    }

    /// The names of EventStreams as they are seen to be Ready.
    pub async fn ready(&self) -> BoxStream<'static, String> {
        let version = self.streams().list(&ListParams::default()).await.unwrap().metadata.resource_version;
        let streams = self.streams();
        let events = streams.watch(&WatchParams::default().timeout(290), &version.unwrap()).await.unwrap();
        let ready = events.try_filter_map(async |event| match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) if is_ready(&object) => {
                Ok(object.metadata.name)
            }
            WatchEvent::Error(error) => panic!("{error:?}"),
            _ => Ok(None),
        });
        ready.map(Result::unwrap).boxed()
    }

    /// The configuration of a stream, once there is one.
    async fn config(&self, name: &str) -> Option<Config> {
        self.jetstream.get_stream(name).await.ok().map(|stream| stream.cached_info().config.clone())
    }

    /// How long it takes from now until a stream is as declared.
    async fn until_declared(&self, name: &str) -> Duration {
        let since = Instant::now();
        loop {
            if self.config(name).await.is_some_and(|config| config.max_messages == -1) {
                return since.elapsed();
            }
            assert!(since.elapsed() < BOUND, "{name} was not put right");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn is_ready(object: &EventStream) -> bool {
    let conditions = object.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// One line with the median, the 99th percentile (nearest rank) and the longest of some times.
fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let rank = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1].as_secs_f64() * 1000.0;
    println!(
        "{what} ({} times): median {:.1} ms, p99 {:.1} ms, max {:.1} ms",
        times.len(),
        rank(50),
        rank(99),
        rank(100)
    );
}

pub async fn one_after_another() {
    let world = World::start().await;
    world.print_idle("no objects").await;
    let mut ready = world.ready().await;
    let mut times = Vec::new();
    for number in 0..IN_TURN {
        let created = world.create(number).await;
        let seen = async {
            while let Some(seen) = ready.next().await {
                if seen == name(number) {
                    return created.elapsed();
                }
            }
            panic!("the watch ended")
        };
        times.push(tokio::time::timeout(BOUND, seen).await.unwrap());
    }
    print("EventStream created until seen Ready, one after another", times);

    let mut times = Vec::new();
    for number in 0..REPAIRS {
        let config = world.config(&name(number)).await.unwrap();
        world.jetstream.update_stream(Config { max_messages: 3, ..config }).await.unwrap();
        times.push(world.until_declared(&name(number)).await);
    }
    print("stream edited in NATS until it is as declared again", times);

    let mut times = Vec::new();
    for number in 0..REPAIRS {
        world.jetstream.delete_stream(name(number)).await.unwrap();
        times.push(world.until_declared(&name(number)).await);
    }
    print("stream deleted in NATS until it is there again", times);
    println!("nats-server, meanwhile: {} MiB resident", world.nats.process().memory_bytes() >> 20);
}

pub async fn all_at_once() {
    let world = World::start().await;
    let mut ready = world.ready().await;
    let begun = Instant::now();
    let creating = async {
        stream::iter(0..AT_ONCE).map(|number| world.create(number)).buffer_unordered(WRITERS).count().await;
        begun.elapsed()
    };
    let seeing = async {
        let mut missing: BTreeSet<_> = (0..AT_ONCE).map(name).collect();
        while !missing.is_empty() {
            missing.remove(&ready.next().await.unwrap());
        }
        begun.elapsed()
    };
    let (created, seen) =
        tokio::time::timeout(BOUND, async { tokio::join!(creating, seeing) }).await.unwrap();
    println!(
        "{AT_ONCE} EventStreams created at once ({:.2} s until the last was accepted) until all are seen Ready: {:.2} s",
        created.as_secs_f64(),
        seen.as_secs_f64()
    );
    world.print_idle(&format!("{AT_ONCE} EventStreams")).await;
}
