//! A real Jaeger, all of it in one server that keeps traces in memory, and the client of its query API.

mod trace;

use std::time::Duration;

use anyhow::{Context, Result};
use jetwright_testing::{Process, Program, start_server};
use reqwest::{StatusCode, Url};
use serde_json::Value;
pub use trace::{Span, Trace};

/// It usually answers within a second; a machine that builds something meanwhile takes longer.
const START: Duration = Duration::from_mins(1);
/// Flags of addresses that are not used here: agents, Zipkin's protocol and gRPC.
const UNUSED: [&str; 7] = [
    "http-server.host-port",
    "processor.jaeger-binary.server-host-port",
    "processor.jaeger-compact.server-host-port",
    "processor.zipkin-compact.server-host-port",
    "collector.http-server.host-port",
    "collector.otlp.grpc.host-port",
    "query.grpc-server.host-port",
];

/// A running Jaeger.
#[derive(Debug)]
pub struct Jaeger {
    process: Process,
    url: String,
    otlp_url: String,
}

impl Jaeger {
    /// Starts one, and returns when it answers.
    ///
    /// # Errors
    ///
    /// When there is none, or it does not start.
    pub async fn try_start() -> Result<Self> {
        let program = Program::Jaeger.try_path()?;
        let how = |[query, otlp, collector, admin]: [u16; 4]| {
            let at = |port: u16| format!("127.0.0.1:{port}");
            let start = Process::builder(&program)
                .name("jaeger")
                .arg(format!("--query.http-server.host-port={}", at(query)))
                .arg(format!("--collector.otlp.http.host-port={}", at(otlp)))
                // Its own agent sends there.
                .arg(format!("--collector.grpc-server.host-port={}", at(collector)))
                .arg(format!("--admin.http.host-port={}", at(admin)))
                .args(UNUSED.map(|flag| format!("--{flag}={}", at(0))));
            Ok((start, format!("http://{}/api/services", at(query))))
        };
        let (process, [query, otlp, ..]) = start_server(START, how).await?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        Ok(Self { process, url: url(query), otlp_url: url(otlp) })
    }

    /// Where traces are looked at, and asked for.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where programs send their traces, by OTLP over HTTP.
    #[must_use]
    pub fn otlp_url(&self) -> &str {
        &self.otlp_url
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
}

/// Asks a Jaeger.
#[derive(Clone, Debug)]
pub struct Client {
    url: String,
}

impl Client {
    /// For the Jaeger at this address.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into() }
    }

    /// URL of a trace for a browser.
    #[must_use]
    pub fn page(&self, trace_id: &str) -> String {
        format!("{}/trace/{trace_id}", self.url)
    }

    /// URL of a trace as JSON.
    #[must_use]
    pub fn api(&self, trace_id: &str) -> String {
        format!("{}/api/traces/{trace_id}", self.url)
    }

    /// What is known of a trace by now; None where nothing of it has come yet.
    ///
    /// # Errors
    ///
    /// When there is no answer, or it is no trace.
    pub async fn trace(&self, trace_id: &str) -> Result<Option<Trace>> {
        let answer = reqwest::get(self.api(trace_id)).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let answer: Value = answer.error_for_status()?.json().await?;
        let trace = answer["data"].get(0).with_context(|| format!("no trace: {answer}"))?;
        Trace::parse(trace).map(Some)
    }

    /// The newest traces, twenty at most, in which this service made a span of this name.
    ///
    /// # Errors
    ///
    /// When there is no answer, or it has no traces.
    pub async fn traces_with(&self, service: &str, span: &str) -> Result<Vec<Trace>> {
        let parameters = [("service", service), ("operation", span), ("limit", "20")];
        let url = Url::parse_with_params(&format!("{}/api/traces", self.url), parameters)?;
        let answer: Value = reqwest::get(url).await?.error_for_status()?.json().await?;
        let traces = answer["data"].as_array().with_context(|| format!("no traces: {answer}"))?;
        traces.iter().map(Trace::parse).collect()
    }
}
