//! Which EventConsumers the API server takes.

use crate::support::Manifests;
use serde_json::json;

const TEMPLATE: &str = "template: {spec: {containers: [{name: app, image: app}]}}";

fn with(rest: &str) -> String {
    format!("spec: {{streamRef: {{name: orders}}, {rest}}}")
}

#[tokio::test]
async fn a_consumer_names_its_stream_and_keeps_it() {
    let consumers = Manifests::of_consumers().await;
    consumers.accepts("spec: {streamRef: {name: orders}}").await;
    consumers.rejects("spec: {}", "spec.streamRef: Required value").await;
    consumers.rejects("spec: {streamRef: {}}", "spec.streamRef.name: Required value").await;
    consumers.rejects("spec: {streamRef: {name: ''}}", "spec.streamRef.name").await;
    consumers
        .rejects(&format!("spec: {{streamRef: {{name: {}}}}}", "a".repeat(254)), "spec.streamRef.name")
        .await;
    let (orders, users) = ("spec: {streamRef: {name: orders}}", "spec: {streamRef: {name: users}}");
    consumers.rejects_change(orders, users, "spec.streamRef never changes").await;
}

#[tokio::test]
async fn a_consumer_has_a_name_that_jetstream_takes() {
    let consumers = Manifests::of_consumers().await;
    for name in ["fulfilment", "Fulfilment_2"] {
        consumers.accepts(&with(&format!("consumerName: {name}"))).await;
    }
    for name in ["''", "a.b", "'a b'", "'a*'", "'a>'", "a/b", "a\\b", &"a".repeat(256)] {
        consumers.rejects(&with(&format!("consumerName: {name}")), "spec.consumerName").await;
    }
}

#[tokio::test]
async fn an_object_with_dots_in_its_name_has_to_name_its_consumer() {
    let consumers = Manifests::of_consumers().await;
    let dotted = |rest: &str| format!("{{metadata: {{name: a.b}}, {}}}", with(rest));
    consumers.rejects(&dotted(""), "set spec.consumerName").await;
    consumers.accepts(&dotted("consumerName: ab")).await;
}

#[tokio::test]
async fn the_consumers_name_never_changes_but_may_be_written_down() {
    let consumers = Manifests::of_consumers().await;
    let never = "spec.consumerName never changes";
    let named = |name: &str, rest: &str| format!("{{metadata: {{name: {name}}}, {}}}", with(rest));
    let other = "consumerName: other";
    consumers.accepts_change(&named("n1", ""), &named("n1", "consumerName: n1")).await;
    consumers.accepts_change(&named("n2", "consumerName: n2"), &named("n2", "")).await;
    consumers.rejects_change(&named("n3", ""), &named("n3", other), never).await;
    consumers.rejects_change(&named("n4", other), &named("n4", ""), never).await;
}

#[tokio::test]
async fn where_a_consumer_begins_never_changes_but_may_be_written_down() {
    let consumers = Manifests::of_consumers().await;
    consumers.accepts_change(&with(""), &with("deliverPolicy: All")).await;
    consumers.accepts_change(&with("deliverPolicy: All"), &with("")).await;
    for (from, to) in [
        ("", "deliverPolicy: New"),
        ("deliverPolicy: Last", ""),
        ("deliverPolicy: All", "deliverPolicy: LastPerSubject"),
    ] {
        consumers.rejects_change_once_there(&with(from), &with(to), "spec.deliverPolicy cannot change").await;
    }
}

#[tokio::test]
async fn everything_else_of_a_consumer_changes() {
    let consumers = Manifests::of_consumers().await;
    let from = with(
        "filterSubjects: [a], ackWait: 10s, maxAckPending: 5, retry: {maxAttempts: 3}, deletionPolicy: Retain",
    );
    let to = with(&format!(
        "filterSubjects: [b], ackWait: 1m, maxAckPending: 9, retry: {{maxAttempts: 9}}, workload: {{replicas: 3, {TEMPLATE}}}"
    ));
    consumers.accepts_change(&from, &to).await;
    consumers.accepts_change(&to, &with("workloadRef: {name: other}")).await;
}

