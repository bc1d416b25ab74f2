//! A stream by its resource: made, edited, deleted, and put right.

use std::time::Duration;

use jetwright_crds::{EventStream, stream::Drift};
use jetwright_e2e::cluster::{Cluster, SOON, stream};
use jetwright_testing::await_until;

fn manifest(name: &str, max_age: &str, deletion_policy: &str) -> String {
    stream(
        name,
        &format!("profile: Standard, limits: {{maxAge: {max_age}}}, deletionPolicy: {deletion_policy}"),
    )
}

#[tokio::test]
async fn a_stream_follows_its_resource_from_kubectl_apply_to_kubectl_delete() {
    let cluster = Cluster::connect().await;
    let namespace = cluster.namespace("streams").await;
    let (at, name) = (namespace.name(), namespace.name().replace("streams", "edited"));
    let nats = cluster.nats(0).await;

    cluster.apply(at, &manifest(&name, "1h", "Delete")).await;
    cluster.await_condition::<EventStream>((at, &name), ("Ready", "True"), SOON).await;
    let made = nats.stream(&name).await.cached_info().config.clone();
    assert_eq!((made.max_age, made.num_replicas), (Duration::from_hours(1), 3));

    cluster.apply(at, &manifest(&name, "2h", "Delete")).await;
    cluster.await_condition::<EventStream>((at, &name), ("Ready", "True"), SOON).await;
    assert_eq!(nats.stream(&name).await.cached_info().config.max_age, Duration::from_hours(2));

    cluster.kubectl(&format!("delete eventstream {name} --namespace {at} --timeout=60s")).await;
    let gone = nats.jetstream.get_stream(&name).await.unwrap_err().to_string();
    assert!(gone.contains("10059"), "{gone}");
}

#[tokio::test]
async fn a_stream_that_is_kept_outlives_its_resource_with_what_is_in_it() {
    let cluster = Cluster::connect().await;
    let namespace = cluster.namespace("streams").await;
    let (at, name) = (namespace.name(), namespace.name().replace("streams", "kept"));
    let nats = cluster.nats(0).await;
    cluster.apply(at, &manifest(&name, "1h", "Retain")).await;
    cluster.await_condition::<EventStream>((at, &name), ("Ready", "True"), SOON).await;

    cluster.kubectl(&format!("delete eventstream {name} --namespace {at} --timeout=60s")).await;
    nats.stream(&name).await;
    cluster.apply(at, &manifest(&name, "1h", "Delete")).await;
    cluster.await_condition::<EventStream>((at, &name), ("Ready", "True"), SOON).await;
    cluster.kubectl(&format!("delete eventstream {name} --namespace {at} --timeout=60s")).await;
}

#[tokio::test]
async fn a_stream_deleted_or_edited_in_nats_is_put_right_and_the_repair_is_told() {
    let cluster = Cluster::connect().await;
    let namespace = cluster.namespace("streams").await;
    let (at, name) = (namespace.name(), namespace.name().replace("streams", "drifting"));
    let nats = cluster.nats(0).await;
    cluster.apply(at, &manifest(&name, "1h", "Delete")).await;
    cluster.await_condition::<EventStream>((at, &name), ("Ready", "True"), SOON).await;

    let mut edited = nats.stream(&name).await.cached_info().config.clone();
    edited.max_age = Duration::from_mins(30);
    nats.jetstream.update_stream(edited).await.unwrap();
    await_until("the edit is undone", SOON, async || {
        let age = nats.stream(&name).await.cached_info().config.max_age;
        if age == Duration::from_hours(1) { Ok(()) } else { Err(format!("{age:?}")) }
    })
    .await;

    let edit = await_repair(&cluster, at, &name, None).await;
    assert_eq!(edit.fields, ["max_age"]);

    nats.jetstream.delete_stream(&name).await.unwrap();
    let deletion = await_repair(&cluster, at, &name, Some(&edit)).await;
    assert_eq!(deletion.fields, ["*"]);
    nats.stream(&name).await;
    cluster.kubectl(&format!("delete eventstream {name} --namespace {at} --timeout=60s")).await;
}

/// Waits until the status tells of a repair that is not this one.
async fn await_repair(cluster: &Cluster, namespace: &str, name: &str, before: Option<&Drift>) -> Drift {
    await_until("a repair is told in the status", SOON, async || {
        let found =
            cluster.api::<EventStream>(namespace).get(name).await.map_err(|error| error.to_string())?;
        let drift = found.status.as_ref().and_then(|status| status.drift.clone());
        drift.filter(|drift| Some(drift) != before).ok_or_else(|| format!("{:?}", found.status))
    })
    .await
}
