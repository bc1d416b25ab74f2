//! Leadership against clocks that are wrong: the times in a Lease are those of other machines.

use std::time::Duration;

use jetwright_testing::{NatsServer, Process, await_until, free_port};
use k8s_openapi::{
    api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::world::{arguments, control_plane, operator};

/// How long a Lease holds after its last change.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// Time until a candidate notices, and until a busy machine has come to it.
const NOTICE: Duration = Duration::from_secs(7);

/// What a holder writes whose clock is so many seconds ahead, or behind.
fn renewed(seconds: i64) -> Value {
    let now = Timestamp::now();
    let time = MicroTime(Timestamp::from_microsecond(now.as_microsecond() + seconds * 1_000_000).unwrap());
    json!({"spec": {"holderIdentity": "other", "leaseDurationSeconds": 3600, "renewTime": time}})
}

fn leases(client: Client) -> Api<Lease> {
    Api::namespaced(client, "default")
}

async fn hold(api: &Api<Lease>, name: &str, seconds: i64) {
    let mut lease = renewed(seconds);
    lease["metadata"] = json!({"name": name});
    api.create(&PostParams::default(), &serde_json::from_value(lease).unwrap()).await.unwrap();
}

async fn patch(api: &Api<Lease>, name: &str, change: Value) {
    api.patch(name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
}

async fn holder(api: &Api<Lease>, name: &str) -> String {
    api.get(name).await.unwrap().spec.unwrap().holder_identity.unwrap()
}

/// An operator that waits for a Lease.
async fn candidate(nats: &NatsServer, namespace: &str, lease: &str) -> Process {
    let mut arguments = arguments(nats.url(), namespace, free_port());
    arguments.extend(["--leader-elect=true", "--leader-elect-namespace=default"].map(str::to_owned));
    arguments.extend([format!("--lease-name={lease}"), "--leader-elect-identity=candidate".to_owned()]);
    let candidate = operator(control_plane().await, &arguments);
    candidate.await_log("waiting for leadership", LEASE_DURATION).await;
    candidate
}

#[tokio::test]
async fn a_dead_holder_delays_nobody_for_longer_than_its_lease_however_far_ahead_its_clock_was() {
    let nats = NatsServer::start().await;
    let namespace = control_plane().await.namespace("leader").await;
    let api = leases(namespace.client());
    let ahead = [("ahead-90s", 90), ("ahead-1h", 3600), ("behind-1h", -3600)];
    let mut candidates = Vec::new();
    for (name, seconds) in ahead {
        hold(&api, name, seconds).await;
        candidates.push(candidate(&nats, namespace.name(), name).await);
    }
    // The last sign of life, which the candidates have seen others before.
    sleep(Duration::from_secs(5)).await;
    for (name, seconds) in ahead {
        patch(&api, name, renewed(seconds)).await;
    }
    let died = Instant::now();
    while died.elapsed() + Duration::from_secs(1) < LEASE_DURATION {
        for (name, _) in ahead {
            assert_eq!(holder(&api, name).await, "other", "{name} after {:?}", died.elapsed());
            // Who writes a label renews nothing.
            patch(
                &api,
                name,
                json!({"metadata": {"labels": {"at": died.elapsed().as_millis().to_string()}}}),
            )
            .await;
        }
        sleep(Duration::from_secs(1)).await;
    }
    let left = (LEASE_DURATION + NOTICE).saturating_sub(died.elapsed());
    await_until("every candidate leads", left, || async {
        for (name, _) in ahead {
            let holder = holder(&api, name).await;
            if holder != "candidate" {
                return Err(format!("{holder} holds {name}"));
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_living_holder_is_not_robbed_however_far_behind_its_clock_is() {
    let nats = NatsServer::start().await;
    let namespace = control_plane().await.namespace("leader").await;
    let api = leases(namespace.client());
    // One is 60 s behind, and one goes backwards.
    let clocks = [("behind-60s", 0), ("backwards", -2)];
    let clock = |speed: i64, elapsed: i64| speed * elapsed - 60;
    let mut candidates = Vec::new();
    for (name, speed) in clocks {
        hold(&api, name, clock(speed, 0)).await;
        candidates.push(candidate(&nats, namespace.name(), name).await);
    }
    let start = Instant::now();
    while start.elapsed() < LEASE_DURATION * 2 {
        for (name, speed) in clocks {
            assert_eq!(holder(&api, name).await, "other", "{name} after {:?}", start.elapsed());
            let elapsed = i64::try_from(start.elapsed().as_secs()).unwrap();
            patch(&api, name, renewed(clock(speed, elapsed))).await;
        }
        sleep(Duration::from_secs(2)).await;
    }
    for candidate in candidates {
        assert!(!candidate.log().contains("\"reconciling\""), "{}", candidate.log());
    }
}