#[tokio::test]
async fn filters_are_at_most_64_different_subjects() {
    let consumers = Manifests::of_consumers().await;
    let filters = |count: u32| (0..count).map(|n| format!("s{n}.*")).collect::<Vec<_>>().join(",");
    consumers.accepts(&with("filterSubjects: [orders.*.placed, orders.*.rejected]")).await;
    consumers.accepts(&with("filterSubjects: []")).await;
    consumers.accepts(&with(&format!("filterSubjects: [{}]", filters(64)))).await;
    consumers
        .rejects(&with(&format!("filterSubjects: [{}]", filters(65))), "spec.filterSubjects: Too many")
        .await;
    consumers.rejects(&with("filterSubjects: [a, a]"), "spec.filterSubjects[1]: Duplicate value").await;
    for subject in ["''", "a..b", "a.", "'a.>.b'", "a*", "'a b'"] {
        consumers.rejects(&with(&format!("filterSubjects: [{subject}]")), "spec.filterSubjects[0]").await;
    }
}

#[tokio::test]
async fn a_consumers_choice_is_one_of_its_words() {
    let consumers = Manifests::of_consumers().await;
    for policy in ["All", "Last", "LastPerSubject", "New"] {
        consumers.accepts(&with(&format!("deliverPolicy: {policy}"))).await;
    }
    consumers.rejects(&with("deliverPolicy: all"), "spec.deliverPolicy: Unsupported value").await;
    for policy in ["Retain", "Delete"] {
        consumers.accepts(&with(&format!("deletionPolicy: {policy}"))).await;
    }
    consumers.rejects(&with("deletionPolicy: Keep"), "spec.deletionPolicy: Unsupported value").await;
}

#[tokio::test]
async fn a_consumers_durations_and_counts_have_bounds() {
    let consumers = Manifests::of_consumers().await;
    for good in [
        "ackWait: 1m30s",
        "handlerDeadline: 1s",
        "handlerDeadline: 1m500ms",
        "handlerDeadline: 60m",
        "maxAckPending: 1",
        "maxAckPending: 100000",
        "retry: {}",
        "retry: {maxAttempts: 1}",
        "retry: {maxAttempts: 1000}",
        "retry: {backoff: {initial: 100ms, factor: 1, max: 1h}}",
        "retry: {backoff: {factor: 100}}",
    ] {
        consumers.accepts(&with(good)).await;
    }
    for (bad, field) in [
        ("ackWait: 30", "spec.ackWait"),
        ("ackWait: 1.5s", "spec.ackWait"),
        ("handlerDeadline: 999ms", "spec.handlerDeadline is from 1s to 1h"),
        ("handlerDeadline: 1h1ms", "spec.handlerDeadline is from 1s to 1h"),
        ("handlerDeadline: 1d", "spec.handlerDeadline is from 1s to 1h"),
        ("handlerDeadline: 99999999999999999999h", "spec.handlerDeadline"),
        ("handlerDeadline: 20", "spec.handlerDeadline"),
        ("maxAckPending: 0", "spec.maxAckPending"),
        ("maxAckPending: 100001", "spec.maxAckPending"),
        ("maxAckPending: -1", "spec.maxAckPending"),
        ("maxAckPending: '5'", "spec.maxAckPending"),
        ("retry: {maxAttempts: 0}", "spec.retry.maxAttempts"),
        ("retry: {maxAttempts: 1001}", "spec.retry.maxAttempts"),
        ("retry: {backoff: {initial: 500}}", "spec.retry.backoff.initial"),
        ("retry: {backoff: {initial: '1 s'}}", "spec.retry.backoff.initial"),
        ("retry: {backoff: {max: 1min}}", "spec.retry.backoff.max"),
        ("retry: {backoff: {factor: 0}}", "spec.retry.backoff.factor"),
        ("retry: {backoff: {factor: 101}}", "spec.retry.backoff.factor"),
        ("retry: {backoff: {factor: 1.5}}", "spec.retry.backoff.factor"),
    ] {
        consumers.rejects(&with(bad), field).await;
    }
}

#[tokio::test]
async fn pods_are_declared_or_referred_to_but_not_both() {
    let consumers = Manifests::of_consumers().await;
    consumers.accepts(&with(&format!("workload: {{{TEMPLATE}}}"))).await;
    consumers.accepts(&with("workloadRef: {name: other}")).await;
    let both = with(&format!("workload: {{{TEMPLATE}}}, workloadRef: {{name: other}}"));
    consumers.rejects(&both, "spec.workload and spec.workloadRef exclude each other").await;
    consumers.rejects(&with("workloadRef: {}"), "spec.workloadRef.name: Required value").await;
    consumers.rejects(&with("workloadRef: {name: ''}"), "spec.workloadRef.name").await;
}

