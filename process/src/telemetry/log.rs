//! The format of a log line and which lines are logged.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use json_subscriber::JsonLayer;
use opentelemetry::trace::{SpanContext, TraceContextExt};
use opentelemetry_sdk::trace::SdkTracer;
use tracing::dispatcher::WeakDispatch;
use tracing::{Dispatch, Event, Subscriber};
use tracing_opentelemetry::get_otel_context;
use tracing_subscriber::filter::{FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use super::{filter::LogFilter, problem, variable, work_span};
use crate::configuration::Problem;

/// The NATS client logs each of its events and each failed attempt to connect; the programs log these themselves, once.
const DEFAULT_FILTER: &str = "info,async_nats=warn,async_nats::connector=off";

/// The most verbose level of spans.
const TRACED: LevelFilter = LevelFilter::INFO;

/// Keys of every line. An event's field of the same name goes under `fields.<name>`: a key occurs once.
const RESERVED_KEYS: [&str; 6] = ["time", "level", "target", "span", "trace_id", "span_id"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Text,
}

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Log {
    pub(super) format: Format,
    /// Directives that `EnvFilter` takes.
    pub(super) filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: Format::Json, filter: DEFAULT_FILTER.to_owned() }
    }
}

/// A word without `=` must be a level: the filter itself would take a misspelt level for a target, and log nothing.
pub(super) fn check(filter: &str) -> Result<(), String> {
    let level = |part: &str| {
        part.trim().is_empty() || part.contains(['=', '[']) || part.trim().parse::<LevelFilter>().is_ok()
    };
    if let Some(part) = filter.split(',').find(|part| !level(part)) {
        return Err(format!("{part:?} must be a level (error, warn, info, debug, trace, off)"));
    }
    EnvFilter::builder().parse(filter).map(drop).map_err(|error| error.to_string())
}

impl Log {
    /// Reads RUST_LOG, LOG_LEVEL and LOG_FORMAT.
    pub(super) fn from_env(problems: &mut Vec<Problem>) -> Self {
        let mut log = Self::default();
        if let Some((name, filter)) =
            ["RUST_LOG", "LOG_LEVEL"].iter().find_map(|name| Some((*name, variable(name)?)))
        {
            match check(&filter) {
                Ok(()) => log.filter = filter,
                Err(why) => {
                    let expected = format!("expected a level or target=level,…: {why}");
                    problems.push(problem(name, &format!("found {filter:?}"), &expected));
                }
            }
        }
        match variable("LOG_FORMAT").as_deref() {
            None | Some("json") => {}
            Some("text") => log.format = Format::Text,
            Some(other) => {
                problems.push(problem("LOG_FORMAT", &format!("found {other:?}"), "expected json or text"));
            }
        }
        log
    }

    /// Logs to the writer, and makes spans with the tracer. What is logged can be changed by the filter.
    pub(super) fn subscriber<W>(
        &self,
        writer: W,
        tracer: SdkTracer,
    ) -> (impl Subscriber + Send + Sync + use<W>, LogFilter)
    where
        W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
    {
        let spans = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            // Thread ids, file names and busy times on every span cost more than they are worth.
            .with_threads(false)
            .with_location(false)
            .with_tracked_inactivity(false)
            .with_filter(TRACED);
        // A line shows the spans around it even if their own level is not logged.
        let (levels, handle) = reload::Layer::new(EnvFilter::new(&self.filter));
        let traced_spans = filter_fn(|metadata| metadata.is_span() && *metadata.level() <= TRACED);
        let filter = levels.or(traced_spans.with_max_level_hint(TRACED));
        let replace = move |filter| handle.reload(filter).map_err(|error| error.to_string());
        let dispatch = Arc::<OnceLock<WeakDispatch>>::default();
        let lines: Box<dyn Layer<_> + Send + Sync> = match self.format {
            Format::Json => Box::new(json(writer, Arc::clone(&dispatch))),
            Format::Text => Box::new(fmt::layer().with_writer(writer).with_ansi(false)),
        };
        // It reads no line. Without a filter it would want all of them: the client has several below `info` for each message.
        let keep_dispatch = KeepDispatch(dispatch).with_filter(LevelFilter::OFF);
        let subscriber = Registry::default().with(spans).with(lines.with_filter(filter)).with(keep_dispatch);
        (subscriber, LogFilter::new(&self.filter, Box::new(replace)))
    }
}

