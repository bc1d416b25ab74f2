//! Requests to JetStream, which are publishes with their acknowledgements, one after another from each of so many callers: over the
//! request mux of jetwright-nats, and beside it as async-nats sends them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use jetwright_nats::{Connection, ConnectionConfig};
use prost::Message;

use crate::{
    count::now,
    event::Measured,
    job::{Job, Report, Watch},
};

/// As async-nats has it by default.
const TIMEOUT: Duration = Duration::from_secs(10);

pub async fn over_mux(url: String, job: &Job) -> Report {
    let config = ConnectionConfig {
        name: "benches".to_owned(),
        servers: vec![url.parse().unwrap()],
        credentials: None,
        credentials_setting: "",
        domain: None,
    };
    let connection = Connection::open(config).await.unwrap();
    let request = move |subject, payload| {
        let connection = connection.clone();
        async move { connection.request_once(subject, payload, TIMEOUT).await.unwrap() }
    };
    run(job, request).await
}

pub async fn over_client(url: String, job: &Job) -> Report {
    let client = async_nats::connect(&url).await.unwrap();
    let request = move |subject, payload| {
        let client = client.clone();
        async move { client.request::<String>(subject, payload).await.unwrap().payload }
    };
    run(job, request).await
}

async fn run<Reply>(
    job: &Job,
    request: impl Fn(String, Bytes) -> Reply + Clone + Send + Sync + 'static,
) -> Report
where
    Reply: Future<Output = Bytes> + Send,
{
    let stream = job.stream.clone();
    let send = move |number| {
        let event = Measured::new(number, now());
        request(event.subject(&stream), event.encode_to_vec().into())
    };
    // The first one waits for the connection.
    read(&send(job.events).await);
    let (watch, next, events) = (Watch::start(), Arc::new(AtomicU64::new(0)), job.events);
    let callers = (0..job.in_flight).map(|_| {
        let (send, next) = (send.clone(), Arc::clone(&next));
        tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= events {
                    return;
                }
                read(&send(number).await);
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    watch.report()
}

/// Both sides read the acknowledgement.
fn read(reply: &Bytes) {
    let ack: serde_json::Value = serde_json::from_slice(reply).unwrap();
    assert!(ack["seq"].is_u64(), "{ack}");
}