#[tokio::test]
async fn dead_letters_are_kept_or_dropped_where_there_are_pods_to_write_them() {
    let consumers = Manifests::of_consumers().await;
    let declared =
        |dead_letter: &str| with(&format!("workload: {{{TEMPLATE}}}, deadLetter: {{{dead_letter}}}"));
    let referred =
        |dead_letter: &str| with(&format!("workloadRef: {{name: other}}, deadLetter: {{{dead_letter}}}"));
    for good in [
        "",
        "policy: Keep",
        "policy: Drop",
        "maxAge: 1s",
        "maxAge: 1w2d",
        "policy: Keep, maxAge: 100y",
        "policy: Keep, maxAge: 0d1s",
    ] {
        consumers.accepts(&declared(good)).await;
        consumers.accepts(&referred(good)).await;
        consumers
            .rejects(&with(&format!("deadLetter: {{{good}}}")), "dead letters are written by pods")
            .await;
    }
    let whole = "spec.deadLetter.maxAge is in whole seconds, without ms, and at least 1s";
    for (bad, words) in [
        ("policy: keep", "spec.deadLetter.policy: Unsupported value"),
        ("policy: Drop, maxAge: 90d", "spec.deadLetter.maxAge: with policy Drop nothing is kept"),
        ("maxAge: 0s", whole),
        ("maxAge: 500ms", whole),
        ("maxAge: 1s500ms", whole),
        ("maxAge: 90", "spec.deadLetter.maxAge"),
        ("maxAge: 1.5d", "spec.deadLetter.maxAge"),
        ("writer: Workload", "unknown field \"spec.deadLetter.writer\""),
    ] {
        consumers.rejects(&declared(bad), words).await;
    }
    consumers.accepts_change(&declared("maxAge: 1d"), &declared("policy: Drop")).await;
    consumers.rejects_change(&declared("policy: Drop"), &with("deadLetter: {}"), "written by pods").await;
}

#[tokio::test]
async fn a_template_has_containers_and_is_otherwise_as_in_a_deployment() {
    let consumers = Manifests::of_consumers().await;
    let template = |text: &str| with(&format!("workload: {{template: {text}}}"));
    consumers
        .accepts(&template(
            "{metadata: {labels: {team: red}}, spec: {serviceAccountName: shop, containers: [{name: app, image: app, env: [{name: A, value: b}]}, {name: helper, image: helper}], fromTheFuture: {x: 1}}}",
        ))
        .await;
    for (bad, words) in [
        ("{}", "spec.workload.template.spec: Required value"),
        ("{spec: {}}", "spec.workload.template.spec.containers: Required value"),
        (
            "{spec: {containers: []}}",
            "spec.workload.template.spec.containers in body should have at least 1 items",
        ),
        ("{spec: {containers: [{image: app}]}}", "containers[0].name: Required value"),
        ("{spec: {containers: [{name: ''}]}}", "containers[0].name"),
        ("{spec: {containers: [{name: a}, {name: a}]}}", "containers[1]: Duplicate value"),
        ("text", "spec.workload.template"),
    ] {
        consumers.rejects(&template(bad), words).await;
    }
    consumers.rejects(&with("workload: {}"), "spec.workload.template: Required value").await;
}

#[tokio::test]
async fn there_are_0_to_1000_pods() {
    let consumers = Manifests::of_consumers().await;
    for replicas in ["0", "1", "1000"] {
        consumers.accepts(&with(&format!("workload: {{replicas: {replicas}, {TEMPLATE}}}"))).await;
    }
    for replicas in ["-1", "1001", "'2'", "1.5"] {
        let manifest = with(&format!("workload: {{replicas: {replicas}, {TEMPLATE}}}"));
        consumers.rejects(&manifest, "spec.workload.replicas").await;
    }
}

#[tokio::test]
async fn a_service_has_1_to_32_different_ports() {
    let consumers = Manifests::of_consumers().await;
    let service = |ports: &str| with(&format!("workload: {{{TEMPLATE}, service: {{ports: [{ports}]}}}}"));
    let ports =
        |count: u32| (1..=count).map(|n| format!("{{name: p{n}, port: {n}}}")).collect::<Vec<_>>().join(",");
    consumers.accepts(&service("{name: http, port: 8080, targetPort: http}")).await;
    consumers.accepts(&service(&ports(32))).await;
    consumers.rejects(&service(&ports(33)), "spec.workload.service.ports: Too many").await;
    consumers.rejects(&service(""), "spec.workload.service.ports in body should have at least 1 items").await;
    consumers
        .rejects(
            &service("{port: 80}, {port: 80, protocol: TCP}"),
            "each number is there once for each protocol",
        )
        .await;
    consumers.rejects(&service("{name: http}"), "spec.workload.service.ports[0].port: Required value").await;
    let both = service("{name: a, port: 53}, {name: b, port: 53, protocol: UDP}");
    consumers.accepts(&both).await;
    let unknown = "spec.workload.service.ports[0].protocol: Unsupported value";
    consumers.rejects(&service("{port: 80, protocol: tcp}"), unknown).await;
}

