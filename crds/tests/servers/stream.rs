//! Which EventStreams the API server takes.

use crate::support::Manifests;
use serde_json::json;

#[tokio::test]
async fn subjects_are_tokens_between_dots_with_wildcards_in_their_places() {
    let streams = Manifests::of_streams().await;
    for subject in ["orders", "orders.*.*", "orders.>", "$KV.carts.>", "Ä.1-2_3"] {
        streams.accepts(&format!("spec: {{subjects: [{subject}]}}")).await;
    }
    for subject in
        ["'>'", "'*'", "'*.placed'", "$JS.EVENT.>", "$SYS.ACCOUNT.>", "_INBOX.>", "_R_.>", "$NRG.a"]
    {
        streams.rejects(&format!("spec: {{subjects: [{subject}]}}"), "begin with a word of your own").await;
    }
    for subject in [
        "''",
        "'a b'",
        "a..b",
        ".a",
        "a.",
        "a.>.b",
        "'>.a'",
        "a.b*",
        "a*.b",
        "a>",
        "'a.>b'",
        "\"a\\tb\"",
        "\"a\\nb\"",
    ] {
        streams.rejects(&format!("spec: {{subjects: [{subject}]}}"), "spec.subjects[0] in body should").await;
    }
    let long = "a".repeat(256);
    streams.rejects(&format!("spec: {{subjects: [{long}]}}"), "spec.subjects[0]: Too long").await;
}

#[tokio::test]
async fn there_are_1_to_256_different_subjects() {
    let streams = Manifests::of_streams().await;
    let subjects = |count: u32| (0..count).map(|n| format!("s{n}")).collect::<Vec<_>>().join(",");
    streams.rejects("spec: {}", "spec.subjects: Required value").await;
    streams.rejects("{}", "spec: Required value").await;
    streams.rejects("spec: {subjects: []}", "spec.subjects in body should have at least 1 items").await;
    streams.rejects("spec: {subjects: [a, b, a]}", "spec.subjects[2]: Duplicate value").await;
    streams.accepts(&format!("spec: {{subjects: [{}]}}", subjects(256))).await;
    streams.rejects(&format!("spec: {{subjects: [{}]}}", subjects(257)), "spec.subjects: Too many").await;
}

#[tokio::test]
async fn a_stream_has_a_name_that_jetstream_takes() {
    let streams = Manifests::of_streams().await;
    for name in ["orders", "ORDERS", "KV_carts", "a-1"] {
        streams.accepts(&format!("spec: {{subjects: [a], streamName: {name}}}")).await;
    }
    for name in ["''", "a.b", "'a b'", "'a*'", "'a>'", "a/b", "a\\b", &"a".repeat(256)] {
        streams.rejects(&format!("spec: {{subjects: [a], streamName: {name}}}"), "spec.streamName").await;
    }
}

#[tokio::test]
async fn an_object_with_dots_in_its_name_has_to_name_its_stream() {
    let streams = Manifests::of_streams().await;
    streams.rejects("{metadata: {name: a.b}, spec: {subjects: [a]}}", "set spec.streamName").await;
    streams.accepts("{metadata: {name: a.b}, spec: {subjects: [a], streamName: ab}}").await;
}

#[tokio::test]
async fn the_streams_name_never_changes_but_may_be_written_down() {
    let streams = Manifests::of_streams().await;
    let never = "spec.streamName never changes once the stream exists";
    let (unset, own, other) = (
        "{metadata: {name: NAME}, spec: {subjects: [a]}}",
        "{metadata: {name: NAME}, spec: {subjects: [a], streamName: NAME}}",
        "{metadata: {name: NAME}, spec: {subjects: [a], streamName: other}}",
    );
    let named = |text: &str, name: &str| text.replace("NAME", name);
    streams.accepts_change(&named(unset, "n1"), &named(own, "n1")).await;
    streams.accepts_change(&named(own, "n2"), &named(unset, "n2")).await;
    streams.rejects_change_once_there(&named(unset, "n3"), &named(other, "n3"), never).await;
    streams.rejects_change_once_there(&named(other, "n4"), &named(unset, "n4"), never).await;
    streams.rejects_change_once_there(&named(other, "n5"), &named(own, "n5"), never).await;
}

