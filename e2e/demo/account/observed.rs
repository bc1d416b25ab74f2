//! Where one sees what happens, with Prometheus and Jaeger: an order that fails on purpose, its trace and its logs, and the alert of the event
//! that nobody could read.

use anyhow::Result;
use jetwright_e2e::{
    jaeger,
    prometheus::{self, DIVISOR, Labels},
};

use super::{heading, logs, shop::Shop, table::table, trouble::until};
use crate::{
    manifests::SHOP,
    state::{Home, Observers},
};

/// What becomes of a rejected order, the last span of its trace.
const LAST: &str = "process orders.*.rejected";
/// The last service that an order comes to.
const GATEWAY: &str = "payment-simulator";
/// The alert of an event that became a dead letter.
const ALERT: &str = "DeadLettersArriving";

/// Prints where Prometheus and Jaeger are, makes an order fail, and shows where one sees it.
///
/// # Errors
///
/// When they do not see it.
pub async fn tell(home: &Home, observers: &Observers, shop: &Shop, user: &str) -> Result<()> {
    heading("Prometheus and Jaeger look on:");
    println!("  Prometheus  {}", observers.prometheus);
    println!("  Jaeger      {}", observers.jaeger);
    println!(
        "  All durations of the alerts' rules are divided by {DIVISOR}: what takes an hour takes a minute here."
    );
    failed_order(home, observers, shop, user).await?;
    alert(observers).await
}

async fn failed_order(home: &Home, observers: &Observers, shop: &Shop, user: &str) -> Result<()> {
    let order = shop.place(user, "raffle-ticket", 1, "").await?;
    let rejection = shop.ended(&order).await?["rejection"].take();
    let text = |key: &str| rejection[key].as_str().unwrap_or_default().to_owned();
    heading(&format!("An order fails on purpose: {order}, at {}: {}", text("step"), text("reason")));
    let jaeger = jaeger::Client::new(&observers.jaeger);
    let id = until("the order's trace in a log", async || Ok(logs::trace(home, &order))).await?;
    let trace = until("the order's trace in Jaeger", async || Ok(jaeger.trace(&id).await?.filter(has_all)));
    println!("{}", trace.await?.drawn());
    println!("  Jaeger shows it at    {}", jaeger.page(&id));
    println!("  and as JSON at        {}", jaeger.api(&id));
    println!("  the pods' logs of it  grep -h {id} {}/{SHOP}_*", home.path("logs").display());
    Ok(())
}

/// Whether everything has come: programs send their spans every few seconds, the gateway apart from the service.
fn has_all(trace: &jaeger::Trace) -> bool {
    let has = |is: &dyn Fn(&jaeger::Span) -> bool| trace.spans.iter().any(is);
    trace.is_whole()
        && has(&jaeger::Span::failed)
        && has(&|span| span.name == LAST)
        && has(&|span| span.service == GATEWAY)
}

async fn alert(observers: &Observers) -> Result<()> {
    let prometheus = prometheus::Client::new(&observers.prometheus);
    let firing = until("the alert of the dead letter", async || {
        let firing = prometheus.firing().await?;
        Ok(firing
            .iter()
            .any(|labels| labels.get("alertname").is_some_and(|name| name == ALERT))
            .then_some(firing))
    });
    let firing = firing.await?;
    heading("Alerts that fire now, as for the event that nobody could read:");
    let label = |labels: &Labels, name: &str| labels.get(name).cloned().unwrap_or_default();
    let row = |labels: &Labels| {
        let name = label(labels, "alertname");
        let of = ["event_consumer", "event_stream", "name", "pod"].map(|key| label(labels, key));
        let of = of.into_iter().find(|of| !of.is_empty()).unwrap_or_default();
        [name.clone(), label(labels, "severity"), of, format!("docs/runbooks/{name}.md")]
    };
    let rows: Vec<_> = firing.iter().map(row).collect();
    print!("{}", table(["ALERT", "SEVERITY", "OF", "RUNBOOK"], &rows));
    println!("\n  all of them           {}", prometheus.page("alerts").await);
    let graph = prometheus.page("graph").await;
    println!(
        "  dead letters by query {graph}?g0.expr=jetwright%3Aconsumer_dead_letters&g0.tab=0&g0.range_input=5m"
    );
    Ok(())
}
