//! The export of traces by OTLP over HTTP. A failure does not affect the program, and is logged once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use reqwest::blocking::Client;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use super::{otlp, problem, variable};
use crate::configuration::Problem;

/// Each of these holds for traces alone, if it is set, else for everything.
const ENDPOINT_VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOL_VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
const COMPRESSION_VARIABLES: [&str; 2] =
    ["OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION"];
const TIMEOUT_VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];
const HEADERS_VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];

/// How long a collector may take, where the environment does not say.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Sends spans to a collector.
#[derive(Debug)]
pub(super) struct Otlp {
    client: Client,
    url: String,
    resource: Resource,
}

impl SpanExporter for Otlp {
    /// Blocks its thread, which is the one that collects the spans.
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let body = otlp::encode(&self.resource, &batch);
        let sent =
            self.client.post(&self.url).header(CONTENT_TYPE, "application/x-protobuf").body(body).send();
        let failed = |error: reqwest::Error| OTelSdkError::InternalFailure(error.to_string());
        sent.and_then(reqwest::blocking::Response::error_for_status).map(drop).map_err(failed)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.clone();
    }
}

/// The exporter that the environment configures, if any.
pub(super) fn from_env(problems: &mut Vec<Problem>) -> Option<Reporting<Otlp>> {
    let off = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || variable("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
    let (Some((name, endpoint)), false) = (first(&ENDPOINT_VARIABLES), off) else { return None };
    let before = problems.len();
    check_supported(problems);
    if !endpoint.starts_with("http://") {
        let expected = "expected the http:// address of a collector (in the cluster, without TLS)";
        problems.push(problem(name, &format!("found {endpoint:?}"), expected));
    }
    let (timeout, headers) = (timeout_from_env(problems), headers_from_env(problems));
    if problems.len() > before {
        return None;
    }
    match client(timeout, headers) {
        Ok(client) => {
            let url = url(name, &endpoint);
            let exporter = Otlp { client, url, resource: Resource::builder_empty().build() };
            Some(Reporting { exporter, failing: AtomicBool::new(false) })
        }
        Err(error) => {
            problems.push(problem(name, &format!("found {endpoint:?}"), &error));
            None
        }
    }
}

fn check_supported(problems: &mut Vec<Problem>) {
    for (variables, supported) in [(PROTOCOL_VARIABLES, "http/protobuf"), (COMPRESSION_VARIABLES, "none")] {
        for name in variables {
            if let Some(value) = variable(name).filter(|value| value != supported) {
                problems.push(problem(name, &format!("found {value:?}"), &format!("expected {supported:?}")));
            }
        }
    }
}

fn timeout_from_env(problems: &mut Vec<Problem>) -> Duration {
    let Some((name, value)) = first(&TIMEOUT_VARIABLES) else { return TIMEOUT };
    let Ok(milliseconds) = value.parse() else {
        problems.push(problem(name, &format!("found {value:?}"), "expected milliseconds"));
        return TIMEOUT;
    };
    Duration::from_millis(milliseconds)
}

fn headers_from_env(problems: &mut Vec<Problem>) -> HeaderMap {
    let Some((name, value)) = first(&HEADERS_VARIABLES) else { return HeaderMap::new() };
    headers(&value).unwrap_or_else(|| {
        // Not repeated: it may have a token.
        problems.push(problem(name, "found something else", "expected name=value,\u{2026}"));
        HeaderMap::new()
    })
}

/// The first of these variables that is set, with its name.
fn first(names: &[&'static str]) -> Option<(&'static str, String)> {
    names.iter().find_map(|name| Some((*name, variable(name)?)))
}

/// Where traces go: an address of their own is taken as it is.
fn url(variable: &str, endpoint: &str) -> String {
    if variable == ENDPOINT_VARIABLES[0] {
        return endpoint.to_owned();
    }
    format!("{}/v1/traces", endpoint.trim_end_matches('/'))
}

/// Headers as the variables have them; None where they cannot be read.
fn headers(text: &str) -> Option<HeaderMap> {
    let header = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        let name = HeaderName::try_from(name.trim()).ok()?;
        Some((name, HeaderValue::try_from(percent_decoded(value.trim())?).ok()?))
    };
    text.split(',').map(str::trim).filter(|pair| !pair.is_empty()).map(header).collect()
}

/// A value as the W3C Baggage format has it: bytes that it cannot hold are `%` and two hexadecimal digits.
fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split('%');
    let mut decoded = parts.next()?.as_bytes().to_vec();
    for part in parts {
        decoded.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        decoded.extend_from_slice(part.get(2..)?.as_bytes());
    }
    Some(decoded)
}

/// A client that blocks. It has to be made on a thread of its own, since it may not be where other work is asynchronous.
fn client(timeout: Duration, headers: HeaderMap) -> Result<Client, String> {
    let build = move || Client::builder().timeout(timeout).default_headers(headers).build();
    let client =
        std::thread::spawn(build).join().map_err(|_| "the HTTP client could not be made".to_owned())?;
    client.map_err(|error| error.to_string())
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

    #[test]
    fn an_address_of_traces_is_taken_as_it_is_and_another_gets_the_path() {
        let [of_traces, of_all] = ENDPOINT_VARIABLES;
        assert_eq!(url(of_traces, "http://a:4318/x"), "http://a:4318/x");
        for endpoint in ["http://a:4318", "http://a:4318/"] {
            assert_eq!(url(of_all, endpoint), "http://a:4318/v1/traces");
        }
    }

    #[test]
    fn headers_are_pairs_whose_values_may_be_encoded() {
        let read = |text: &str| {
            let headers = headers(text)?;
            Some(
                headers
                    .iter()
                    .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
                    .collect::<Vec<_>>(),
            )
        };
        let expected = ["authorization: Bearer a=b", "x-tenant: shop"].map(str::to_owned).to_vec();
        assert_eq!(read("authorization=Bearer%20a=b, x-tenant=shop,"), Some(expected));
        for wrong in ["authorization", "a b=c", "a=%2", "a=%zz", "a=%C3\u{e9}%0A"] {
            assert_eq!(read(wrong), None, "{wrong}");
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