#[tokio::test]
async fn storage_never_changes_whether_it_is_set_or_the_profiles() {
    let streams = Manifests::of_streams().await;
    let with = |rest: &str| format!("spec: {{subjects: [a], {rest}}}");
    let same = [
        ("", "storage: File"),
        ("storage: File", "profile: Critical"),
        ("profile: Standard", "profile: Critical"),
        ("storage: Memory", "profile: Ephemeral"),
        ("profile: Ephemeral", "storage: Memory, profile: Standard"),
        ("profile: Standard", "storage: File, profile: Ephemeral"),
    ];
    for (from, to) in same {
        streams.accepts_change(&with(from), &with(to)).await;
    }
    let other = [
        ("", "storage: Memory"),
        ("storage: Memory", ""),
        ("storage: File", "storage: Memory"),
        ("", "profile: Ephemeral"),
        ("profile: Ephemeral", ""),
        ("profile: Ephemeral", "profile: Critical"),
        ("profile: Ephemeral, storage: File", "profile: Ephemeral"),
    ];
    for (from, to) in other {
        streams
            .rejects_change_once_there(&with(from), &with(to), "cannot change once the stream exists")
            .await;
    }
}

#[tokio::test]
async fn retention_changes_between_limits_and_interest_only() {
    let streams = Manifests::of_streams().await;
    let with = |rest: &str| format!("spec: {{subjects: [a], {rest}}}");
    for (from, to) in [
        ("", "retention: Limits"),
        ("", "retention: Interest"),
        ("retention: Interest", "retention: Limits"),
        ("retention: Interest", ""),
        ("retention: WorkQueue", "retention: WorkQueue, replicas: 3"),
    ] {
        streams.accepts_change(&with(from), &with(to)).await;
    }
    for (from, to) in [
        ("", "retention: WorkQueue"),
        ("retention: Limits", "retention: WorkQueue"),
        ("retention: Interest", "retention: WorkQueue"),
        ("retention: WorkQueue", "retention: Limits"),
        ("retention: WorkQueue", "retention: Interest"),
        ("retention: WorkQueue", ""),
    ] {
        streams
            .rejects_change_once_there(
                &with(from),
                &with(to),
                "spec.retention cannot change to or from WorkQueue",
            )
            .await;
    }
}

#[tokio::test]
async fn messages_with_an_age_of_their_own_are_allowed_once_and_for_all() {
    let streams = Manifests::of_streams().await;
    let with = |rest: &str| format!("spec: {{subjects: [a], {rest}}}");
    let (on, off) = ("allowMessageTtl: true", "allowMessageTtl: false");
    for (from, to) in [("", on), (off, on), ("", off), (off, ""), (on, on)] {
        streams.accepts_change(&with(from), &with(to)).await;
    }
    for to in ["", off, "allowMessageTtl: null"] {
        streams.rejects_change(&with(on), &with(to), "spec.allowMessageTtl cannot be switched off").await;
    }
    for field in ["allowMessageTtl", "allowDirect"] {
        let error = format!("spec.{field} in body must be of type boolean");
        streams.rejects(&with(&format!("{field}: 'true'")), &error).await;
    }
}

#[tokio::test]
async fn everything_else_of_a_stream_changes() {
    let streams = Manifests::of_streams().await;
    let from = "spec: {subjects: [a], replicas: 1, discard: Old, duplicateWindow: 1m, limits: {maxAge: 1h}, allowDirect: true, deletionPolicy: Retain}";
    let to = "spec: {subjects: [b, c.>], replicas: 3, discard: New, duplicateWindow: 5m, limits: {maxBytes: 1Gi}, allowMessageTtl: true, deletionPolicy: Delete}";
    streams.accepts_change(from, to).await;
    streams.accepts_change(to, "spec: {subjects: [a], allowMessageTtl: true}").await;
    streams.accepts_change(from, "spec: {subjects: [a]}").await;
}

#[tokio::test]
async fn a_choice_is_one_of_its_words() {
    let streams = Manifests::of_streams().await;
    let choices = [
        ("profile", "Critical, Standard, Ephemeral"),
        ("retention", "Limits, Interest, WorkQueue"),
        ("storage", "File, Memory"),
        ("discard", "Old, New"),
        ("deletionPolicy", "Retain, Delete"),
    ];
    for (field, words) in choices {
        for word in words.split(", ") {
            streams.accepts(&format!("spec: {{subjects: [a], {field}: {word}}}")).await;
        }
        let lower = words.split(", ").next().unwrap().to_lowercase();
        let error = format!("spec.{field}: Unsupported value: \"{lower}\"");
        streams.rejects(&format!("spec: {{subjects: [a], {field}: {lower}}}"), &error).await;
    }
}

