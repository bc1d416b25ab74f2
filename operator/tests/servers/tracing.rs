//! The spans of reconciles, as a collector gets them.

use std::time::Duration;

use jetwright_crds::EventStream;
use jetwright_testing::{NatsServer, Process, Span, TraceCollector, await_until, binary};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::world::{SOON, World};

/// The span that kube puts around a reconcile.
const ROOT: &str = "reconciling object";

/// A world whose operator sends its traces to a collector.
async fn traced() -> (World, TraceCollector) {
    let collector = TraceCollector::start().await;
    let program = Process::builder(binary("jetwright-operator")).envs(collector.environment());
    let world = World::of(program, NatsServer::start().await).await;
    (world, collector)
}

/// The spans of the reconciles of an object with a request, each with those within it.
fn reconciles(spans: &[Span], name: &str) -> Vec<(Span, Vec<Span>)> {
    let of_object = spans.iter().filter(|span| span.name == "reconcile" && span.attribute("name") == name);
    let with_parts = of_object.map(|reconcile| {
        let parts = spans.iter().filter(|span| span.parent_span_id == reconcile.span_id);
        (reconcile.clone(), parts.cloned().collect())
    });
    with_parts.collect()
}

fn in_short(span: &Span) -> (&str, &str, Option<&str>) {
    (&span.name, span.attribute("outcome"), span.error.as_deref())
}

#[tokio::test]
async fn a_reconcile_has_a_span_of_each_request_and_one_that_changes_nothing_has_none() {
    let (world, collector) = traced().await;
    world.stream("orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
    world.await_ready::<EventStream>("orders").await;
    // The root ends last, and may come with a later request than the others.
    let (root, reconcile, parts) = await_until("the spans of the creation", SOON, || async {
        let spans = collector.spans();
        let all = reconciles(&spans, "orders");
        let created =
            |(_, parts): &&(Span, Vec<Span>)| parts.iter().any(|part| part.name == "request STREAM.CREATE");
        let (reconcile, parts) = all.iter().find(created).cloned().ok_or_else(|| format!("{all:?}"))?;
        let root = spans.into_iter().find(|span| span.span_id == reconcile.parent_span_id);
        root.map(|root| (root, reconcile, parts)).ok_or_else(|| "no root yet".to_owned())
    })
    .await;
    assert_eq!((root.name.as_str(), root.parent_span_id.as_str(), &reconcile.error), (ROOT, "", &None));
    let shown: Vec<_> = parts.iter().map(in_short).collect();
    let expected = [
        // Whether it exists.
        ("request STREAM.INFO", "not_found", None),
        ("request STREAM.CREATE", "ok", None),
        ("patch eventstreams/status", "ok", None),
    ];
    assert_eq!(shown, expected);
    assert!(
        parts.iter().all(|part| part.kind == "client" && part.trace_id == reconcile.trace_id),
        "{parts:?}"
    );
    assert_eq!(parts[1].attribute("subject"), "$JS.API.STREAM.CREATE.orders");
    assert_eq!(parts[1].attribute("messaging.system"), "nats");
    let written = &parts[2];
    assert_eq!(written.attribute("http.response.status_code"), "200");
    let object = [written.attribute("k8s.namespace.name"), written.attribute("name")];
    assert_eq!(object, [world.namespace.name(), "orders"]);

    // What is asked now and then beside the reconciles, as whether JetStream is there, has no trace of its own.
    let roots = |spans: Vec<Span>| -> Vec<String> {
        let others = spans.into_iter().filter(|span| span.parent_span_id.is_empty() && span.name != ROOT);
        others.map(|span| span.name).collect()
    };
    assert_eq!(roots(collector.spans()), [""; 0]);

    let before = reconciles(&collector.spans(), "orders").len();
    let finalizers = json!({"metadata": {"finalizers": ["jetwright.dev/cleanup", "other/one"]}});
    world.streams().patch("orders", &PatchParams::default(), &Patch::Merge(finalizers)).await.unwrap();
    let (_, parts) = await_until("the span of a reconcile that changes nothing", SOON, || async {
        let all = reconciles(&collector.spans(), "orders");
        all.get(before).cloned().ok_or_else(|| format!("{} reconciles", all.len()))
    })
    .await;
    // Parts end before the whole, and come with it or earlier.
    assert_eq!(parts, []);
    world
        .streams()
        .patch("orders", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"finalizers": null}})))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_request_that_is_refused_or_not_answered_is_an_error_in_its_reconcile() {
    let (world, collector) = traced().await;
    let foreign = async_nats::jetstream::stream::Config {
        name: "foreign".to_owned(),
        subjects: vec!["orders.*".to_owned()],
        ..Default::default()
    };
    world.jetstream.create_stream(foreign).await.unwrap();
    world.stream("orders", "subjects: [orders.*]").await;
    let refused = await_until("the span of a refusal", SOON, || async {
        let spans = collector.spans();
        spans.into_iter().find(|span| span.error.is_some()).ok_or("none is an error")
    })
    .await;
    assert_eq!(
        (refused.name.as_str(), refused.attribute("error.type")),
        ("request STREAM.CREATE", "refused")
    );
    assert!(refused.error.as_ref().unwrap().contains("subjects overlap"), "{refused:?}");

    world.nats.process().signal("STOP");
    world.stream("payments", "subjects: [payments.*]").await;
    let unanswered =
        await_until("the span of a request that is not answered", Duration::from_secs(30), || async {
            // The refused object is tried again meanwhile, and may be in the middle of another request.
            let of_payments = |span: &Span| span.attribute("subject").ends_with(".payments");
            let spans = collector.spans().into_iter().filter(of_payments);
            let mut unanswered = spans.filter(|span| span.attribute("error.type") == "unanswered");
            unanswered.next().ok_or("there is none")
        })
        .await;
    assert_eq!(unanswered.name, "request STREAM.INFO");
    world.nats.process().signal("CONT");
}
