//! Orders that fail, as Jaeger shows them, and the way from a metric to a trace.

use std::time::Duration;

use anyhow::{Context, ensure};
use jetwright_e2e::jaeger::{Span, Trace};
use jetwright_testing::await_until;

use super::world::World;
use crate::shop::NOBODY;

/// Spans come in batches every five seconds. The rest is for what runs beside, and holds these up while it waits for kubectl.
const BOUND: Duration = Duration::from_mins(2);
/// Steps of the fulfilment, in their order.
const STEPS: [&str; 3] = ["user_validation", "inventory_reservation", "payment_authorization"];

/// An order that was rejected.
pub struct Rejected {
    id: String,
    step: String,
    reason: String,
}

/// For each step, an order that fails at it.
pub async fn failing_orders(world: &World, user: &str) -> Vec<Rejected> {
    let mut orders = Vec::new();
    for (user, sku, quantity) in [(NOBODY, "mug", 1), (user, "poster", 1000), (user, "raffle-ticket", 1)] {
        let id = world.place(user, sku, quantity).await;
        let rejection = world.ended(&id).await["rejection"].take();
        let text = |key: &str| rejection[key].as_str().unwrap().to_owned();
        orders.push(Rejected { step: text("step"), reason: text("reason"), id });
    }
    orders
}

pub async fn each_failing_step_is_the_only_error_of_one_trace(world: &World, orders: &[Rejected]) {
    assert_eq!(orders.iter().map(|order| order.step.as_str()).collect::<Vec<_>>(), STEPS);
    for (place, order) in orders.iter().enumerate() {
        let id = await_until("a line about the order", BOUND, async || trace_in_logs(world, order)).await;
        await_until(&format!("the trace of order {}", order.id), BOUND, async || {
            shown(world, order, &id, &STEPS[..=place]).await
        })
        .await;
    }
}

/// The one trace of all lines about the order in the pods' logs. With its id one finds every line about the order, also the one of its end with
/// the reason.
fn trace_in_logs(world: &World, order: &Rejected) -> Result<String, String> {
    let lines = world.logged();
    let subject = format!("orders.{}.", order.id);
    let about = lines.iter().filter(|line| {
        let subjects = [&line["subject"], &line["span"]["subject"]];
        subjects.iter().any(|found| found.as_str().is_some_and(|found| found.starts_with(&subject)))
    });
    let mut traces: Vec<_> = about.map(|line| line["trace_id"].as_str().unwrap_or_default()).collect();
    traces.sort_unstable();
    traces.dedup();
    let [trace] = traces[..] else { return Err(format!("{traces:?}")) };
    let mut of_trace = lines.iter().filter(|line| line["trace_id"] == trace).map(ToString::to_string);
    let told = of_trace.any(|line| line.contains("ended order") && line.contains(&order.reason));
    if told { Ok(trace.to_owned()) } else { Err(format!("no line of {trace} says why")) }
}

/// Whether Jaeger has the trace, from the request to what became of the rejection, and in it exactly these steps, of which the last is the only error.
async fn shown(world: &World, order: &Rejected, id: &str, steps: &[&str]) -> anyhow::Result<()> {
    let trace = world.jaeger.trace(id).await?.context("nothing came yet")?;
    let drawn = trace.drawn();
    ensure!(trace.is_whole(), "{drawn}");
    let names: Vec<_> = trace.spans.iter().map(|span| span.name.as_str()).collect();
    for name in
        ["POST /orders", "publish orders.*.placed", "process orders.*.placed", "process orders.*.rejected"]
    {
        ensure!(names.contains(&name), "no {name} in\n{drawn}");
    }
    let taken: Vec<_> = names.iter().filter(|name| STEPS.contains(name)).copied().collect();
    ensure!(taken == steps, "{taken:?} in\n{drawn}");
    let failed: Vec<_> = trace.failed().map(|span| (span.name.as_str(), span.reason())).collect();
    ensure!(failed == [(order.step.as_str(), order.reason.as_str())], "{failed:?} failed in\n{drawn}");
    let asks_gateway = steps.len() == STEPS.len();
    let answered = trace.spans.iter().any(|span| span.service == "payment-simulator");
    ensure!(answered || !asks_gateway, "the gateway is not in\n{drawn}");
    Ok(())
}

/// The demo shows how the operator puts right what another changed in the stream of orders.
pub async fn a_repair_is_a_request_to_nats_within_its_reconcile(world: &World) {
    let request = "request STREAM.UPDATE";
    await_until("the trace of a repair", BOUND, async || {
        let traces = world.jaeger.traces_with("jetwright-operator", request).await?;
        let is_repair = |trace: &Trace| {
            let sent = trace.spans.iter().find(|span| span.name == request);
            let reconcile = sent.and_then(|sent| trace.parent_of(sent));
            let of =
                |span: &Span, key: &str, value: &str| span.tags.get(key).is_some_and(|found| found == value);
            reconcile.is_some_and(|span| {
                span.name == "reconcile" && of(span, "controller", "stream") && of(span, "name", "orders")
            })
        };
        let drawn: Vec<_> = traces.iter().map(Trace::drawn).collect();
        ensure!(traces.iter().any(is_repair), "{drawn:?}");
        anyhow::Ok(())
    })
    .await;
}

pub async fn a_slow_bucket_leads_to_a_trace(world: &World) {
    for histogram in ["jetwright_process_duration_seconds_bucket", "jetwright_delivery_delay_seconds_bucket"]
    {
        await_until(&format!("an exemplar of {histogram} with its trace"), BOUND, async || {
            let exemplars = world.prometheus.exemplars(histogram).await?;
            let id = exemplars.last().and_then(|labels| labels.get("trace_id")).context("no exemplar yet")?;
            world.jaeger.trace(id).await?.context("nothing came yet")
        })
        .await;
    }
}