#[tokio::test]
async fn durations_are_whole_numbers_with_units() {
    let streams = Manifests::of_streams().await;
    let age = |text: &str| format!("spec: {{subjects: [a], limits: {{maxAge: {text}}}}}");
    for good in ["100ms", "30s", "5m", "12h", "1d", "2w", "5y", "1h30m", "1d12h"] {
        streams.accepts(&age(good)).await;
        streams.accepts(&format!("spec: {{subjects: [a], duplicateWindow: {good}}}")).await;
    }
    for bad in ["''", "'30'", "1.5h", "-1s", "30 s", "1month", "5min", "1us", "s", "1h30", &"1s".repeat(17)] {
        streams.rejects(&age(bad), "spec.limits.maxAge").await;
        streams
            .rejects(&format!("spec: {{subjects: [a], duplicateWindow: {bad}}}"), "spec.duplicateWindow")
            .await;
    }
    streams.rejects(&age("30"), "spec.limits.maxAge in body must be of type string").await;
}

#[tokio::test]
async fn sizes_are_bytes_or_whole_numbers_with_units() {
    let streams = Manifests::of_streams().await;
    for field in ["maxBytes", "maxMessageSize"] {
        let size = |text: &str| format!("spec: {{subjects: [a], limits: {{{field}: {text}}}}}");
        for good in
            ["1048576", "'1048576'", "1Ki", "100Mi", "100Gi", "2Ti", "1Pi", "500k", "10M", "2G", "1T", "1P"]
        {
            streams.accepts(&size(good)).await;
        }
        let path = format!("spec.limits.{field}");
        for bad in [
            "''",
            "Gi",
            "1.5Gi",
            "1.5",
            "-1",
            "'-1'",
            "1GiB",
            "1KB",
            "1 Gi",
            "'1e9'",
            "true",
            &"1".repeat(21),
        ] {
            streams.rejects(&size(bad), &path).await;
        }
    }
}

#[tokio::test]
async fn counts_have_bounds() {
    let streams = Manifests::of_streams().await;
    for replicas in 1..=5 {
        streams.accepts(&format!("spec: {{subjects: [a], replicas: {replicas}}}")).await;
    }
    for replicas in ["0", "6", "-1", "1.5", "'3'"] {
        streams.rejects(&format!("spec: {{subjects: [a], replicas: {replicas}}}"), "spec.replicas").await;
    }
    for field in ["maxMessages", "maxMessagesPerSubject"] {
        for count in ["1", "9007199254740991"] {
            streams.accepts(&format!("spec: {{subjects: [a], limits: {{{field}: {count}}}}}")).await;
        }
        for count in ["0", "-1", "9007199254740993", "'1'", "1.5"] {
            let error = format!("spec.limits.{field}");
            streams.rejects(&format!("spec: {{subjects: [a], limits: {{{field}: {count}}}}}"), &error).await;
        }
    }
}

#[tokio::test]
async fn a_field_that_a_stream_does_not_have_is_named() {
    let streams = Manifests::of_streams().await;
    streams.rejects("spec: {subjects: [a], maxAge: 1h}", "unknown field \"spec.maxAge\"").await;
    streams
        .rejects("spec: {subjects: [a], limits: {maxMsgs: 1}}", "unknown field \"spec.limits.maxMsgs\"")
        .await;
    streams
        .rejects(
            "spec: {subjects: [a.*], partitions: {keyTokens: [2], number: 4}}",
            "unknown field \"spec.partitions.number\"",
        )
        .await;
}

#[tokio::test]
async fn a_streams_field_without_a_value_is_as_if_it_were_not_there() {
    let streams = Manifests::of_streams().await;
    for field in [
        "streamName",
        "profile",
        "retention",
        "storage",
        "replicas",
        "limits",
        "duplicateWindow",
        "allowDirect",
        "allowMessageTtl",
    ] {
        let spec = streams.accepts(&format!("spec: {{subjects: [a], {field}: null}}")).await;
        assert_eq!(spec, json!({"subjects": ["a"]}), "{field}");
    }
    let spec = streams.accepts("spec: {subjects: [a], limits: {maxBytes: null}}").await;
    assert_eq!(spec, json!({"subjects": ["a"], "limits": {}}));
    streams.rejects("spec: {subjects: null}", "spec.subjects: Required value").await;
    streams.rejects("spec: {subjects: [null]}", "spec.subjects[0]").await;
    let (memory, none) = ("spec: {subjects: [a], storage: Memory}", "spec: {subjects: [a], storage: null}");
    streams.rejects_change_once_there(memory, none, "cannot change once the stream exists").await;
}

