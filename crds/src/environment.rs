//! The contract between the operator and the pods that it runs: the names of the environment variables and the
//! bindings file. Both sides use these types, so they cannot drift apart.

use std::{collections::BTreeMap, ops::RangeInclusive};

use serde::{Deserialize, Serialize, Serializer, ser::SerializeStruct as _};

use crate::Duration;

/// Path of the mounted bindings file, a [`Bindings`] document in YAML.
pub const JETWRIGHT_BINDINGS: &str = "JETWRIGHT_BINDINGS";
/// Comma-separated addresses of the NATS servers.
pub const NATS_URL: &str = "NATS_URL";
/// Path of a folder with what identifies the program to NATS. Absent where the servers ask for nothing.
///
/// In the folder there is exactly one of `user.creds`, `username` with `password`, `token` and `nkey`, or none of them beside a
/// client certificate; and optionally `ca.crt`, `tls.crt` with `tls.key`, and `inbox-prefix`. `jetwright-process` reads them.
pub const NATS_CREDENTIALS: &str = "NATS_CREDENTIALS";
/// Where the operator mounts the Secret of `spec.workload.credentials`: the value of [`NATS_CREDENTIALS`] then.
pub const NATS_CREDENTIALS_FOLDER: &str = "/var/run/secrets/jetwright/nats";
/// Name under which the workload reports its telemetry (OpenTelemetry's own variable).
pub const OTEL_SERVICE_NAME: &str = "OTEL_SERVICE_NAME";
/// Where traces go by OTLP over HTTP (OpenTelemetry's own variable); nothing is exported where it is absent.
pub const OTEL_EXPORTER_OTLP_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// Attributes of the pod in the cluster (OpenTelemetry's own variable).
pub const OTEL_RESOURCE_ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";

/// Name of the pod.
pub const JETWRIGHT_POD_NAME: &str = "JETWRIGHT_POD_NAME";
/// Namespace of the pod; only pods that share partitions out have it.
pub const JETWRIGHT_POD_NAMESPACE: &str = "JETWRIGHT_POD_NAMESPACE";
/// UID of the pod; only pods that share partitions out have it.
pub const JETWRIGHT_POD_UID: &str = "JETWRIGHT_POD_UID";

/// Address on which a workload serves `/livez`, `/readyz` and `/metrics`; the operator sets it, so that the probes find it.
pub const JETWRIGHT_ADMIN_ADDRESS: &str = "JETWRIGHT_ADMIN_ADDRESS";
/// Port of [`JETWRIGHT_ADMIN_ADDRESS`] in pods that the operator makes.
pub const ADMIN_PORT: u16 = 9090;
/// Where the operator mounts the bindings file.
pub const BINDINGS_FOLDER: &str = "/etc/jetwright";
/// Name of the bindings file in its folder, and its key in the ConfigMap.
pub const BINDINGS_FILE: &str = "bindings.yaml";

/// How long a handler may take for one attempt at an event where nothing else is said.
pub const HANDLER_DEADLINE: Duration = Duration::from_secs(20);
/// How long a handler may be allowed to take.
pub const HANDLER_DEADLINES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// What a stop may take beyond the deadline of the slowest handler: for what was still to arrive, for settlements, for what was
/// written, and for telemetry.
pub const STOP_MARGIN: Duration = Duration::from_secs(10);
/// Shortest grace period of pods that the operator makes: what Kubernetes gives by default.
pub const SHORTEST_GRACE_PERIOD: Duration = Duration::from_secs(30);

/// Version of the bindings file that this operator writes, and the newest one that this runtime understands: its field `version`,
/// an integer. A file without one is version 1.
///
/// A field that older programs may ignore is added within a version: they do, and warn of it. The version grows where they would
/// do something wrong without it (an older program then refuses the file), and only from 2 on is it written: to write `version: 1`
/// would change every file that there is, and so roll out all pods, for nothing.
///
/// A file is version 2 where a consumer's stream has partitions: an older program would take the number of the partition for a part of the
/// subject, and would wait for a consumer that is several.
pub const BINDINGS_VERSION: u64 = 2;

/// All consumers of one workload, by the names of their EventConsumers. Unknown fields are ignored, here and in what it holds:
/// the operator may be newer than the program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bindings {
    /// EventConsumer name to what its handler needs.
    pub bindings: BTreeMap<String, Binding>,
}

impl Serialize for Bindings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let version = self.version();
        let mut file = serializer.serialize_struct("Bindings", 2)?;
        match version {
            1 => file.skip_field("version")?,
            version => file.serialize_field("version", &version)?,
        }
        file.serialize_field("bindings", &self.bindings)?;
        file.end()
    }
}

/// What a handler needs to consume from one JetStream consumer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Binding {
    /// JetStream stream name.
    pub stream: String,
    /// Durable name of the JetStream consumer.
    pub consumer: String,
    /// How long JetStream waits for an acknowledgement before it delivers again.
    pub ack_wait: Duration,
    /// Most messages that JetStream lets go unacknowledged, over all pods.
    pub max_ack_pending: u32,
    /// When a failed message is tried again, and how often.
    pub retry: Retry,
    /// How long a handler may take for one attempt, before it counts as failed.
    #[serde(default = "default_handler_deadline")]
    pub handler_deadline: Duration,
    /// The stream's partitions: each stored subject has the number of its partition as the last token. None where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<StreamPartitions>,
    /// What is handled in the order in which it was stored; nothing where it is absent. With `partitions`, `consumer` is one
    /// JetStream consumer for each of them, `<consumer>-p<number>`, and the processes share them out among themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordering: Option<Ordering>,
    /// Where events that cannot be processed are kept; they are given up where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letters: Option<DeadLetters>,
}

