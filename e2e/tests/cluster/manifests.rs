//! Manifests that are wrong: each is told with the field and what to do about it, by kubectl where the API server can know, else in the
//! conditions.

use jetwright_crds::{EventConsumer, EventStream};
use jetwright_e2e::cluster::{Cluster, SOON};

/// The beginning of a manifest.
const HEAD: &str = "apiVersion: jetwright.dev/v1alpha1";

fn stream(name: &str, spec: &str) -> String {
    format!("{{{HEAD}, kind: EventStream, metadata: {{name: {name}}}, spec: {{{spec}}}}}")
}

fn consumer(name: &str, spec: &str) -> String {
    format!("{{{HEAD}, kind: EventConsumer, metadata: {{name: {name}}}, spec: {{{spec}}}}}")
}

#[tokio::test]
async fn what_the_api_server_can_know_is_refused_at_once_with_field_and_remedy() {
    let cluster = Cluster::connect().await;
    let namespace = cluster.namespace("wrong").await;
    let stream = |spec| stream("wrong", spec);
    let consumer = |spec| consumer("wrong", spec);
    let wrong = [
        (
            stream("profile: Important, subjects: [a.*]"),
            ["spec.profile", "\"Critical\", \"Standard\", \"Ephemeral\""],
        ),
        (stream("subjects: [\"*.placed\"]"), ["spec.subjects", "begin with a word of your own"]),
        (stream("subjects: [a.*], limits: {maxAge: 1 day}"), ["spec.limits.maxAge", "should match '^"]),
        (stream("subjects: [a.*], limit: {maxAge: 1d}"), ["spec.limit", "unknown field"]),
        (stream("streamName: a.b, subjects: [a.*]"), ["spec.streamName", "should match '^"]),
        (
            consumer(
                "streamRef: {name: a}, workloadRef: {name: b}, workload: {template: {spec: {containers: [{name: c}]}}}",
            ),
            ["spec.workload and spec.workloadRef", "exclude each other"],
        ),
        (consumer("filterSubjects: [a.*]"), ["spec.streamRef", "Required value"]),
        (
            consumer("streamRef: {name: a}, retry: {maxAttempts: 0}"),
            ["spec.retry.maxAttempts", "greater than or equal to 1"],
        ),
        (
            consumer("streamRef: {name: a}, workload: {template: {spec: {}}}"),
            ["spec.workload.template.spec.containers", "Required value"],
        ),
    ];
    for (manifest, told) in wrong {
        let refusal = cluster.try_apply(namespace.name(), &manifest).await.refusal();
        for part in told {
            assert!(refusal.contains(part), "{part:?} is not told of {manifest}:\n{refusal}");
        }
    }
}

#[tokio::test]
async fn what_cannot_change_is_refused_with_what_to_do_instead() {
    let cluster = Cluster::connect().await;
    let namespace = cluster.namespace("immutable").await;
    let (at, name) = (namespace.name(), namespace.name());
    cluster
        .apply(at, &stream(name, &format!("subjects: [{name}.*], storage: Memory, deletionPolicy: Delete")))
        .await;
    cluster.await_condition::<EventStream>((at, name), ("Ready", "True"), SOON).await;
    let changed = stream(name, &format!("subjects: [{name}.*], storage: File, deletionPolicy: Delete"));
    let refusal = cluster.try_apply(at, &changed).await.refusal();
    assert!(refusal.contains("spec.storage") && refusal.contains("make another EventStream"), "{refusal}");
    cluster.kubectl(&format!("delete eventstream {name} --namespace {at} --timeout=60s")).await;
}

#[tokio::test]
async fn what_only_the_operator_can_know_is_told_in_the_conditions() {
    let cluster = Cluster::connect().await;
    let namespace = cluster.namespace("stalled").await;
    let at = namespace.name();

    cluster
        .apply(
            at,
            &stream("retention", &format!("subjects: [{at}.a], limits: {{maxAge: 1m}}, duplicateWindow: 2m")),
        )
        .await;
    let invalid = cluster.await_condition::<EventStream>((at, "retention"), ("Stalled", "True"), SOON).await;
    assert!(
        invalid.message.contains("spec.duplicateWindow")
            && invalid.message.contains("shorten it, or raise spec.limits.maxAge"),
        "{invalid:?}"
    );

    cluster.apply(at, &consumer("nowhere", "streamRef: {name: nowhere}")).await;
    let missing = cluster.await_condition::<EventConsumer>((at, "nowhere"), ("Stalled", "True"), SOON).await;
    assert_eq!(missing.reason, "NotFound");
    assert!(
        missing.message.contains("spec.streamRef") && missing.message.contains("create it"),
        "{missing:?}"
    );

    // The stream of another namespace's object.
    cluster.apply(at, &stream("orders", &format!("subjects: [{at}.b]"))).await;
    let taken = cluster.await_condition::<EventStream>((at, "orders"), ("Stalled", "True"), SOON).await;
    assert_eq!(taken.reason, "NameConflict");
    assert!(
        taken.message.contains("shop/orders") && taken.message.contains("a different spec.streamName"),
        "{taken:?}"
    );

    // Subjects that another stream keeps: only JetStream itself knows.
    cluster.apply(at, &stream(at, "subjects: [orders.*.placed]")).await;
    let overlap = cluster.await_condition::<EventStream>((at, at), ("Stalled", "True"), SOON).await;
    assert!(
        overlap.message.contains("subjects overlap")
            && overlap.message.contains("other subjects in spec.subjects"),
        "{overlap:?}"
    );
    cluster.kubectl(&format!("delete eventstream,eventconsumer --all --namespace {at} --timeout=60s")).await;
}
