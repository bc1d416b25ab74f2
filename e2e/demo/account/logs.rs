//! The path of events by what the pods logged of them. Reads the logs to which the node has links.

use std::{fs, path::Path, time::Duration};

use serde_json::Value;
use tokio::time::sleep;

use super::table::table;
use crate::{manifests::SHOP, state::Home};

/// An order is decided a moment before the pod that did it has said so.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);

/// What the pods logged of events whose subject contains one of `wanted`, in the order of time, once each of these bindings has handled one.
pub async fn path(home: &Home, bindings: &[&str], wanted: &[&str]) -> String {
    let mut lines = Vec::new();
    for _ in 0..ATTEMPTS {
        lines = logged(&home.path("logs"), wanted);
        let has = |binding: &&&str| lines.iter().any(|line| line.binding.as_deref() == Some(**binding));
        if bindings.iter().filter(has).count() == bindings.len() {
            break;
        }
        sleep(PAUSE).await;
    }
    let rows: Vec<_> = lines.into_iter().map(Line::row).collect();
    table(["STREAM", "SEQUENCE", "SUBJECT", "WHAT", "POD", "TOOK"], &rows)
}

/// The trace of the first event that was stored or handled with this in its subject, as the pods logged it.
pub fn trace(home: &Home, wanted: &str) -> Option<String> {
    let lines = logged(&home.path("logs"), &[wanted]);
    lines.into_iter().map(|line| line.trace).find(|trace| !trace.is_empty())
}

/// A line about an event that was stored or handled.
#[derive(Debug, PartialEq)]
struct Line {
    time: String,
    stream: String,
    sequence: String,
    subject: String,
    /// Who handled it.
    binding: Option<String>,
    pod: String,
    took: String,
    trace: String,
}

impl Line {
    /// None of a line about something else.
    fn parse(pod: &str, line: &str) -> Option<Self> {
        let line: Value = serde_json::from_str(line).ok()?;
        let handled = match line["message"].as_str()? {
            "handled" => true,
            "published" => false,
            _ => return None,
        };
        let span = &line["span"];
        let first = |name: &str| {
            let found = [&line[name], &span[name]].into_iter().find(|value| !value.is_null());
            found
                .map(|value| value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned))
                .unwrap_or_default()
        };
        let took = line["took_ms"].as_f64().map(|took| format!("{took:.1} ms")).unwrap_or_default();
        Some(Self {
            time: line["time"].as_str().or(line["timestamp"].as_str()).unwrap_or_default().to_owned(),
            stream: first("stream"),
            sequence: first("sequence"),
            subject: first("subject"),
            binding: handled.then(|| first("binding")),
            pod: pod.to_owned(),
            took,
            trace: line["trace_id"].as_str().unwrap_or_default().to_owned(),
        })
    }

    fn row(self) -> [String; 6] {
        let what =
            self.binding.map_or_else(|| "stored".to_owned(), |binding| format!("handled by {binding}"));
        [self.stream, self.sequence, self.subject, what, self.pod, self.took]
    }
}

fn logged(folder: &Path, wanted: &[&str]) -> Vec<Line> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((SHOP, pod)) = name.split_once('_') else { continue };
        let pod = pod.split('_').next().unwrap_or_default();
        // A pod may have gone meanwhile, and its log with it.
        let log = fs::read(entry.path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        lines.extend(log.lines().filter_map(|line| Line::parse(pod, line)));
    }
    lines.retain(|line: &Line| wanted.iter().any(|part| line.subject.contains(part)));
    lines.sort_by(|a, b| a.time.cmp(&b.time));
    lines
}