/// The partitions of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamPartitions {
    /// The stream's subject, as events are published.
    pub subject: String,
    /// Which tokens of it are the key, counted from 1, in the order in which they are hashed.
    pub key_tokens: Vec<u32>,
    /// How many there are.
    pub count: u32,
}

/// Events of one key are handled one after another, in the order in which the stream holds them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ordering {
    /// Which tokens of a subject are the key, counted from 1.
    pub key_tokens: Vec<u32>,
}

/// Where a consumer's dead letters are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetters {
    /// What their subjects begin with, as [`crate::dead_letter::prefix`] makes it.
    pub prefix: String,
    /// How long each is kept; for ever where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Duration>,
}

fn default_handler_deadline() -> Duration {
    HANDLER_DEADLINE
}

impl Bindings {
    /// The oldest version that a program has to understand.
    #[must_use]
    pub fn version(&self) -> u64 {
        let is_partitioned = |binding: &Binding| binding.partitions.is_some();
        if self.bindings.values().any(is_partitioned) { BINDINGS_VERSION } else { 1 }
    }

    /// Whether processes share out the partitions of a consumer.
    #[must_use]
    pub fn are_shared_out(&self) -> bool {
        self.bindings.values().any(|binding| binding.partitions.is_some() && binding.ordering.is_some())
    }

    /// How long after it was asked to stop a program with these handlers may still run: until then the slowest of them may have
    /// finished what it was given. Whole seconds.
    #[must_use]
    pub fn grace_period(&self) -> Duration {
        let slowest =
            self.bindings.values().map(|binding| binding.handler_deadline.0).max().unwrap_or_default();
        let stop = Duration::from_secs(
            (slowest + STOP_MARGIN.0).as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX),
        );
        stop.max(SHORTEST_GRACE_PERIOD)
    }
}

/// How often and when a message that failed is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Calls of the handler for one event altogether, the first included.
    pub max_attempts: u32,
    /// Delays between the attempts.
    pub backoff: Backoff,
}

/// Delays that grow by a factor from `initial` to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backoff {
    /// Delay after the first failure.
    pub initial: Duration,
    /// Growth from one delay to the next.
    pub factor: u32,
    /// Longest delay.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Duration::from_millis(500), factor: 2, max: Duration::from_secs(60) }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { max_attempts: 6, backoff: Backoff::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding() -> Binding {
        Binding {
            stream: "orders".to_owned(),
            consumer: "fulfilment".to_owned(),
            ack_wait: Duration::from_secs(30),
            max_ack_pending: 1000,
            retry: Retry::default(),
            handler_deadline: HANDLER_DEADLINE,
            partitions: None,
            ordering: None,
            dead_letters: None,
        }
    }

    fn grace_period(deadlines: &[Duration]) -> u64 {
        let binding =
            |handler_deadline: &Duration| Binding { handler_deadline: *handler_deadline, ..binding() };
        let bindings =
            deadlines.iter().enumerate().map(|(number, deadline)| (number.to_string(), binding(deadline)));
        Bindings { bindings: bindings.collect() }.grace_period().0.as_secs()
    }

    #[test]
    fn the_grace_period_is_the_slowest_handlers_and_never_less_than_kubernetes_own() {
        let seconds = Duration::from_secs;
        assert_eq!(grace_period(&[]), 30);
        assert_eq!(grace_period(&[HANDLER_DEADLINE]), 30);
        assert_eq!(grace_period(&[seconds(1), seconds(60), seconds(20)]), 70);
        assert_eq!(grace_period(&[Duration::from_millis(20_001)]), 31);
    }

    #[test]
    fn a_file_of_version_1_says_no_version_since_that_would_roll_out_all_pods() {
        let written = serde_saphyr::to_string(&Bindings::default()).unwrap();
        assert_eq!(written.trim(), "bindings: {}");
        let file = Bindings { bindings: [("plain".to_owned(), binding())].into() };
        assert!(
            serde_saphyr::to_string(&file).unwrap().starts_with("bindings:\n  plain:\n    stream: orders\n")
        );
    }

    #[test]
    fn a_file_with_partitions_is_refused_by_programs_that_know_none() {
        let partitions = StreamPartitions { subject: "orders.*.*".to_owned(), key_tokens: vec![2], count: 8 };
        let of = Binding { partitions: Some(partitions), ..binding() };
        let file = Bindings { bindings: [("plain".to_owned(), binding()), ("of".to_owned(), of)].into() };
        let text = serde_saphyr::to_string(&file).unwrap();
        assert!(text.starts_with("version: 2\nbindings:\n"), "{text}");
        assert_eq!(serde_saphyr::from_str::<Bindings>(&text).unwrap(), file);
        assert!(!file.are_shared_out());
    }

    #[test]
    fn a_binding_that_says_nothing_of_it_has_the_usual_deadline() {
        let text = "{stream: s, consumer: c, ackWait: 30s, maxAckPending: 1,
            retry: {maxAttempts: 1, backoff: {initial: 1s, factor: 1, max: 1s}}}";
        let binding: Binding = serde_saphyr::from_str(text).unwrap();
        assert_eq!(binding.handler_deadline, HANDLER_DEADLINE);
    }
}