#[tokio::test]
async fn a_consumer_does_not_use_its_own_pods() {
    let consumers = Manifests::of_consumers().await;
    let itself = "spec.workloadRef names this object itself";
    let refers = |name: &str| {
        format!("{{metadata: {{name: a}}, {}}}", with(&format!("workloadRef: {{name: {name}}}")))
    };
    consumers.accepts(&refers("b")).await;
    consumers.rejects(&refers("a"), itself).await;
    consumers.rejects_change(&refers("b"), &refers("a"), itself).await;
}

#[tokio::test]
async fn credentials_of_pods_name_a_secret() {
    let consumers = Manifests::of_consumers().await;
    let credentials = |text: &str| with(&format!("workload: {{{TEMPLATE}, credentials: {{{text}}}}}"));
    consumers.accepts(&credentials("secretRef: {name: shop-nats}")).await;
    for (bad, words) in [
        ("", "spec.workload.credentials.secretRef: Required value"),
        ("secretRef: {}", "spec.workload.credentials.secretRef.name: Required value"),
        ("secretRef: {name: ''}", "spec.workload.credentials.secretRef.name"),
        (
            "secretRef: {name: a, namespace: b}",
            "unknown field \"spec.workload.credentials.secretRef.namespace\"",
        ),
        ("token: secret", "unknown field \"spec.workload.credentials.token\""),
    ] {
        consumers.rejects(&credentials(bad), words).await;
    }
}

#[tokio::test]
async fn a_consumer_with_pods_has_a_name_that_a_service_may_have() {
    let consumers = Manifests::of_consumers().await;
    let named = |name: &str, rest: &str| format!("{{metadata: {{name: {name}}}, {}}}", with(rest));
    let pods = format!("consumerName: c, workload: {{{TEMPLATE}}}");
    let words = "metadata.name is also the name of a Service";
    consumers.accepts(&named(&"a".repeat(63), &pods)).await;
    consumers.rejects(&named(&"a".repeat(64), &pods), words).await;
    consumers.rejects(&named("1st", &pods), words).await;
    consumers.rejects(&named("a.b", &pods), words).await;
    consumers.accepts(&named("1st", "")).await;
    consumers.accepts(&named(&"a".repeat(64), "")).await;
    consumers
        .rejects_change(&named("2nd", ""), &named("2nd", &format!("workload: {{{TEMPLATE}}}")), words)
        .await;
}

#[tokio::test]
async fn a_field_that_a_consumer_does_not_have_is_named() {
    let consumers = Manifests::of_consumers().await;
    consumers.rejects(&with("filterSubject: a"), "unknown field \"spec.filterSubject\"").await;
    consumers.rejects(&with("retry: {backoff: {min: 1s}}"), "unknown field \"spec.retry.backoff.min\"").await;
    consumers.rejects(&with("autoscaling: {maxReplicas: 3}"), "unknown field \"spec.autoscaling\"").await;
    let misplaced = with(&format!("workload: {{{TEMPLATE}, image: app}}"));
    consumers.rejects(&misplaced, "unknown field \"spec.workload.image\"").await;
}

#[tokio::test]
async fn a_consumers_field_without_a_value_is_as_if_it_were_not_there() {
    let consumers = Manifests::of_consumers().await;
    for field in [
        "consumerName",
        "filterSubjects",
        "deliverPolicy",
        "ackWait",
        "handlerDeadline",
        "retry",
        "deadLetter",
        "workload",
        "workloadRef",
    ] {
        let spec = consumers.accepts(&with(&format!("{field}: null"))).await;
        assert_eq!(spec, json!({"streamRef": {"name": "orders"}}), "{field}");
    }
    consumers.rejects("spec: {streamRef: null}", "spec.streamRef: Required value").await;
    let replicas = consumers.accepts(&with(&format!("workload: {{replicas: null, {TEMPLATE}}}"))).await;
    assert_eq!(replicas["workload"]["replicas"], 1);
    consumers
        .rejects_change_once_there(&with("deliverPolicy: New"), &with("deliverPolicy: null"), "cannot change")
        .await;
}

