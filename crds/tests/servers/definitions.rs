//! The definitions themselves: applied, explained and listed.

use crate::support::{Objects, apply_definitions, defined};

#[tokio::test]
async fn plain_kubectl_apply_takes_the_definitions_and_changes_nothing_the_second_time() {
    let (kubernetes, said) = defined().await;
    for name in ["eventstreams.jetwright.dev", "eventconsumers.jetwright.dev"] {
        assert!(said.contains(&format!("{name} created")), "{said}");
        let again = apply_definitions(kubernetes);
        assert!(again.contains(&format!("{name} unchanged")), "{again}");
    }
}

#[tokio::test]
async fn kubectl_explain_shows_what_a_field_means() {
    let (kubernetes, _) = defined().await;
    let explain = |field: &str| kubernetes.kubectl(["explain", field]).unwrap();
    let age = explain("eventstream.spec.limits.maxAge");
    assert!(age.contains("Longest time that a message is kept"), "{age}");
    let wait = explain("eventconsumer.spec.ackWait");
    assert!(wait.contains("How long JetStream waits for an acknowledgement"), "{wait}");
    let profile = explain("es.spec.profile");
    assert!(profile.contains("Standard: File, 3 replicas, 7 days"), "{profile}");
}

#[tokio::test]
async fn kubectl_get_shows_what_one_looks_for_first() {
    let objects = Objects::applied(OBJECTS).await;
    objects.write_status("es/orders", STREAM_STATUS);
    objects.write_status("ec/fulfilment", CONSUMER_STATUS);
    let get = |kind: &str| objects.kubectl(&["get", kind]).unwrap();

    let words = |text: &str| -> Vec<Vec<String>> {
        text.lines().map(|line| line.split_whitespace().map(ToOwned::to_owned).collect()).collect()
    };
    let streams = words(&get("es"));
    assert_eq!(streams[0], ["NAME", "READY", "REASON", "MESSAGES", "BYTES", "CONSUMERS", "AGE"]);
    assert_eq!(streams[1][..6], ["orders", "True", "Reconciled", "7", "700", "2"]);
    let consumers = words(&get("ec"));
    assert_eq!(consumers[0], ["NAME", "READY", "REASON", "LAG", "PENDING", "REPLICAS", "AGE"]);
    assert_eq!(consumers[1][..6], ["fulfilment", "False", "RollingOut", "12", "3", "2"]);
    let all = get("jetwright");
    assert!(all.contains("eventstream.jetwright.dev/orders"), "{all}");
    assert!(all.contains("eventconsumer.jetwright.dev/fulfilment"), "{all}");
}

const OBJECTS: &str = "
apiVersion: jetwright.dev/v1alpha1
kind: EventStream
metadata: {name: orders}
spec: {subjects: [orders.*.*]}
---
apiVersion: jetwright.dev/v1alpha1
kind: EventConsumer
metadata: {name: fulfilment}
spec: {streamRef: {name: orders}}
";

const STREAM_STATUS: &str = r#"{"status": {
    "conditions": [{"type": "Ready", "status": "True", "reason": "Reconciled", "message": "", "lastTransitionTime": "2026-11-21T10:00:00Z"}],
    "stream": {"name": "orders", "replicas": 1, "messages": 7, "bytes": 700, "firstSequence": 1, "lastSequence": 7, "consumers": 2}
}}"#;

const CONSUMER_STATUS: &str = r#"{"status": {
    "conditions": [{"type": "Ready", "status": "False", "reason": "RollingOut", "message": "", "lastTransitionTime": "2026-11-21T10:00:00Z"}],
    "lag": 12, "ackPending": 3, "replicas": 2
}}"#;
