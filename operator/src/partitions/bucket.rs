//! The bucket of the protocol: made with the first ordered consumer of a connection, kept as it has to be, and never deleted by the operator. Reads
//! and writes JetStream where the bucket is not as it is known to be.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jetwright_crds::{AdoptionPolicy, stream::Replicas};
use jetwright_partitions::keys::{BUCKET, BUCKET_STREAM, SUBJECT_PREFIX};
use serde_json::json;

use crate::{
    context::Context,
    jetstream::{
        asset::{Asset as _, Desired, Stream},
        config::Config,
        connections::Connection,
        info::StreamInfo,
        ownership::Owner,
        reconcile::{Error, Situation, ensure},
        stream_config::REPLICAS,
    },
    object_state::ObjectKey,
    outcome::{Outcome, Recorded},
    write_gate::WriteGate,
};

/// Grows with each change of [`config`], so that an older operator does not undo what a newer one applied.
const GENERATION: i64 = 1;
/// Copies, where there are as many servers.
const COPIES: u8 = 3;

/// Brings the bucket to what it has to be. `age` is how long it has been needed.
///
/// # Errors
///
/// When JetStream does not answer or refuses.
pub async fn keep(
    context: &Context,
    connection: &Connection,
    age: Duration,
) -> Result<Outcome<StreamInfo>, Error> {
    let owner = Owner {
        cluster: context.cluster.clone(),
        namespace: context.client.default_namespace().to_owned(),
        name: BUCKET.to_owned(),
        uid: BUCKET_STREAM.to_owned(),
        generation: GENERATION,
    };
    let desired = Desired::<Stream> {
        key: BUCKET_STREAM.to_owned(),
        owner,
        // One that a program made is as good. That of another cluster's operator is used as it is: there is one in an account.
        adoption: AdoptionPolicy::AdoptUnowned,
        config: config(),
        replicas: Some(Replicas::Prefer(COPIES)),
        max_ack_pending: None,
    };
    let recorded = Recorded { highest_sequence: Some(microseconds()), ..Recorded::default() };
    let situation =
        Situation { recorded: &recorded, age, refusal_ttl: context.settings.resync, forbids: &|_, _| None };
    let object = ObjectKey { kind: "Bucket", namespace: String::new(), name: BUCKET.to_owned() };
    let gate = WriteGate {
        states: &context.states,
        object,
        generation: Some(GENERATION),
        kind: Stream::KIND,
        partition: None,
    };
    let work = ensure(&connection.cache, &desired, situation, &gate);
    connection.while_available(BUCKET_STREAM, work).await
}

/// Revisions are epochs, which never go back. Where the last one is not known, as after a restart, those of a new bucket begin at the
/// time in microseconds: nobody writes a bucket a million times a second.
fn microseconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or_default()
}

/// A key-value bucket as NATS' clients know one (ADR-8), but for two things: its reads are the leader's alone, since another replica may
/// be behind, and nobody purges it.
fn config() -> Config {
    Config::default()
        .with("name", BUCKET_STREAM)
        .with("description", "Which process handles which partition; made and kept by Jetwright")
        .with("subjects", json!([format!("{SUBJECT_PREFIX}>")]))
        .with("retention", "limits")
        .with("storage", "file")
        .with("discard", "new")
        .with("max_msgs_per_subject", 1)
        .with("max_age", 0)
        .with("max_bytes", -1)
        .with("max_msgs", -1)
        .with("max_msg_size", -1)
        .with("allow_direct", false)
        .with("allow_rollup_hdrs", false)
        .with("allow_msg_ttl", true)
        .with("deny_delete", true)
        .with("deny_purge", true)
        .with(REPLICAS, 1)
}