#[tokio::test]
async fn a_threshold_of_a_consumer_is_more_than_nothing() {
    let consumers = Manifests::of_consumers().await;
    consumers.accepts(&with("monitoring: {}")).await;
    let all = "lagWarning: 1, lagCritical: 2, ackPendingCritical: 3, lastDeliveryCritical: 10m, lastAckCritical: 1h, deliveryDelay: 500ms";
    consumers.accepts(&with(&format!("monitoring: {{{all}}}"))).await;
    for wrong in [
        "lagCritical: 0",
        "lagWarning: -1",
        "lastAckCritical: 0s",
        "deliveryDelay: 0m0s",
        "lastDeliveryCritical: soon",
    ] {
        let field = wrong.split(':').next().unwrap();
        consumers
            .rejects(&with(&format!("monitoring: {{{wrong}}}")), &format!("spec.monitoring.{field}"))
            .await;
    }
}

#[tokio::test]
async fn autoscaling_has_bounds_that_can_hold() {
    let consumers = Manifests::of_consumers().await;
    let scaled = |autoscaling: &str| with(&format!("workload: {{autoscaling: {autoscaling}, {TEMPLATE}}}"));
    for good in [
        "{maxReplicas: 1}",
        "{minReplicas: 0, maxReplicas: 1000, targetDrainTime: 24h, lagPerReplica: 1, scaleDownAfter: 10s, mode: Observe}",
        "{minReplicas: 5, maxReplicas: 5, targetDrainTime: 1m30s, scaleDownAfter: 1h}",
    ] {
        consumers.accepts(&scaled(good)).await;
    }
    let at = "spec.workload.autoscaling";
    for (bad, words) in [
        ("{}", "maxReplicas: Required value"),
        ("{maxReplicas: 0}", "maxReplicas"),
        ("{maxReplicas: 1001}", "maxReplicas"),
        ("{minReplicas: -1, maxReplicas: 3}", "minReplicas"),
        ("{minReplicas: 4, maxReplicas: 3}", "must be at most maxReplicas"),
        ("{maxReplicas: 3, targetDrainTime: 500ms}", "targetDrainTime is from 1s to 24h"),
        ("{maxReplicas: 3, targetDrainTime: 25h}", "targetDrainTime is from 1s to 24h"),
        ("{maxReplicas: 3, scaleDownAfter: 9s}", "scaleDownAfter is from 10s to 24h"),
        ("{maxReplicas: 3, scaleDownAfter: soon}", "scaleDownAfter is from 10s to 24h"),
        ("{maxReplicas: 3, lagPerReplica: 0}", "lagPerReplica"),
        ("{maxReplicas: 3, mode: Never}", "Unsupported value"),
    ] {
        consumers.rejects(&scaled(bad), words).await;
        consumers.rejects(&scaled(bad), at).await;
    }
}

#[tokio::test]
async fn an_order_may_come_and_never_goes_once_the_consumer_exists() {
    let consumers = Manifests::of_consumers().await;
    for (from, to) in [
        ("", "ordering: Unordered"),
        ("ordering: Unordered", ""),
        ("", "ordering: PerKey"),
        ("ordering: Unordered", "ordering: PerKey"),
    ] {
        consumers.accepts_change(&with(from), &with(to)).await;
    }
    let never = "spec.ordering cannot change back to Unordered once the consumer exists";
    for (from, to) in [("ordering: PerKey", ""), ("ordering: PerKey", "ordering: Unordered")] {
        consumers.rejects_change_once_there(&with(from), &with(to), never).await;
    }
    consumers.rejects(&with("ordering: Ordered"), "spec.ordering: Unsupported value").await;
}

#[tokio::test]
async fn with_order_a_consumer_begins_with_all_events_or_with_new_ones() {
    let consumers = Manifests::of_consumers().await;
    for policy in ["All", "New"] {
        consumers.accepts(&with(&format!("ordering: PerKey, deliverPolicy: {policy}"))).await;
    }
    for policy in ["Last", "LastPerSubject"] {
        let manifest = with(&format!("ordering: PerKey, deliverPolicy: {policy}"));
        consumers.rejects(&manifest, "Set spec.deliverPolicy to All or New").await;
        consumers.accepts(&with(&format!("ordering: Unordered, deliverPolicy: {policy}"))).await;
    }
}
