//! A collector of traces.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use data_encoding::HEXLOWER;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{self as otlp, status::StatusCode};
use prost::Message;
use std::sync::{Mutex, PoisonError};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// The answer to each request.
const ACCEPTED: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n";

/// A span as a program exported it. Ids are hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Name of the service.
    pub service: String,
    /// Its name.
    pub name: String,
    /// `client`, `consumer`, `internal`, `producer` or `server`.
    pub kind: &'static str,
    /// The trace that it is part of.
    pub trace_id: String,
    /// Its own id.
    pub span_id: String,
    /// The span within which it is; empty for the root of a trace, and for one whose parent is another program's, unless that exports too.
    pub parent_span_id: String,
    /// The text of its error, if it is one.
    pub error: Option<String>,
    /// Its attributes; numbers as text.
    pub attributes: BTreeMap<String, String>,
    /// Ids of the spans that it links.
    pub links: Vec<String>,
}

impl Span {
    /// The value of an attribute; empty if it has none.
    #[must_use]
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

/// Takes traces by OTLP over HTTP and keeps them.
#[derive(Debug)]
pub struct TraceCollector {
    endpoint: String,
    spans: Arc<Mutex<Vec<Span>>>,
    requests: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Drop for TraceCollector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl TraceCollector {
    /// Starts one on a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.unwrap_or_else(|error| panic!("no port for a collector: {error}"));
        let address = listener.local_addr();
        let address = address.unwrap_or_else(|error| panic!("no address of a collector: {error}"));
        let (spans, requests) = (Arc::default(), Arc::default());
        let serving = tokio::spawn(serve(listener, Arc::clone(&spans), Arc::clone(&requests)));
        Self { endpoint: format!("http://{address}"), spans, requests, serving }
    }

    /// The environment of a program whose spans come here, soon after they end.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, &str); 2] {
        [("OTEL_EXPORTER_OTLP_ENDPOINT", &self.endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "50")]
    }

    /// The spans that came so far, in the order in which they ended.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests that came so far.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

async fn serve(listener: TcpListener, spans: Arc<Mutex<Vec<Span>>>, requests: Arc<AtomicUsize>) {
    // They end with the collector.
    let mut connections = JoinSet::new();
    while let Ok((connection, _)) = listener.accept().await {
        let (spans, requests) = (Arc::clone(&spans), Arc::clone(&requests));
        connections.spawn(async move {
            // A program that ends in the middle of a request is no fault of the collector's.
            let _ = receive(connection, &spans, &requests).await;
        });
    }
}

/// Takes one request after another.
async fn receive(connection: TcpStream, spans: &Mutex<Vec<Span>>, requests: &AtomicUsize) -> io::Result<()> {
    let mut connection = BufReader::new(connection);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if connection.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        let mut body = vec![0; length];
        connection.read_exact(&mut body).await?;
        let request = ExportTraceServiceRequest::decode(body.as_slice()).map_err(io::Error::other)?;
        spans.lock().unwrap_or_else(PoisonError::into_inner).extend(read(request));
        requests.fetch_add(1, Ordering::Relaxed);
        connection.write_all(ACCEPTED).await?;
    }
}

fn read(request: ExportTraceServiceRequest) -> impl Iterator<Item = Span> {
    request.resource_spans.into_iter().flat_map(|of_resource| {
        let resource = attributes(of_resource.resource.unwrap_or_default().attributes);
        let service = resource.get("service.name").cloned().unwrap_or_default();
        let spans = of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans);
        spans.map(move |span| read_span(span, service.clone()))
    })
}

fn read_span(span: otlp::Span, service: String) -> Span {
    let status = span.status.clone().unwrap_or_default();
    let is_error = status.code() == StatusCode::Error;
    let kind = match span.kind() {
        otlp::span::SpanKind::Client => "client",
        otlp::span::SpanKind::Consumer => "consumer",
        otlp::span::SpanKind::Producer => "producer",
        otlp::span::SpanKind::Server => "server",
        otlp::span::SpanKind::Internal | otlp::span::SpanKind::Unspecified => "internal",
    };
    Span {
        service,
        kind,
        trace_id: HEXLOWER.encode(&span.trace_id),
        span_id: HEXLOWER.encode(&span.span_id),
        parent_span_id: HEXLOWER.encode(&span.parent_span_id),
        error: is_error.then_some(status.message),
        links: span.links.iter().map(|link| HEXLOWER.encode(&link.span_id)).collect(),
        name: span.name,
        attributes: attributes(span.attributes),
    }
}

fn attributes(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let read = |KeyValue { key, value, .. }| (key, text(value));
    attributes.into_iter().map(read).collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::BoolValue(value)) => value.to_string(),
        Some(Value::IntValue(value)) => value.to_string(),
        Some(Value::DoubleValue(value)) => value.to_string(),
        other => format!("{other:?}"),
    }
}