#[tokio::test]
async fn a_threshold_of_a_stream_is_more_than_nothing() {
    let streams = Manifests::of_streams().await;
    let with = |rest: &str| format!("spec: {{subjects: [a], monitoring: {{{rest}}}}}");
    streams.accepts(&with("")).await;
    let all = "peersExpected: 3, peerLagCritical: 1, peerSeenCritical: 5s, minMessagesWarning: 2, minMessagesCritical: 1";
    streams.accepts(&with(all)).await;
    for wrong in [
        "peersExpected: 0",
        "peersExpected: 6",
        "peerLagCritical: 0",
        "peerSeenCritical: 0s",
        "minMessagesCritical: 0",
    ] {
        let field = wrong.split(':').next().unwrap();
        streams.rejects(&with(wrong), &format!("spec.monitoring.{field}")).await;
    }
}

#[tokio::test]
async fn partitions_need_one_subject_of_fixed_depth_and_key_tokens_that_are_wildcards_of_it() {
    let streams = Manifests::of_streams().await;
    let with = |subjects: &str, partitions: &str| {
        format!("spec: {{subjects: [{subjects}], partitions: {partitions}}}")
    };
    for (subjects, partitions) in [
        ("orders.*.*", "{keyTokens: [2]}"),
        ("orders.*.*", "{count: 1, keyTokens: [3, 2]}"),
        ("orders.*", "{count: 1024, keyTokens: [2]}"),
    ] {
        streams.accepts(&with(subjects, partitions)).await;
    }
    let (one, wildcard) =
        ("spec.partitions needs exactly one subject, without a '>'", "must be the number of a token");
    for (subjects, partitions, words) in [
        ("orders.*, users.*", "{keyTokens: [2]}", one),
        ("orders.*.>", "{keyTokens: [2]}", one),
        ("orders.*.*", "{keyTokens: [1]}", wildcard),
        ("orders.*.*", "{keyTokens: [2, 4]}", wildcard),
        ("orders.*.*", "{keyTokens: [2, 2]}", "each token is there once"),
        ("orders.*.*", "{keyTokens: [0]}", "spec.partitions.keyTokens[0]"),
        ("orders.*.*", "{keyTokens: []}", "spec.partitions.keyTokens in body should have at least 1 items"),
        ("orders.*.*", "{count: 8}", "spec.partitions.keyTokens: Required value"),
        ("orders.*.*", "{count: 0, keyTokens: [2]}", "spec.partitions.count"),
        ("orders.*.*", "{count: 1025, keyTokens: [2]}", "spec.partitions.count"),
    ] {
        streams.rejects(&with(subjects, partitions), words).await;
    }
}

#[tokio::test]
async fn of_partitions_only_the_count_changes_once_the_stream_has_them_and_to_a_multiple() {
    let streams = Manifests::of_streams().await;
    let with = |subject: &str, rest: &str| format!("spec: {{subjects: [{subject}]{rest}}}");
    let (from, never) = (
        with("orders.*.*", ", partitions: {keyTokens: [2, 3]}"),
        "cannot change once the stream has partitions",
    );
    streams
        .accepts_change(
            &from,
            &with("orders.*.*", ", partitions: {count: 8, keyTokens: [2, 3]}, replicas: 3"),
        )
        .await;
    for count in [16, 48] {
        let to = format!(", partitions: {{count: {count}, keyTokens: [2, 3]}}");
        streams.accepts_change(&from, &with("orders.*.*", &to)).await;
    }
    // Whether the stream has messages that are in none, the operator finds.
    streams.accepts_change(&with("orders.*.*", ""), &from).await;
    for to in [
        with("orders.*.*", ""),
        with("orders.*.*", ", partitions: {count: 12, keyTokens: [2, 3]}"),
        with("orders.*.*", ", partitions: {count: 4, keyTokens: [2, 3]}"),
        with("orders.*.*", ", retention: Interest, partitions: {count: 16, keyTokens: [2, 3]}"),
        with("orders.*.*", ", partitions: {keyTokens: [3, 2]}"),
        with("orders.*.*.*", ", partitions: {keyTokens: [2, 3]}"),
    ] {
        streams.rejects_change_once_there(&from, &to, never).await;
    }
}