/// Writes `{"level", "span": {"name", …}, "target", "time", "trace_id", "span_id", "message", …}`.
fn json<S, W>(writer: W, dispatch: Arc<OnceLock<WeakDispatch>>) -> JsonLayer<S, W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    let renamed: BTreeMap<_, _> =
        RESERVED_KEYS.iter().map(|name| (*name, format!("fields.{name}"))).collect();
    let mut layer = JsonLayer::new(writer);
    layer
        .with_timer("time", SystemTime)
        .with_level("level")
        .with_target("target")
        .with_flattened_span_fields("span")
        .with_flattened_event_with_renames(
            |name, renamed| renamed.get(name).map_or(name, String::as_str),
            renamed,
        );
    layer.add_multiple_dynamic_fields(move |event, context, writer| {
        // Writing into a string does not fail.
        if context.event_span(event).is_none()
            && let Some(fields) = work_span::fields()
        {
            let _ = writer.write_field("span", fields);
        }
        let span = span_context(event, context, &dispatch).or_else(work_span::span_context);
        let Some(span) = span else { return };
        let _ = writer.write_field("trace_id", span.trace_id().to_string());
        let _ = writer.write_field("span_id", span.span_id().to_string());
    });
    layer
}

/// The OpenTelemetry context of the innermost span around an event.
fn span_context<S>(
    event: &Event<'_>,
    context: &Context<'_, S>,
    dispatch: &OnceLock<WeakDispatch>,
) -> Option<SpanContext>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let span = context.event_span(event)?;
    let context = get_otel_context(&span.id(), &dispatch.get()?.upgrade()?)?;
    Some(context.span().span_context().clone()).filter(SpanContext::is_valid)
}

/// Keeps the subscriber's own handle: while an event is handled, the current one is not accessible.
struct KeepDispatch(Arc<OnceLock<WeakDispatch>>);

impl<S: Subscriber> Layer<S> for KeepDispatch {
    fn on_register_dispatch(&self, dispatch: &Dispatch) {
        let _ = self.0.set(dispatch.downgrade());
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io;
    use std::sync::{LazyLock, Mutex};

    use opentelemetry::trace::{SpanId, TraceFlags, TraceId, TraceState, TracerProvider};
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use serde_json::Value;
    use tracing::Metadata;
    use tracing::subscriber::{DefaultGuard, Interest, set_default};

    use super::super::work_span::{LogFields, WorkSpan};
    use super::*;

    /// Keeps callsites from being disabled for good. The first thread that reaches a callsite asks all subscribers whether they want
    /// it, and misses a test that subscribes at that moment. This subscriber wants every callsite only sometimes, so each is asked
    /// about every time.
    static UNDECIDED: LazyLock<Dispatch> =
        LazyLock::new(|| Dispatch::new(Registry::default().with(Undecided)));

    struct Undecided;

    impl<S: Subscriber> Layer<S> for Undecided {
        fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
            Interest::sometimes()
        }
    }

    /// For tests that reach callsites for which others listen: call it before the first of them.
    pub(crate) fn keep_lines_undecided() {
        LazyLock::force(&UNDECIDED);
    }

