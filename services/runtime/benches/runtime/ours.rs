//! The runtime's side, by its public interface alone.

use std::{
    sync::{
        Arc,
        atomic::{self, AtomicU64},
    },
    time::Duration,
};

use futures::future::join_all;
use jetwright_crds::{
    Duration as Text, dead_letter,
    environment::{Backoff, Binding, Bindings, DeadLetters, HANDLER_DEADLINE, Ordering, Retry},
};
use jetwright_process::health::Health;
use jetwright_runtime::{
    AckMode, Environment, ErrorKind, Handler, HandlerError, HandlerOptions, Metadata, PublishOptions,
    Publisher, Service,
};
use opentelemetry::{
    Context,
    trace::{FutureExt, TraceContextExt},
};
use prometheus_client::registry::Registry;
use tokio::{sync::Semaphore, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    IN_FLIGHT,
    bare::steadily,
    count::{Count, now},
    event::{Measured, trace},
    job::{self, Job, Kind, Report, Watch},
    requests,
    setting::{ACK_WAIT, CONSUMER},
};

/// What the log says of an event that is to fail.
pub const FAILURE: &str = "this event fails at every attempt";
/// Until a burst of those, from the beginning of the load.
const BEFORE_BURST: Duration = Duration::from_secs(2);

struct Counting(Arc<Count>);

impl Handler for Counting {
    type Event = Measured;

    async fn handle(&self, event: Measured, _: &Metadata) -> Result<(), HandlerError> {
        if !self.0.counts(&event) {
            return Err(HandlerError::transient(FAILURE));
        }
        self.0.handled(&event);
        Ok(())
    }
}

pub async fn run(url: String, job: Job) -> Report {
    match job.kind {
        Kind::Consume { .. } => consume(&url, &job, async {}).await,
        Kind::Publish => publish(&connect(&url, &job).await.publisher(), &job).await,
        Kind::Request => requests::over_mux(url, &job).await,
        Kind::Both { rate, burst } => {
            // As two programs would, each over a connection of its own.
            let load = Arc::new(Load::new(connect(&url, &job).await.publisher(), job.clone()));
            tokio::spawn(publish_burst(Arc::clone(&load), burst));
            consume(&url, &job, publish_steadily(load, rate)).await
        }
    }
}

async fn connect(url: &str, job: &Job) -> Service {
    let binding = Binding {
        stream: job.stream.clone(),
        consumer: CONSUMER.to_owned(),
        ack_wait: Text(ACK_WAIT),
        max_ack_pending: job.in_flight,
        retry: Retry {
            max_attempts: 5,
            backoff: Backoff { initial: Text::from_millis(250), ..Backoff::default() },
        },
        handler_deadline: HANDLER_DEADLINE,
        partitions: None,
        ordering: job.is_ordered().then(|| Ordering { key_tokens: vec![2] }),
        dead_letters: (job.burst() > 0).then(|| {
            let prefix = dead_letter::prefix(&job.stream, CONSUMER);
            DeadLetters { prefix, max_age: None }
        }),
    };
    let environment = Environment {
        name: "benches".to_owned(),
        servers: vec![url.parse().unwrap()],
        credentials: None,
        bindings: Bindings { bindings: [("measured".to_owned(), binding)].into() },
        pod: None,
        unknown_fields: Vec::new(),
    };
    Service::connect(environment, &Health::new(), &mut Registry::default()).await.unwrap()
}

async fn consume(url: &str, job: &Job, meanwhile: impl Future<Output = ()>) -> Report {
    let (mut service, count) = (connect(url, job).await, Arc::new(Count::new(job)));
    let ack_mode = match job.acknowledge() {
        job::Acknowledge::Sent => AckMode::FireAndForget,
        job::Acknowledge::Confirmed => AckMode::Confirmed,
    };
    let options =
        HandlerOptions { concurrency: job.in_flight.min(IN_FLIGHT), ack_mode, ..HandlerOptions::default() };
    service.handle_with("measured", Counting(Arc::clone(&count)), options).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(service.run(stop.clone()));
    meanwhile.await;
    let report = count.report().await;
    stop.cancel();
    running.await.unwrap().unwrap();
    report
}

/// As many callers at once as may be in flight, each of which publishes one event after another as a part of the trace of what it
/// does.
async fn publish(publisher: &Publisher, job: &Job) -> Report {
    // The first one waits for the connection.
    send(publisher, job, job.events).await;
    let (watch, next) = (Watch::start(), Arc::new(AtomicU64::new(0)));
    let callers = (0..job.in_flight).map(|caller| {
        let (publisher, job, next) = (publisher.clone(), job.clone(), Arc::clone(&next));
        let trace = trace(caller.into(), job.tracing);
        let calling = async move {
            loop {
                let number = next.fetch_add(1, atomic::Ordering::Relaxed);
                if number >= job.events {
                    return;
                }
                send(&publisher, &job, number).await;
            }
        };
        tokio::spawn(calling.with_context(Context::new().with_remote_span_context(trace)))
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    watch.report()
}

async fn send(publisher: &Publisher, job: &Job, number: u64) {
    let event = Measured::new(number, now());
    publisher.publish(&event.subject(&job.stream), &event, PublishOptions::default()).await.unwrap();
}

/// What publishes at a rate, whether or not the publishes before are done.
struct Load {
    publisher: Publisher,
    job: Job,
    /// Publishes in flight, as many as the other side's client allows. On a machine that does not keep up, further events wait here,
    /// and not for so long in the publisher that it gives them up. Their latency counts from before.
    room: Semaphore,
}

impl Load {
    fn new(publisher: Publisher, job: Job) -> Self {
        let room = Semaphore::new(job.in_flight.min(IN_FLIGHT).try_into().unwrap());
        Self { publisher, job, room }
    }

    async fn send(&self, number: u64) {
        let event = Measured::new(number, now());
        let _room = self.room.acquire().await.unwrap();
        let subject = event.subject(&self.job.stream);
        let options = PublishOptions { message_id: Some(number.to_string()), ..PublishOptions::default() };
        // A server that is silent for five seconds makes the figure bad, and does not end the measurement.
        while let Err(error) = self.publisher.publish(&subject, &event, options.clone()).await {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        }
    }
}

async fn publish_burst(load: Arc<Load>, burst: u64) {
    sleep(BEFORE_BURST).await;
    let events = load.job.events;
    join_all((events..events + burst).map(|number| load.send(number))).await;
}

async fn publish_steadily(load: Arc<Load>, rate: u64) {
    let (events, tracing) = (load.job.events, load.job.tracing);
    steadily(events, rate, |numbers| {
        let load = Arc::clone(&load);
        tokio::spawn(async move {
            let sent = numbers.map(|number| {
                let trace = Context::new().with_remote_span_context(trace(number, tracing));
                load.send(number).with_context(trace)
            });
            join_all(sent).await;
        });
    })
    .await;
}
