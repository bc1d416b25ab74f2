//! A cluster of NATS servers.

use super::server::{Membership, NatsServer, NatsServerBuilder, connect};
use crate::awaiting::{await_until, try_until};
use crate::port::free_port;
use crate::process::{NotReady, on_free_ports};
use anyhow::{Context, Result, anyhow, ensure};
use async_nats::header::{HeaderMap, HeaderValue, NATS_EXPECTED_STREAM};
use async_nats::jetstream;
use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::stream::{self, Stream};
use async_nats::{Client, ConnectOptions, RequestError};
use serde::Deserialize;
use std::time::Duration;

/// An election usually takes some seconds.
pub(super) const ELECTION: Duration = Duration::from_secs(30);

/// NATS servers that are one cluster, each with a store of its own.
#[derive(Debug)]
pub struct NatsCluster {
    servers: Vec<NatsServer>,
    url: String,
}

/// What a server's /jsz tells of the group that keeps the list of streams.
#[derive(Deserialize)]
struct Jsz {
    meta_cluster: Option<MetaCluster>,
}

#[derive(Deserialize)]
struct MetaCluster {
    #[serde(default)]
    leader: String,
    /// Told by the leader alone.
    #[serde(default)]
    replicas: Vec<Peer>,
}

#[derive(Deserialize)]
struct Peer {
    current: bool,
    #[serde(default)]
    offline: bool,
}

impl NatsCluster {
    /// Starts a cluster of so many servers, and returns when they have elected a leader whom all follow.
    pub async fn start(size: usize) -> Self {
        Self::start_with(size, NatsServer::builder()).await
    }

