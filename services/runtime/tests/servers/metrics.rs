//! What a service exports of its handlers.

use std::time::Instant;

use jetwright_runtime::HandlerError;
use opentelemetry::trace::TraceContextExt as _;
use tracing::Instrument as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::support::{Bench, Scripted, count};

fn number(metrics: &str, series: &str) -> f64 {
    let found = metrics.lines().find_map(|line| line.strip_prefix(series));
    found.ok_or_else(|| format!("no {series} in {metrics}")).unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn attempts_are_counted_by_number_and_the_delay_from_the_store_to_the_first_leads_to_its_trace() {
    let bench = Bench::start().await;
    let publisher = bench.publisher().await;
    let span = tracing::info_span!("placing");
    let trace = span.context().span().span_context().trace_id().to_string();
    let stored = Instant::now();
    bench.publish(&publisher, 0..1).instrument(span).await;
    let waited = stored.elapsed();
    let handler = Scripted::new(|_, attempt| async move {
        if attempt == 1 { Err(HandlerError::transient("busy")) } else { Ok(()) }
    });
    let service = bench.run(&handler).await;
    bench.await_drained().await;
    let metrics = service.metrics();
    let attempts = |outcome: &str, attempt: &str| {
        let labels = format!("event_consumer=\"numbers\",outcome=\"{outcome}\",attempt=\"{attempt}\"");
        count(&metrics, &format!("jetwright_attempts_total{{{labels}}} "))
    };
    assert_eq!((attempts("retried", "1"), attempts("done", "2"), attempts("done", "1")), (1, 1, 0));
    let delays = |what: &str| {
        number(&metrics, &format!("jetwright_delivery_delay_seconds_{what}{{event_consumer=\"numbers\"}} "))
    };
    assert!(delays("sum") > 0.0 && delays("sum") < (stored.elapsed() + waited).as_secs_f64(), "{metrics}");
    assert!((delays("count") - 1.0).abs() < 0.1, "{metrics}");
    for histogram in ["jetwright_delivery_delay_seconds", "jetwright_process_duration_seconds"] {
        let leads = metrics
            .lines()
            .any(|line| line.starts_with(histogram) && line.contains(&format!("# {{trace_id=\"{trace}\"}}")));
        assert!(leads, "{histogram} has no exemplar of {trace}: {metrics}");
    }
    let end = service.stop().await;
    assert!(number(&end, "jetwright_held_bytes ").abs() < 0.1, "{end}");
}
