//! What an object says itself of when something is wrong with it (`spec.monitoring`). The operator exports it as metrics, by which the alerts
//! judge, and writes it into the metadata of the stream or consumer, by which NATS' own tools judge (`nats server check`, `nats audit`).
//! The keys and their meaning are those of jsm.go (monitor/stream.go, monitor/consumer.go).

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::{Duration, EventConsumerSpec, EventStreamSpec};

/// What the keys of the metadata begin with by which NATS' tools judge.
pub const METADATA_PREFIX: &str = "io.nats.monitor.";

/// Thresholds of a stream; what is left out has the alerts' default, or is not judged.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamMonitoring {
    /// Servers that have to keep a current copy; fewer is wrong. Default: replicas, where that is more than 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 5))]
    pub peers_expected: Option<u8>,
    /// Operations that a copy may be behind the leader; more is critical. Default of the alert: 200.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9_007_199_254_740_991_u64))]
    pub peer_lag_critical: Option<u64>,
    /// How long ago the leader may have heard of a copy; longer is critical. Only NATS' tools know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("must be greater than 0"))]
    pub peer_seen_critical: Option<Duration>,
    /// As many messages in the stream, or fewer, are worth a warning. Only NATS' tools know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9_007_199_254_740_991_u64))]
    pub min_messages_warning: Option<u64>,
    /// As many messages in the stream, or fewer, are critical.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9_007_199_254_740_991_u64))]
    pub min_messages_critical: Option<u64>,
}

/// Thresholds of a consumer; what is left out has the alerts' default, or is not judged.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerMonitoring {
    /// As many messages not delivered yet, or more, are worth a warning. NATS' tools do not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9_007_199_254_740_991_u64))]
    pub lag_warning: Option<u64>,
    /// As many messages not delivered yet, or more, are critical.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9_007_199_254_740_991_u64))]
    pub lag_critical: Option<u64>,
    /// As many messages delivered and not acknowledged, or more, are critical. Default of the alert: 95 % of maxAckPending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9_007_199_254_740_991_u64))]
    pub ack_pending_critical: Option<u64>,
    /// How long the last delivery may be ago; longer is critical, also where there was nothing to deliver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("must be greater than 0"))]
    pub last_delivery_critical: Option<Duration>,
    /// How long the last acknowledgement may be ago; longer is critical, also where there was nothing to acknowledge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("must be greater than 0"))]
    pub last_ack_critical: Option<Duration>,
    /// Time within which 99 % of the events have to reach their handler. Default of the alert: 30s. NATS' tools do not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("must be greater than 0"))]
    pub delivery_delay: Option<Duration>,
}

/// One threshold that an object sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// The field's name, in snake case.
    pub name: &'static str,
    /// What the alerts compare with.
    pub value: ThresholdValue,
    /// Its key in the metadata, without [`METADATA_PREFIX`]; None where NATS' tools do not know it.
    key: Option<&'static str>,
}

/// What a threshold compares with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThresholdValue {
    /// A number of messages, servers or operations.
    Count(u64),
    /// A time.
    Time(Duration),
}

impl ThresholdValue {
    /// The number, of a time in seconds.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "the schema allows no more than a float holds")]
    pub fn as_f64(self) -> f64 {
        match self {
            Self::Count(count) => count as f64,
            Self::Time(time) => time.0.as_secs_f64(),
        }
    }

    fn text(self) -> String {
        match self {
            Self::Count(count) => count.to_string(),
            Self::Time(time) => time.to_string(),
        }
    }
}

fn count(name: &'static str, key: Option<&'static str>, count: Option<u64>) -> Option<Threshold> {
    Some(Threshold { name, value: ThresholdValue::Count(count?), key })
}

fn time(name: &'static str, key: Option<&'static str>, time: Option<Duration>) -> Option<Threshold> {
    Some(Threshold { name, value: ThresholdValue::Time(time?), key })
}

impl EventStreamSpec {
    /// The thresholds that the object sets; None where it has no `monitoring`.
    #[must_use]
    pub fn thresholds(&self) -> Option<Vec<Threshold>> {
        let StreamMonitoring {
            peers_expected,
            peer_lag_critical,
            peer_seen_critical,
            min_messages_warning,
            min_messages_critical,
        } = self.monitoring.clone()?;
        // NATS' check takes a replicated stream without this key for wrong.
        let peers = peers_expected.or(self.replicas.filter(|replicas| *replicas > 1)).map(u64::from);
        let all = [
            count("peers_expected", Some("peer-expect"), peers),
            count("peer_lag_critical", Some("peer-lag-critical"), peer_lag_critical),
            time("peer_seen_critical", Some("peer-seen-critical"), peer_seen_critical),
            count("min_messages_warning", Some("msgs-warn"), min_messages_warning),
            count("min_messages_critical", Some("msgs-critical"), min_messages_critical),
        ];
        Some(all.into_iter().flatten().collect())
    }
}

impl EventConsumerSpec {
    /// The thresholds that the object sets; None where it has no `monitoring`.
    #[must_use]
    pub fn thresholds(&self) -> Option<Vec<Threshold>> {
        let ConsumerMonitoring {
            lag_warning,
            lag_critical,
            ack_pending_critical,
            last_delivery_critical,
            last_ack_critical,
            delivery_delay,
        } = self.monitoring.clone()?;
        let all = [
            count("lag_warning", None, lag_warning),
            count("lag_critical", Some("unprocessed-critical"), lag_critical),
            count("ack_pending_critical", Some("outstanding-ack-critical"), ack_pending_critical),
            time("last_delivery_critical", Some("last-delivery-critical"), last_delivery_critical),
            time("last_ack_critical", Some("last-ack-critical"), last_ack_critical),
            time("delivery_delay", None, delivery_delay),
        ];
        Some(all.into_iter().flatten().collect())
    }
}

/// The metadata by which NATS' tools judge; `nats audit` looks only at what is enabled.
#[must_use]
pub fn metadata(thresholds: &[Threshold]) -> BTreeMap<String, String> {
    let known = thresholds.iter().filter_map(|threshold| Some((threshold.key?, threshold.value.text())));
    let enabled = ("enabled", "true".to_owned());
    known.chain([enabled]).map(|(key, value)| (format!("{METADATA_PREFIX}{key}"), value)).collect()
}
