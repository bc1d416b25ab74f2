//! What goes wrong on purpose: a pod's program is killed while orders flow, somebody changes a stream past the operator, and an event cannot be handled.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use async_nats::{
    ConnectOptions,
    jetstream::{self, stream::Config},
};
use futures::{StreamExt, TryStreamExt, stream};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::sleep;

use super::{Kubectl, heading, shop::Shop};
use crate::{
    serve::{ADMINISTRATOR, PASSWORD},
    state::{Home, Parts},
};

/// Orders that flow while a program is killed, and after how many it is.
const ORDERS: usize = 20;
const KILLED_AFTER: usize = 5;
/// Orders under way at once.
const AT_ONCE: usize = 4;
/// How long it takes at most until something is put right.
const BOUND: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);
const WORKLOAD: &str = "--selector=jetwright.dev/workload=order-fulfilment";

pub async fn administrator(parts: &Parts) -> Result<jetstream::Context> {
    let options = ConnectOptions::with_user_and_password(ADMINISTRATOR.to_owned(), PASSWORD.to_owned());
    let servers: Vec<_> = parts.nats.split(',').collect();
    let client = options.connect(servers).await.with_context(|| format!("NATS at {}", parts.nats))?;
    Ok(jetstream::new(client))
}

/// Asks until there is an answer.
///
/// # Errors
///
/// When there is none for half a minute, with what was awaited.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + BOUND;
    loop {
        let answer = ask().await;
        match answer {
            Ok(Some(answer)) => return Ok(answer),
            Err(error) if Instant::now() > end => {
                return Err(error.context(format!("awaited {what} for {BOUND:?}")));
            }
            Ok(None) if Instant::now() > end => bail!("awaited {what} for {BOUND:?}"),
            _ => sleep(PAUSE).await,
        }
    }
}

/// The pods of the order service that nobody has told to end.
pub fn pods(kubectl: &Kubectl) -> Result<Vec<String>> {
    names(&kubectl.shop(&["get", "pods", WORKLOAD, "--output=json"])?)
}

/// Kills the program of one of the order service's pods, without a word to it, while orders are placed.
pub async fn program_killed(
    home: &Home,
    kubectl: &Kubectl,
    shop: &Shop,
    user: &str,
    parts: &Parts,
) -> Result<()> {
    let killed = pods(kubectl)?.into_iter().next().context("no pod of the order service")?;
    heading(&format!(
        "{ORDERS} orders are placed; after {KILLED_AFTER} of them the program of pod {killed} is killed:"
    ));
    let run = uuid::Uuid::new_v4();
    let placing = stream::iter(0..ORDERS).map(|number| {
        let key = format!("{run}-{number}");
        async move { shop.place(user, "notebook", 1, &key).await }
    });
    let mut placed = placing.buffer_unordered(AT_ONCE);
    let mut orders = Vec::new();
    while let Some(order) = placed.try_next().await? {
        orders.push(order);
        if orders.len() == KILLED_AFTER {
            home.process_of(&killed).context("no process of the pod")?.signal(Signal::KILL);
        }
    }
    let [confirmed, confirmations, payments] = confirmed_once(shop, parts, &orders).await?;
    println!(
        "  {confirmed} of {ORDERS} are confirmed; {confirmations} were confirmed once, {payments} were paid once"
    );
    let restarts = "--output=jsonpath={.status.containerStatuses[0].restartCount}";
    let restarts = until("the program's next start", async || {
        let restarts = kubectl.shop(&["get", "pod", &killed, restarts])?;
        Ok((restarts != "0").then_some(restarts))
    });
    println!("  the node started the program again; restarts of the pod: {}", restarts.await?);
    Ok(())
}

/// How many of these orders are confirmed, how many were confirmed once, and how many were paid once.
///
/// # Errors
///
/// When it is not all of them.
pub async fn confirmed_once(shop: &Shop, parts: &Parts, orders: &[String]) -> Result<[usize; 3]> {
    let mut confirmed = 0;
    for order in orders {
        let ended = shop.ended(order).await?;
        confirmed += usize::from(ended["state"] == "confirmed");
    }
    let jetstream = administrator(parts).await?;
    let confirmations = once(&jetstream, "orders", "confirmed", orders).await?;
    let payments = once(&jetstream, "payments", "authorized", orders).await?;
    let counts = [confirmed, confirmations, payments];
    ensure!(
        counts == [orders.len(); 3],
        "not every one of {} orders was confirmed once: {counts:?}",
        orders.len()
    );
    Ok(counts)
}

