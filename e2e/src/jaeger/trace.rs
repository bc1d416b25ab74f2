//! A trace as Jaeger's query API has it, and drawn as a tree. Pure.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

/// The tag of a span that failed, and that of why.
const ERROR: &str = "error";
const REASON: &str = "otel.status_description";

/// Spans of one trace, in the order of their beginnings.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// All that is known by now: others may come.
    pub spans: Vec<Span>,
}

/// One span.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Its id, in hexadecimal digits.
    pub id: String,
    /// The id of the span that it is a part of; None of a root.
    pub parent: Option<String>,
    /// Its name.
    pub name: String,
    /// The service that made it.
    pub service: String,
    /// When it began, in microseconds since 1970.
    pub start: u64,
    /// How long it took, in microseconds.
    pub duration: u64,
    /// Its attributes and those of its status.
    pub tags: BTreeMap<String, String>,
}

impl Span {
    /// Whether it failed.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.tags.get(ERROR).is_some_and(|error| error == "true")
    }

    /// Why it failed; empty where it did not, or did not say why.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.tags.get(REASON).map(String::as_str).unwrap_or_default()
    }

    fn parse(span: &Value, processes: &Value) -> Result<Self> {
        let text = |key: &str| {
            span[key].as_str().map(ToOwned::to_owned).with_context(|| format!("no {key}: {span}"))
        };
        let number = |key: &str| span[key].as_u64().with_context(|| format!("no {key}: {span}"));
        let mut references = span["references"].as_array().into_iter().flatten();
        // A link of OpenTelemetry is a reference, too, as FOLLOWS_FROM.
        let parent = references
            .find(|reference| reference["refType"] == "CHILD_OF" && reference["traceID"] == span["traceID"]);
        let tags = span["tags"].as_array().into_iter().flatten().filter_map(|tag| {
            let value = &tag["value"];
            Some((
                tag["key"].as_str()?.to_owned(),
                value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned),
            ))
        });
        Ok(Self {
            id: text("spanID")?,
            parent: parent.and_then(|parent| parent["spanID"].as_str()).map(ToOwned::to_owned),
            name: text("operationName")?,
            service: processes[text("processID")?]["serviceName"].as_str().unwrap_or_default().to_owned(),
            start: number("startTime")?,
            duration: number("duration")?,
            tags: tags.collect(),
        })
    }
}

impl Trace {
    /// Reads one of the traces that Jaeger answers with.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn parse(trace: &Value) -> Result<Self> {
        let spans = trace["spans"].as_array().context("a trace has spans")?;
        let spans: Result<Vec<_>> = spans.iter().map(|span| Span::parse(span, &trace["processes"])).collect();
        let mut spans = spans?;
        spans.sort_by_key(|span| span.start);
        Ok(Self { spans })
    }

    /// The spans that failed.
    pub fn failed(&self) -> impl Iterator<Item = &Span> {
        self.spans.iter().filter(|span| span.failed())
    }

    /// Spans without a parent among those that are known: the root, once all have come.
    pub fn roots(&self) -> impl Iterator<Item = &Span> {
        self.spans.iter().filter(|span| self.parent_of(span).is_none())
    }

    /// The span that another one is a part of, if it is known.
    #[must_use]
    pub fn parent_of(&self, span: &Span) -> Option<&Span> {
        let parent = span.parent.as_ref()?;
        self.spans.iter().find(|other| other.id == *parent)
    }

    /// Whether the parent of every span is known.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.roots().all(|root| root.parent.is_none())
    }

    /// The spans as a tree: name, service, time that it took, and why it failed.
    #[must_use]
    pub fn drawn(&self) -> String {
        let mut lines = Vec::new();
        for root in self.roots() {
            self.lines_of(root, 0, &mut lines);
        }
        let width = lines.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or_default();
        let services = lines.iter().map(|(_, service, _)| service.chars().count()).max().unwrap_or_default();
        let line = |(name, service, rest): (String, String, String)| {
            format!("{name:<width$}  {service:<services$}  {rest}").trim_end().to_owned() + "\n"
        };
        lines.into_iter().map(line).collect()
    }

    fn lines_of(&self, span: &Span, depth: usize, lines: &mut Vec<(String, String, String)>) {
        let milliseconds = format!("{}.{} ms", span.duration / 1000, span.duration % 1000 / 100);
        let failure = if span.failed() { format!("  ERROR {}", span.reason()) } else { String::new() };
        lines.push((
            format!("{}{}", "  ".repeat(depth), span.name),
            span.service.clone(),
            format!("{milliseconds:>10}{failure}"),
        ));
        for child in self.spans.iter().filter(|child| child.parent.as_ref() == Some(&span.id)) {
            self.lines_of(child, depth + 1, lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answered() -> Value {
        let span = |id: &str, parent: Option<&str>, name: &str, start: u64, tags: Value| {
            let references: Vec<_> = parent
                .into_iter()
                .map(|parent| json!({"refType": "CHILD_OF", "traceID": "t", "spanID": parent}))
                .chain([json!({"refType": "FOLLOWS_FROM", "traceID": "t", "spanID": "z"})])
                .collect();
            json!({"traceID": "t", "spanID": id, "operationName": name, "references": references,
                "startTime": start, "duration": 12_345, "tags": tags, "processID": "p1"})
        };
        let refused = json!([
            {"key": "error", "type": "bool", "value": true},
            {"key": "otel.status_description", "type": "string", "value": "no such user"},
        ]);
        json!({"traceID": "t", "processes": {"p1": {"serviceName": "orders"}}, "spans": [
            span("c", Some("b"), "user_validation", 30, refused),
            span("a", None, "POST /orders", 10, json!([{"key": "attempt", "type": "int64", "value": 1}])),
            span("b", Some("a"), "process orders.*.placed", 20, json!([])),
        ]})
    }

    #[test]
    fn a_trace_is_drawn_as_a_tree_that_says_what_failed_and_why() {
        let trace = Trace::parse(&answered()).unwrap();
        assert_eq!(
            trace.drawn(),
            "POST /orders               orders     12.3 ms\n\
             \u{20} process orders.*.placed  orders     12.3 ms\n\
             \u{20}   user_validation        orders     12.3 ms  ERROR no such user\n"
        );
        assert_eq!(trace.roots().map(|span| span.name.as_str()).collect::<Vec<_>>(), ["POST /orders"]);
        assert_eq!(
            trace.failed().map(|span| (span.id.as_str(), span.reason())).collect::<Vec<_>>(),
            [("c", "no such user")]
        );
        assert_eq!(trace.spans[0].tags["attempt"], "1");
    }

    #[test]
    fn what_is_no_trace_is_told() {
        assert!(Trace::parse(&json!({"data": null})).is_err());
        assert!(Trace::parse(&json!({"spans": [{}]})).is_err());
    }
}
