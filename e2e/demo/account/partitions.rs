//! The order service is scaled while orders flow, and its partitions change hands. Asks NATS who holds which.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::kv;
use futures::{StreamExt, TryStreamExt, stream};
use jetwright_e2e::metrics::sum;
use serde_json::Value;
use tokio::sync::watch;

use super::{
    Kubectl, heading,
    shop::Shop,
    table::table,
    trouble::{administrator, confirmed_once, pods, until},
};
use crate::state::Parts;

/// Pods of the order service in the manifests, and how many it is scaled to.
const FEW: usize = 2;
const MANY: usize = 4;
/// Orders under way at once.
const AT_ONCE: usize = 4;
/// What the keys of those who hold partitions of the orders begin with, in the bucket by which programs agree.
const HELD: &str = "held.orders.order-fulfilment.";
/// Metrics of the pods: attempts whose order was checked, and those that were out of order.
const CHECKED: &str = "jetwright_order_checked_total";
const VIOLATIONS: &str = "jetwright_order_violations_total";

/// The pod that handles each partition.
type Holders = BTreeMap<u32, String>;

/// Scales the order service up and down while orders are placed, and tells who held which partition.
///
/// # Errors
///
/// When a partition does not change hands, an order is lost or done twice, or events of one order were handled out of order.
pub async fn handed_over(kubectl: &Kubectl, shop: &Shop, user: &str, parts: &Parts) -> Result<()> {
    heading(&format!(
        "Orders are placed while the order service is scaled from {FEW} pods to {MANY} and back; a pod handles the orders of its partitions alone:"
    ));
    let bucket = administrator(parts).await?.get_key_value("jetwright").await?;
    let (enough, is_enough) = watch::channel(false);
    let scaled = async {
        let scaled = scale_up_and_down(kubectl, &bucket).await;
        // Also where it failed.
        enough.send_replace(true);
        scaled
    };
    let (orders, scaled) = tokio::join!(place_until(shop, user, &is_enough), scaled);
    let (orders, (rows, seen)) = (orders?, scaled?);
    print!("{}", table(["PARTITION", "TWO PODS", "FOUR PODS", "TWO AGAIN"], &rows));
    confirmed_once(shop, parts, &orders).await?;
    let checked: u64 = seen.values().map(|pod| pod.checked).sum();
    let violations: u64 = seen.values().map(|pod| pod.violations).sum();
    println!("  all {} orders are confirmed, each once", orders.len());
    println!("  the pods checked the order of {checked} attempts: {violations} violations");
    let desired = "--output=jsonpath={.status.autoscaling.desiredReplicas}";
    let desired = kubectl.shop(&["get", "eventconsumer", "order-fulfilment", desired])?;
    println!("  autoscaling only looks on here, and would have {desired} pods");
    ensure!(
        checked > 0 && violations == 0,
        "events of one order were handled out of order, or nobody looked"
    );
    Ok(())
}

/// Places orders until there are enough; their ids.
async fn place_until(shop: &Shop, user: &str, is_enough: &watch::Receiver<bool>) -> Result<Vec<String>> {
    let run = uuid::Uuid::new_v4();
    let placing = stream::iter(0..).take_while(|_| std::future::ready(!*is_enough.borrow())).map(|number| {
        let key = format!("{run}-{number}");
        async move { shop.place(user, "mug", 1, &key).await }
    });
    placing.buffer_unordered(AT_ONCE).try_collect().await
}

/// What a pod saw of the order of events.
#[derive(Clone, Copy)]
struct Checks {
    checked: u64,
    violations: u64,
}

/// Who held each partition before, between and after, and what the pods saw, those that were removed included.
async fn scale_up_and_down(
    kubectl: &Kubectl,
    bucket: &kv::Store,
) -> Result<(Vec<[String; 4]>, BTreeMap<String, Checks>)> {
    let before = shared_by(kubectl, bucket, FEW).await?;
    scale(kubectl, MANY)?;
    let between = shared_by(kubectl, bucket, MANY).await?;
    let mut seen = seen_by_pods(kubectl).await?;
    scale(kubectl, FEW)?;
    let after = shared_by(kubectl, bucket, FEW).await?;
    // Those that stay have seen more by now.
    seen.extend(seen_by_pods(kubectl).await?);
    let pod = |holders: &Holders, partition: &u32| holders.get(partition).cloned().unwrap_or_default();
    let row = |partition: &u32| {
        let [before, between, after] = [&before, &between, &after].map(|holders| pod(holders, partition));
        [partition.to_string(), before, between, after]
    };
    Ok((before.keys().map(row).collect(), seen))
}

fn scale(kubectl: &Kubectl, replicas: usize) -> Result<()> {
    kubectl.shop(&["scale", "eventconsumer", "order-fulfilment", &format!("--replicas={replicas}")])?;
    Ok(())
}

/// The holders, once there are so many pods, and each holds as many partitions as the others.
async fn shared_by(kubectl: &Kubectl, bucket: &kv::Store, count: usize) -> Result<Holders> {
    until(&format!("the partitions with {count} pods"), async || {
        let pods: BTreeSet<_> = pods(kubectl)?.into_iter().collect();
        let holders = holders(bucket).await?;
        let mut shares: BTreeMap<_, usize> = pods.iter().map(|pod| (pod, 0)).collect();
        for pod in holders.values() {
            match shares.get_mut(pod) {
                Some(share) => *share += 1,
                None => return Ok(None),
            }
        }
        let is_even = shares.len() == count && shares.values().all(|share| share * count == holders.len());
        Ok((is_even && !holders.is_empty()).then_some(holders))
    })
    .await
}

/// The pod of each partition that is held, by what the pods wrote.
async fn holders(bucket: &kv::Store) -> Result<Holders> {
    let keys: Vec<String> = bucket.keys().await?.try_collect().await?;
    let mut holders = Holders::new();
    for key in &keys {
        let Some(partition) = key.strip_prefix(HELD).and_then(|number| number.parse().ok()) else { continue };
        let Some(held) = value(bucket, key).await? else { continue };
        if held["state"] == "free" {
            continue;
        }
        let member = format!("member.{}", held["member"].as_str().context("a member")?);
        let pod = value(bucket, &member).await?.and_then(|member| Some(member["pod"].as_str()?.to_owned()));
        holders.insert(partition, pod.unwrap_or_default());
    }
    Ok(holders)
}

async fn value(bucket: &kv::Store, key: &str) -> Result<Option<Value>> {
    Ok(bucket.get(key).await?.map(|value| serde_json::from_slice(&value)).transpose()?)
}

/// What each pod that there is saw.
async fn seen_by_pods(kubectl: &Kubectl) -> Result<BTreeMap<String, Checks>> {
    let mut seen = BTreeMap::new();
    for pod in pods(kubectl)? {
        let address = kubectl.shop(&["get", "pod", &pod, "--output=jsonpath={.status.podIP}"])?;
        let metrics = reqwest::get(format!("http://{address}:9090/metrics")).await?.text().await?;
        let checks = Checks { checked: sum(&metrics, CHECKED), violations: sum(&metrics, VIOLATIONS) };
        seen.insert(pod, checks);
    }
    Ok(seen)
}