/// The names of the pods in a list that nobody has told to end.
fn names(list: &str) -> Result<Vec<String>> {
    let list: Value = serde_json::from_str(list)?;
    let pods = list["items"].as_array().into_iter().flatten().map(|pod| &pod["metadata"]);
    let live = pods.filter(|metadata| metadata["deletionTimestamp"].is_null());
    Ok(live.filter_map(|metadata| metadata["name"].as_str()).map(ToOwned::to_owned).collect())
}

/// How many of these orders have exactly one event of this name. A stored subject may have the number of a partition behind the name.
async fn once(jetstream: &jetstream::Context, stream: &str, event: &str, orders: &[String]) -> Result<usize> {
    let mut found = jetstream.get_stream(stream).await?.info_with_subjects(format!("{stream}.>")).await?;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    while let Some((subject, count)) = found.try_next().await? {
        let mut tokens = subject.split('.').skip(1);
        if let (Some(order), Some(name)) = (tokens.next(), tokens.next())
            && name == event
        {
            *counts.entry(order.to_owned()).or_default() += count;
        }
    }
    Ok(orders.iter().filter(|order| counts.get(*order) == Some(&1)).count())
}

/// Changes a stream in NATS, past Kubernetes.
pub async fn drift(kubectl: &Kubectl, parts: &Parts) -> Result<()> {
    let jetstream = administrator(parts).await?;
    let config = async || anyhow::Ok(jetstream.get_stream("orders").await?.cached_info().config.clone());
    let declared: Config = until("the stream orders", async || Ok(Some(config().await?))).await?;
    heading("Somebody sets maxMessages of the stream orders to 1000 in NATS, past Kubernetes:");
    let changed = Config { max_messages: 1000, ..declared.clone() };
    until("the change", async || Ok(Some(jetstream.update_stream(changed.clone()).await?))).await?;
    let began = Instant::now();
    until("the repair", async || Ok((config().await?.max_messages == declared.max_messages).then_some(())))
        .await?;
    println!("  the operator put it back {} ms later; its event:", began.elapsed().as_millis());
    let selector =
        "--field-selector=involvedObject.kind=EventStream,involvedObject.name=orders,reason=DriftRepaired";
    let note = until("the event", async || {
        let notes = kubectl.shop(&["get", "events", selector, "--output=jsonpath={.items[-1:].message}"])?;
        Ok((!notes.is_empty()).then_some(notes))
    });
    println!("  DriftRepaired: {}", note.await?);
    Ok(())
}

/// Stores an event that the order service cannot read.
pub async fn dead_letter(parts: &Parts) -> Result<()> {
    let jetstream = administrator(parts).await?;
    heading("An event that nobody can read is stored among the orders:");
    let subject = format!("orders.{}.placed", uuid::Uuid::new_v4());
    let stored = jetstream.publish(subject.clone(), "no order at all".into()).await?.await?;
    println!("  orders, sequence {}, {subject}", stored.sequence);
    println!("  the order service gives it up, and keeps it as a dead letter in the stream orders-dlq:");
    let wanted = format!("jetwright.dlq.orders.order-fulfilment.{}.*", stored.sequence);
    let letter = until("the dead letter", async || {
        let stream = jetstream.get_stream("orders-dlq").await?;
        Ok(Some(stream.get_last_raw_message_by_subject(&wanted).await?))
    });
    let letter = letter.await?;
    println!("  subject               {}", letter.subject);
    for name in ["Dead-Letter-Reason", "Dead-Letter-Error", "Dead-Letter-Attempts"] {
        let value = letter.headers.get(name).map(ToString::to_string).unwrap_or_default();
        println!("  {name:<20}  {value}");
    }
    Ok(())
}
