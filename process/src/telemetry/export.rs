//! The export of traces by OTLP over HTTP. A failure does not affect the program, and is logged once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_otlp::SpanExporter as Otlp;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use super::{problem, variable};
use crate::configuration::Problem;

const ENDPOINT_VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOL_VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];

/// The exporter that the environment configures, if any.
pub(super) fn from_env(problems: &mut Vec<Problem>) -> Option<Reporting<Otlp>> {
    let off = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || variable("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
    let endpoint = ENDPOINT_VARIABLES.iter().find_map(|name| Some((*name, variable(name)?)));
    let (Some((name, endpoint)), false) = (endpoint, off) else { return None };
    for name in PROTOCOL_VARIABLES {
        if let Some(protocol) = variable(name).filter(|protocol| protocol != "http/protobuf") {
            problems.push(problem(name, &format!("found {protocol:?}"), "expected \"http/protobuf\""));
        }
    }
    if !endpoint.starts_with("http://") {
        let expected = "expected the http:// address of a collector (in the cluster, without TLS)";
        problems.push(problem(name, &format!("found {endpoint:?}"), expected));
        return None;
    }
    match Otlp::builder().with_http().build() {
        Ok(exporter) => Some(Reporting { exporter, failing: AtomicBool::new(false) }),
        Err(error) => {
            problems.push(problem(name, &format!("found {endpoint:?}"), &error.to_string()));
            None
        }
    }
}

/// An exporter that logs when its exports begin to fail and when they succeed again, and nothing in between.
#[derive(Debug)]
pub(super) struct Reporting<E> {
    exporter: E,
    failing: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Reporting<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.exporter.export(batch).await;
        let failed_before = self.failing.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) if !failed_before => {
                tracing::warn!(%error, "failed to export traces, dropping them");
            }
            Ok(()) if failed_before => tracing::info!("resumed exporting traces"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use opentelemetry_sdk::error::OTelSdkError;

    use super::super::log::tests::Output;
    use super::*;

    /// Answers with these results, one after another.
    #[derive(Debug)]
    struct Scripted(Mutex<Vec<OTelSdkResult>>);

    impl SpanExporter for Scripted {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().unwrap().remove(0)
        }
    }

    #[tokio::test]
    async fn a_collector_that_is_unreachable_is_logged_once_and_its_return_too() {
        let failure = || Err(OTelSdkError::InternalFailure("connection refused".to_owned()));
        let results = vec![Ok(()), failure(), failure(), failure(), Ok(()), Ok(()), failure()];
        let exports = results.len();
        let exporter = Reporting { exporter: Scripted(Mutex::new(results)), failing: AtomicBool::new(false) };
        let output = Output::default();
        let _guard = output.subscribe();
        for _ in 0..exports {
            let _ = exporter.export(Vec::new()).await;
        }
        let messages: Vec<_> = output.lines().iter().map(|line| line["message"].clone()).collect();
        let failing = "failed to export traces, dropping them";
        assert_eq!(messages, [failing, "resumed exporting traces", failing]);
    }
}