    /// Where a test's log goes.
    #[derive(Clone, Default)]
    pub(crate) struct Output(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Output {
        /// Logs JSON of level `info` here on this thread.
        pub(crate) fn subscribe(&self) -> DefaultGuard {
            self.subscribe_as(&Log::default())
        }

        fn subscribe_as(&self, log: &Log) -> DefaultGuard {
            keep_lines_undecided();
            let output = self.clone();
            let tracer = SdkTracerProvider::builder().build().tracer("test");
            set_default(log.subscriber(move || output.clone(), tracer).0)
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }

        pub(crate) fn lines(&self) -> Vec<Value> {
            self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    #[test]
    fn a_line_within_a_span_carries_its_trace_id_although_nothing_is_exported() {
        let output = Output::default();
        let _guard = output.subscribe();
        tracing::info_span!("outer", user = "u-1").in_scope(|| {
            tracing::info!("one");
            tracing::info_span!("inner", order = 7).in_scope(|| tracing::info!(count = 2, "two"));
        });
        let lines = output.lines();
        assert_eq!(lines[0]["trace_id"].as_str().unwrap().len(), 32);
        assert_eq!(lines[0]["span_id"].as_str().unwrap().len(), 16);
        assert_eq!(lines[0]["trace_id"], lines[1]["trace_id"]);
        assert_ne!(lines[0]["span_id"], lines[1]["span_id"]);
        assert_eq!(lines[1]["message"], "two");
        assert_eq!(lines[1]["count"], 2);
        assert_eq!(lines[1]["level"], "INFO");
        assert_eq!(lines[1]["target"], module_path!());
        assert!(lines[1]["time"].as_str().unwrap().ends_with('Z'));
        assert_eq!(lines[1]["span"], serde_json::json!({"name": "inner", "user": "u-1", "order": 7}));
    }

    struct Mails;

    impl LogFields for Mails {
        fn fields(&self) -> serde_json::Map<String, Value> {
            serde_json::Map::from_iter([
                ("name".to_owned(), "handle".into()),
                ("sequence".to_owned(), 7.into()),
            ])
        }
    }

    #[test]
    fn a_line_within_work_of_which_no_span_is_made_says_the_same_and_spans_within_belong_to_its_trace() {
        let output = Output::default();
        let _guard = output.subscribe();
        let (trace, span) = (TraceId::from(7_u128), SpanId::from(9_u64));
        let parent = SpanContext::new(trace, span, TraceFlags::default(), true, TraceState::default());
        WorkSpan::unsampled(parent).with_fields(Arc::new(Mails)).in_scope(|| {
            tracing::info!("one");
            tracing::info_span!("inner").in_scope(|| tracing::info!("two"));
        });
        tracing::info!("three");
        let lines = output.lines();
        let expected = serde_json::json!({"name": "handle", "sequence": 7});
        assert_eq!((&lines[0]["span"], &lines[0]["span_id"]), (&expected, &span.to_string().into()));
        assert_eq!(lines[1]["span"]["name"], "inner");
        for line in &lines[..2] {
            assert_eq!(line["trace_id"], trace.to_string());
        }
        assert_eq!(lines[2].get("trace_id").or(lines[2].get("span")), None);
    }

    #[test]
    fn a_line_outside_any_span_has_no_trace_id() {
        let output = Output::default();
        let _guard = output.subscribe();
        tracing::info!("alone");
        assert_eq!(output.lines()[0].get("trace_id"), None);
    }

    #[test]
    fn a_field_named_like_a_key_of_the_line_does_not_replace_it() {
        let output = Output::default();
        let _guard = output.subscribe();
        tracing::info!(level = "high", time = 5, "clash");
        let line = &output.lines()[0];
        assert_eq!((&line["level"], &line["fields.level"]), (&"INFO".into(), &"high".into()));
        assert_eq!(line["fields.time"], 5);
    }

    #[test]
    fn the_filter_drops_lines_and_keeps_the_trace_of_those_it_lets_through() {
        let output = Output::default();
        let _guard = output.subscribe_as(&Log { filter: "warn".to_owned(), ..Log::default() });
        tracing::info_span!("work").in_scope(|| {
            tracing::info!("quiet");
            tracing::warn!("loud");
        });
        let lines = output.lines();
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["message"], "loud");
        assert!(lines[0]["trace_id"].is_string(), "{}", lines[0]);
    }

    #[test]
    fn a_line_that_is_not_logged_is_refused_by_its_level_alone() {
        for (filter, level) in [
            (DEFAULT_FILTER, LevelFilter::INFO),
            ("error", TRACED),
            ("warn,async_nats=debug", LevelFilter::DEBUG),
        ] {
            let log = Log { filter: filter.to_owned(), ..Log::default() };
            let (subscriber, _) =
                log.subscriber(io::sink, SdkTracerProvider::builder().build().tracer("test"));
            assert_eq!(subscriber.max_level_hint(), Some(level), "{filter}");
        }
    }

    #[test]
    fn text_is_for_people() {
        let output = Output::default();
        let _guard = output.subscribe_as(&Log { format: Format::Text, ..Log::default() });
        tracing::info!(count = 2, "counted");
        assert!(output.text().trim_end().ends_with("counted count=2"), "{}", output.text());
    }

    #[test]
    fn a_misspelt_level_is_an_error_rather_than_silence_everything() {
        for filter in ["info", "warn,async_nats=debug", "jetwright_operator=trace", "off"] {
            assert_eq!(check(filter), Ok(()), "{filter}");
        }
        for filter in ["loud", "info,wran", "a=loud"] {
            assert!(check(filter).is_err(), "{filter}");
        }
    }
}
