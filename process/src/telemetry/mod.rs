//! Logs on standard output and traces to a collector.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `RUST_LOG`, else `LOG_LEVEL` | what is logged: a level or `target=level,…` (default `info`) |
//! | `LOG_FORMAT` | `json` (default, one object a line) or `text` (for people) |
//! | `OTEL_EXPORTER_OTLP_ENDPOINT` | where traces go by OTLP over HTTP; nothing is exported without it |
//! | `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_*`, … | as OpenTelemetry defines them |
//!
//! Spans of level `info` and above always exist, logged, exported or not, so that every line within a span has a trace id, and
//! requests to other programs carry its context.

mod export;
mod filter;
pub(crate) mod log;
mod work_span;

use std::env;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;

use crate::configuration::{Problem, Problems};
pub use filter::{LogFilterError, log_filter, set_log_filter};
use log::Log;
pub use work_span::{LogFields, WorkSpan, fail_current, record_with, records};

/// How long [`Telemetry::shutdown`] waits for the collector.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// The samplers that OTEL_TRACES_SAMPLER can name; the SDK would silently replace any other with `parentbased_always_on`.
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// Logs and traces of a program, for as long as it runs.
#[derive(Debug)]
pub struct Telemetry {
    provider: SdkTracerProvider,
}

impl Telemetry {
    /// Starts logs and traces for the whole process, under this service name unless the environment has another.
    ///
    /// # Errors
    ///
    /// Every invalid variable of the table above; or telemetry was started before.
    pub fn start(service_name: &str) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let log = Log::from_env(&mut problems);
        check_sampler(&mut problems);
        let exporter = export::from_env(&mut problems);
        Problems::check(problems)?;

        let is_exported = exporter.is_some();
        let mut builder = SdkTracerProvider::builder().with_resource(resource(service_name));
        if let Some(exporter) = exporter {
            builder = builder.with_batch_exporter(exporter);
        }
        let provider = builder.build();
        if is_exported {
            record_with(&provider);
        }
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        let (subscriber, filter) = log.subscriber(io::stdout, provider.tracer("jetwright"));
        tracing::subscriber::set_global_default(subscriber)
            .map_err(|error| problem("telemetry", &error.to_string(), "it is started once"))?;
        filter.install();
        Ok(Self { provider })
    }

    /// Sends the remaining traces to the collector and ends the export, within 5 seconds. It blocks its thread meanwhile, so call it
    /// last. Logs continue.
    pub fn shutdown(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::warn!(%error, "failed to flush traces; the last ones may be lost");
        }
    }

    /// The end of `main`: logs the error that ended the program, if any, and [shuts down](Self::shutdown).
    #[must_use]
    pub fn finish<E: std::fmt::Display>(self, ended: Result<(), E>) -> ExitCode {
        let code = match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                // The alternate form of an anyhow::Error includes its causes.
                tracing::error!(error = %format_args!("{error:#}"), "terminating after an error");
                ExitCode::FAILURE
            }
        };
        self.shutdown();
        code
    }
}