    /// As [`Self::start`], with servers that need more than the defaults.
    pub async fn start_with(size: usize, builder: NatsServerBuilder) -> Self {
        Self::try_start_with(size, builder).await.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// As [`Self::start_with`], for a program that says why there is none.
    ///
    /// # Errors
    ///
    /// When a server cannot be started, with the end of its log, or they elect no leader.
    pub async fn try_start_with(size: usize, builder: NatsServerBuilder) -> Result<Self> {
        let started = on_free_ports(async || {
            let cluster = Self::spawn(size, &builder)?;
            for server in &cluster.servers {
                server.await_ready().await?;
            }
            cluster.try_meta_leader().await?;
            Ok::<_, NotReady>(cluster)
        });
        started.await.with_context(|| format!("a cluster of {size} nats-servers"))
    }

    fn spawn(size: usize, builder: &NatsServerBuilder) -> Result<Self> {
        let routes: Vec<_> = (0..size).map(|_| free_port()).collect();
        // Servers of another cluster, if ever one had such a port before, are turned away by the name.
        let cluster = format!("test-{}-{}", std::process::id(), routes[0]);
        let member = |(index, route): (usize, &u16)| {
            let name = format!("n{}", index + 1);
            builder.spawn(Some(&Membership {
                name: &name,
                cluster: &cluster,
                routes: &routes,
                route: *route,
            }))
        };
        let servers = routes.iter().enumerate().map(member).collect::<Result<Vec<_>>>()?;
        let url = servers.iter().map(NatsServer::url).collect::<Vec<_>>().join(",");
        Ok(Self { servers, url })
    }

    /// Where clients connect: the URLs of all members, with commas between.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The members.
    #[must_use]
    pub fn servers(&self) -> &[NatsServer] {
        &self.servers
    }

    /// A client that knows all members.
    pub async fn client(&self) -> Client {
        self.client_with(ConnectOptions::new()).await
    }

    /// A client that knows all members, with credentials or other options.
    pub async fn client_with(&self, options: ConnectOptions) -> Client {
        connect(&self.url, options).await
    }

    /// A client's JetStream.
    pub async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.client().await)
    }

    /// Makes a stream, asking again where nobody answers: servers that have just elected a leader may drop a request. Returns when a
    /// message to each of its subjects is taken on every member: the members hear of a new stream one after another.
    pub async fn create_stream(&self, config: stream::Config) -> Stream {
        let jetstream = self.jetstream().await;
        let made = await_until("a stream to be made", ELECTION, async || {
            jetstream.create_stream(config.clone()).await
        })
        .await;
        self.await_known(&made).await;
        made
    }

    /// Makes a consumer of a stream, asking again as [`Self::create_stream`] does.
    pub async fn create_consumer(&self, stream: &str, config: pull::Config) -> PullConsumer {
        let jetstream = self.jetstream().await;
        let make = async || jetstream.create_consumer_on_stream(config.clone(), stream).await;
        await_until("a consumer to be made", ELECTION, make).await
    }

    /// Makes the leader of a stream or consumer step down, by a request to this subject, which is repeated until it succeeds: while a leader is
    /// elected, nobody answers.
    pub async fn step_down(&self, subject: &str) {
        let client = self.client().await;
        await_until("a leader to step down", ELECTION, async || {
            let asked = client.request(subject.to_owned(), "".into());
            let answer = tokio::time::timeout(Duration::from_secs(2), asked).await??;
            let answer = String::from_utf8_lossy(&answer.payload);
            ensure!(answer.contains("\"success\":true"), "{answer}");
            Ok(())
        })
        .await;
    }

    /// Waits until each member takes messages of a stream's subjects.
    async fn await_known(&self, stream: &Stream) {
        for server in &self.servers {
            let client = server.client().await;
            for subject in &stream.cached_info().config.subjects {
                let known = async || reaches_stream(&client, subject).await;
                await_until("a server to know a stream", ELECTION, known).await;
            }
        }
    }

    /// The index of the member that keeps the list of streams, once all running members follow it and are up to date.
    pub async fn meta_leader(&self) -> usize {
        self.try_meta_leader().await.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// The index of the member that leads a stream.
    pub async fn stream_leader(&self, stream: &str) -> usize {
        let jetstream = self.jetstream().await;
        let answer = try_until(ELECTION, async || {
            let info = jetstream.get_stream(stream).await?.get_info().await?;
            let leader = info.cluster.and_then(|cluster| cluster.leader).context("no leader")?;
            self.index_of(&leader)
        });
        answer
            .await
            .unwrap_or_else(|last| panic!("the stream {stream} has no leader after {ELECTION:?}: {last}"))
    }

    async fn try_meta_leader(&self) -> Result<usize> {
        let asked = try_until(ELECTION, async || {
            let running: Vec<_> =
                self.servers.iter().filter(|server| server.process().exited().is_none()).collect();
            let mut leaders = Vec::new();
            for server in &running {
                let meta =
                    server.monitor::<Jsz>("/jsz").await?.meta_cluster.context("not in a cluster yet")?;
                if meta.leader == server.name() {
                    let current = meta.replicas.iter().filter(|peer| peer.current && !peer.offline).count();
                    ensure!(
                        current + 1 == running.len(),
                        "{current} follow {} and are up to date",
                        meta.leader
                    );
                }
                leaders.push(meta.leader);
            }
            leaders.dedup();
            match leaders.as_slice() {
                [leader] => self.index_of(leader),
                _ => Err(anyhow!("they name {leaders:?}")),
            }
        });
        asked.await.map_err(|last| anyhow!("no leader whom all follow after {ELECTION:?}: {last}"))
    }

    fn index_of(&self, name: &str) -> Result<usize> {
        self.servers
            .iter()
            .position(|server| server.name() == name)
            .with_context(|| format!("no member '{name}'"))
    }
}

/// Whether a message of such a subject finds its stream. This one is not stored, since no stream has the name that it expects.
async fn reaches_stream(client: &Client, subject: &str) -> Result<(), RequestError> {
    let subject = subject.replace(['*', '>'], "any");
    let headers = HeaderMap::from_iter([(NATS_EXPECTED_STREAM, HeaderValue::from("-"))]);
    client.request_with_headers(subject, headers, "".into()).await.map(drop)
}
