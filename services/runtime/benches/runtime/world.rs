//! The server, its streams, and the turns of the two sides.

use std::{collections::BTreeSet, time::Duration};

use async_nats::jetstream::{self, consumer, stream};
use axum::{Router, routing::post};
use jetwright_crds::dead_letter;
use jetwright_testing::{NatsServer, await_until, processor_seconds};

use crate::{
    bare,
    job::{Job, Kind, Report},
    party::Party,
    setting::{ACK_WAIT, CONSUMER},
};

/// How long the server may take to note the last acknowledgements.
const SOON: Duration = Duration::from_secs(20);

pub struct World {
    nats: NatsServer,
    jetstream: jetstream::Context,
    /// Where traces go.
    sink: String,
    /// Streams with events that wait.
    filled: BTreeSet<String>,
}

/// What one job cost.
#[derive(Clone, Debug)]
pub struct Cost {
    pub report: Report,
    /// Processor time that it took the server.
    pub server_seconds: f64,
}

impl World {
    pub async fn start() -> Self {
        let nats = NatsServer::start().await;
        let jetstream = nats.jetstream().await;
        Self { jetstream, nats, sink: sink().await, filled: BTreeSet::new() }
    }

    pub fn ours(&self, job: &Job) -> Party {
        Party::ours(self.nats.url(), job.tracing, &self.sink)
    }

    pub fn bare(&self) -> Party {
        Party::bare(self.nats.url())
    }

    /// Fills the stream of a job that consumes, if that was not done yet.
    pub async fn fill(&mut self, job: &Job) {
        if self.filled.insert(job.stream.clone()) {
            eprintln!("{} events into the stream {}", job.events, job.stream);
            self.create_stream(&job.stream).await;
            bare::publish(&self.jetstream, job).await;
        }
    }

    /// Has a side do a job, and sees that all of it was done.
    pub async fn turn(&self, party: &mut Party, job: &Job) -> Cost {
        let fresh = !matches!(job.kind, Kind::Consume { .. });
        if fresh {
            self.create_stream(&job.stream).await;
        }
        let dead_letters = dead_letter::stream(&job.stream);
        if job.burst() > 0 {
            let subjects = vec![dead_letter::subjects(&job.stream)];
            let config = stream::Config { name: dead_letters.clone(), subjects, ..Default::default() };
            self.jetstream.create_stream(config).await.unwrap();
        }
        if !job.is_publishing() {
            self.create_consumer(job).await;
        }
        let pid = self.nats.process().pid().to_string();
        let before = processor_seconds(&pid);
        let report = party.does(job).await;
        let server_seconds = processor_seconds(&pid) - before;
        let mut stream = self.jetstream.get_stream(&job.stream).await.unwrap();
        if job.is_publishing() {
            assert_eq!(stream.info().await.unwrap().state.messages, job.events + 1, "of {job:?}");
        } else {
            self.await_drained(&job.stream).await;
            stream.delete_consumer(CONSUMER).await.unwrap();
        }
        if job.burst() > 0 {
            let mut stream = self.jetstream.get_stream(&dead_letters).await.unwrap();
            assert_eq!(stream.info().await.unwrap().state.messages, job.burst());
            self.jetstream.delete_stream(&dead_letters).await.unwrap();
        }
        if fresh {
            self.jetstream.delete_stream(&job.stream).await.unwrap();
        }
        Cost { report, server_seconds }
    }

    async fn create_stream(&self, name: &str) {
        let config = stream::Config {
            name: name.to_owned(),
            subjects: vec![format!("{name}.*")],
            ..Default::default()
        };
        self.jetstream.create_stream(config).await.unwrap();
    }

    async fn create_consumer(&self, job: &Job) {
        let config = consumer::pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            ack_policy: consumer::AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_ack_pending: job.in_flight.into(),
            ..Default::default()
        };
        self.jetstream.create_consumer_on_stream(config, &job.stream).await.unwrap();
    }

    async fn await_drained(&self, stream: &str) {
        await_until("every event acknowledged", SOON, async || {
            let consumer: consumer::PullConsumer =
                self.jetstream.get_consumer_from_stream(CONSUMER, stream).await.unwrap();
            let info = consumer.cached_info();
            let waiting = (info.num_pending, info.num_ack_pending);
            if waiting == (0, 0) { Ok(()) } else { Err(format!("pending and unacknowledged: {waiting:?}")) }
        })
        .await;
    }
}

/// A collector that takes everything and keeps nothing.
async fn sink() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/v1/traces", post(async |_: bytes::Bytes| {}));
    tokio::spawn(async { axum::serve(listener, router).await });
    format!("http://{address}")
}