/// The SDK prefers a name given here to the environment's, and users expect the opposite.
fn resource(service_name: &str) -> Resource {
    let attributes = env::var("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let named = variable("OTEL_SERVICE_NAME").is_some()
        || attributes.split(',').any(|pair| pair.trim_start().starts_with("service.name="));
    let builder = Resource::builder();
    if named { builder.build() } else { builder.with_service_name(service_name.to_owned()).build() }
}

fn check_sampler(problems: &mut Vec<Problem>) {
    if let Some(sampler) = variable("OTEL_TRACES_SAMPLER")
        && !SAMPLERS.contains(&sampler.as_str())
    {
        let expected = format!("expected one of {}", SAMPLERS.join(", "));
        problems.push(problem("OTEL_TRACES_SAMPLER", &format!("found {sampler:?}"), &expected));
    }
}

/// A variable, if it is set and not empty.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn problem(path: &str, found: &str, expected: &str) -> Problem {
    Problem { path: path.to_owned(), variable: None, found: found.to_owned(), expected: expected.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::process::{Command, Output};
    use std::thread;
    use std::time::Instant;

    use super::*;

    /// Set by the parent test, so that the same test, in a child process, is the program under test.
    const CHILD: &str = "TELEMETRY_TEST_CHILD";

    /// Runs the test of this name as a program with these variables.
    fn program(test: &str, variables: &[(&str, &str)]) -> Output {
        Command::new(env::current_exe().unwrap())
            .args(["--exact", &format!("telemetry::tests::{test}"), "--nocapture"])
            .env_clear()
            .env(CHILD, "1")
            .envs(variables.iter().copied())
            .output()
            .unwrap()
    }

    /// A program that does one thing and ends.
    fn short_program() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        runtime.block_on(async {
            let telemetry = Telemetry::start("given-name").unwrap();
            tracing::info_span!("the-work").in_scope(|| tracing::info!("done"));
            let _ = telemetry.finish(Ok::<_, String>(()));
        });
    }

    /// One request.
    fn receive(mut stream: &TcpStream) -> Vec<u8> {
        let mut request = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let read = stream.read(&mut buffer).unwrap();
            request.extend_from_slice(&buffer[..read]);
            let text = String::from_utf8_lossy(&request).to_lowercase();
            let Some((head, _)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if request.len() >= head.len() + 4 + length.parse::<usize>().unwrap() {
                return request;
            }
        }
    }

    #[test]
    fn traces_reach_the_collector_before_the_program_ends() {
        if env::var_os(CHILD).is_some() {
            return short_program();
        }
        for (variables, name) in
            [(&[][..], "given-name"), (&[("OTEL_SERVICE_NAME", "set-name")][..], "set-name")]
        {
            let collector = TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = format!("http://{}", collector.local_addr().unwrap());
            let received = thread::spawn(move || {
                let (mut stream, _) = collector.accept().unwrap();
                let request = receive(&stream);
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
                String::from_utf8_lossy(&request).into_owned()
            });
            let mut all = vec![("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
            all.extend(variables);
            let output = program("traces_reach_the_collector_before_the_program_ends", &all);
            assert!(output.status.success(), "{output:?}");
            let request = received.join().unwrap();
            assert!(request.starts_with("POST /v1/traces "), "{request}");
            assert!(request.contains("the-work") && request.contains(name), "{request}");
        }
    }

    #[test]
    fn a_collector_that_does_not_answer_holds_the_end_up_for_a_bounded_time() {
        if env::var_os(CHILD).is_some() {
            return short_program();
        }
        let collector = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", collector.local_addr().unwrap());
        let started = Instant::now();
        let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
        let output =
            program("a_collector_that_does_not_answer_holds_the_end_up_for_a_bounded_time", &variables);
        assert!(output.status.success(), "{output:?}");
        assert!(started.elapsed() < FLUSH_TIMEOUT + Duration::from_secs(5), "{:?}", started.elapsed());
        let log = String::from_utf8(output.stdout).unwrap();
        assert!(log.contains("failed to flush traces"), "{log}");
    }

    /// A program that changes what it logs by a request to its admin address.
    fn changing_program() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let telemetry = Telemetry::start("given-name").unwrap();
            let admin = crate::admin::bind(std::net::SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
            let address = admin.local_address().unwrap();
            let (health, registry) = (crate::health::Health::new(), std::sync::Arc::default());
            let stop = tokio_util::sync::CancellationToken::new();
            let served = tokio::spawn(admin.serve(health, registry, stop.clone()));
            tracing::debug!("hidden before");
            let put =
                |directives: &'static str| tokio::task::spawn_blocking(move || request(address, directives));
            assert!(put("debug,quiet=error").await.unwrap().ends_with("debug,quiet=error\n"));
            tracing::debug!("shown after");
            tracing::warn!(target: "quiet", "hidden after");
            assert!(put("loud").await.unwrap().contains("400 Bad Request"));
            tracing::debug!("shown after a mistake");
            stop.cancel();
            served.await.unwrap().unwrap();
            let _ = telemetry.finish(Ok::<_, String>(()));
        });
    }

    fn request(address: std::net::SocketAddr, directives: &str) -> String {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let length = directives.len();
        write!(
            stream,
            "PUT /log-level HTTP/1.1\r\nHost: admin\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{directives}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn what_is_logged_changes_while_the_program_runs() {
        if env::var_os(CHILD).is_some() {
            return changing_program();
        }
        let output = program("what_is_logged_changes_while_the_program_runs", &[]);
        assert!(output.status.success(), "{output:?}");
        let log = String::from_utf8(output.stdout).unwrap();
        for shown in ["shown after", "shown after a mistake", "changed what is logged"] {
            assert!(log.contains(&format!("\"{shown}\"")), "{shown}:\n{log}");
        }
        assert!(!log.contains("hidden"), "{log}");
    }

    #[test]
    fn a_collector_that_does_not_answer_costs_those_who_make_spans_neither_time_nor_memory() {
        const SPANS: usize = 200_000;
        if env::var_os(CHILD).is_some() {
            let _telemetry = Telemetry::start("given-name").unwrap();
            let mut longest = Duration::ZERO;
            for _ in 0..SPANS {
                let began = Instant::now();
                let attributes = vec![opentelemetry::KeyValue::new("text", "x".repeat(1000))];
                let builder =
                    opentelemetry::trace::SpanBuilder::from_name("work").with_attributes(attributes);
                WorkSpan::start(builder, None).in_scope(|| assert!(records()));
                longest = longest.max(began.elapsed());
            }
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
            println!("took {} ms, peak {peak}", longest.as_millis());
            // What waits for the collector would hold up the end.
            std::process::exit(0);
        }
        let collector = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", collector.local_addr().unwrap());
        let output = program(
            "a_collector_that_does_not_answer_costs_those_who_make_spans_neither_time_nor_memory",
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())],
        );
        let printed = String::from_utf8(output.stdout).unwrap();
        let figures = printed.lines().find_map(|line| line.split_once("took ")).unwrap().1;
        let (took, peak) = figures.split_once(" ms, peak ").unwrap();
        // All of the spans would be 200 MB.
        let peak: usize = peak.trim().strip_suffix(" kB").unwrap().parse().unwrap();
        assert!(peak < 60_000, "{printed}");
        // No span waits, however slow the machine is: the first export alone is given up after ten seconds.
        assert!(took.parse::<u64>().unwrap() < 5000, "{printed}");
    }

    #[test]
    fn every_invalid_variable_is_reported() {
        if env::var_os(CHILD).is_some() {
            println!("{}", Telemetry::start("given-name").unwrap_err());
            return;
        }
        let wrong = [
            ("RUST_LOG", "a=b=c"),
            ("LOG_FORMAT", "xml"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ];
        let output = program("every_invalid_variable_is_reported", &wrong);
        let message = String::from_utf8(output.stdout).unwrap();
        for (name, value) in wrong {
            let line = format!("{name}: found {value:?}; expected ");
            assert!(message.lines().any(|printed| printed.starts_with(&line)), "{line} not in:\n{message}");
        }
    }
}
