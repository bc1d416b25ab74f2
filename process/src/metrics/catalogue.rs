//! A table of a program's metrics, with all that is said of each: name, type, labels, help. The unit is the last word of the name.
//!
//! A metric is registered, or encoded, by its row alone, so that nothing is exported that the table does not have.

use std::fmt;

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::{Metric, Registry, Unit},
};

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; exported as `<name>_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations or sizes, counted by buckets.
    Histogram,
    /// Always 1, with what there is to say in its labels; exported as `<name>_info`.
    Info,
}

impl Kind {
    /// The word of the text format.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// Which values a label has. There is no third kind: a label without a bound makes series without end.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// One of these words.
    Words(&'static [&'static str]),
    /// A name out of as many as there are of this.
    NameOf(&'static str),
}

/// A label of a metric.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// What it can say.
    pub values: Values,
}

/// A label whose value is one of a few words.
#[must_use]
pub const fn words(name: &'static str, words: &'static [&'static str]) -> Label {
    Label { name, values: Values::Words(words) }
}

/// A label whose value is the name of something, as "an EventStream".
#[must_use]
pub const fn name_of(name: &'static str, what: &'static str) -> Label {
    Label { name, values: Values::NameOf(what) }
}

/// A row of a catalogue.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// The whole name, without the `_total` and `_info` that the text format adds.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its labels, in the order in which they are written.
    pub labels: &'static [Label],
    /// What it says, without a full stop, which the text format adds.
    pub help: &'static str,
}

/// Makes a constant of each row, and `CATALOGUE` of them all.
///
/// ```
/// jetwright_process::catalogue! {
///     /// Requests that wait.
///     WAITING: Gauge "program_requests_waiting" [] "Requests that wait";
/// }
/// assert_eq!(CATALOGUE.len(), 1);
/// ```
#[macro_export]
macro_rules! catalogue {
    ($($(#[$doc:meta])* $row:ident: $kind:ident $name:literal [$($label:expr),*] $help:literal;)+) => {
        $(
            $(#[$doc])*
            pub const $row: $crate::metrics::catalogue::Definition = $crate::metrics::catalogue::Definition {
                name: $name,
                kind: $crate::metrics::catalogue::Kind::$kind,
                labels: &[$($label),*],
                help: $help,
            };
        )+
        /// Every row.
        pub const CATALOGUE: &[$crate::metrics::catalogue::Definition] = &[$($row),+];
    };
}

/// The value of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A count, exact whatever its size.
    Count(u64),
    /// Anything else, as seconds.
    Number(f64),
}

impl Value {
    fn encode(self, kind: Kind, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        match (kind, self) {
            (Kind::Counter, Self::Count(count)) => encoder.encode_counter::<NoLabelSet, _, u64>(&count, None),
            (Kind::Counter, Self::Number(number)) => {
                encoder.encode_counter::<NoLabelSet, _, u64>(&number, None)
            }
            (_, Self::Count(count)) => encoder.encode_gauge(&count),
            (_, Self::Number(number)) => encoder.encode_gauge(&number),
        }
    }
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<bool> for Value {
    fn from(holds: bool) -> Self {
        Self::Count(holds.into())
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl Definition {
    /// The name as samples of it have it.
    #[must_use]
    pub fn sample_name(&self) -> String {
        match self.kind {
            Kind::Counter => format!("{}_total", self.name),
            Kind::Info => format!("{}_info", self.name),
            Kind::Gauge | Kind::Histogram => self.name.to_owned(),
        }
    }

    /// The name without its unit, and the unit, where it has one.
    #[must_use]
    pub fn unit(&self) -> (&'static str, Option<Unit>) {
        let units = [("_seconds", Unit::Seconds), ("_bytes", Unit::Bytes)];
        let found =
            units.into_iter().find_map(|(suffix, unit)| Some((self.name.strip_suffix(suffix)?, unit)));
        found.map_or((self.name, None), |(stem, unit)| (stem, Some(unit)))
    }

    /// Adds the metric to a registry.
    pub fn register(&self, registry: &mut Registry, metric: impl Metric) {
        match self.unit() {
            (stem, Some(unit)) => registry.register_with_unit(stem, self.help, unit, metric),
            (name, None) => registry.register(name, self.help, metric),
        }
    }

    /// Writes a gauge, a counter, or an info, whose samples are made for this scrape, each with its labels' values in the order of the row; nothing without samples.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn encode<'a, const N: usize, V: Into<Value>>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        samples: impl IntoIterator<Item = ([&'a str; N], V)>,
    ) -> fmt::Result {
        debug_assert!(self.labels.len() == N, "{} has other labels", self.name);
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let (stem, unit) = self.unit();
        let help = format!("{}.", self.help);
        let kind = match self.kind {
            Kind::Info => MetricType::Info,
            Kind::Counter => MetricType::Counter,
            Kind::Gauge | Kind::Histogram => MetricType::Gauge,
        };
        let mut family = encoder.encode_descriptor(stem, &help, unit.as_ref(), kind)?;
        for (values, value) in samples {
            let labels = Labels { names: self.labels, values: &values };
            match (self.kind, N) {
                (Kind::Info, _) => family.encode_info(&labels)?,
                // Without labels, an empty pair of braces would be written.
                (kind, 0) => value.into().encode(kind, &mut family)?,
                (kind, _) => value.into().encode(kind, &mut family.encode_family(&labels)?)?,
            }
        }
        Ok(())
    }
}

/// The labels of a row with the values of one sample.
struct Labels<'a> {
    names: &'static [Label],
    values: &'a [&'a str],
}

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let pairs: Vec<_> =
            self.names.iter().map(|label| label.name).zip(self.values.iter().copied()).collect();
        pairs.encode(encoder)
    }
}

/// What breaks the rules for names and help, a line for each.
#[must_use]
pub fn problems(catalogue: &[Definition]) -> Vec<String> {
    let mut problems: Vec<_> = catalogue.iter().flat_map(problems_of).collect();
    for (number, row) in catalogue.iter().enumerate() {
        if catalogue[..number].iter().any(|other| other.name == row.name) {
            problems.push(format!("{} is there twice", row.name));
        }
    }
    problems
}

fn problems_of(row: &Definition) -> Vec<String> {
    let is_snake = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && !name.contains("__")
            && !name.ends_with('_')
    };
    let suffixes =
        ["total", "info", "count", "sum", "bucket", "created", "ms", "milliseconds", "minutes", "kilobytes"];
    let last = row.name.rsplit('_').next().unwrap_or_default();
    let labels = || row.labels.iter().map(|label| label.name);
    let rules = [
        (is_snake(row.name), "is not in snake case"),
        (!suffixes.contains(&last), "ends with a word that the text format adds, or with no base unit"),
        (row.kind != Kind::Histogram || row.unit().1.is_some(), "is a histogram without a unit"),
        (!row.help.ends_with('.') && !row.help.is_empty(), "has no help, or one that ends with a full stop"),
        (!row.help.contains(['\n', '|']), "has a help that no table can hold"),
        (labels().all(is_snake), "has a label that is not in snake case"),
        (
            !labels().any(|label| ["le", "quantile", "job", "instance"].contains(&label)),
            "has a label of Prometheus' own",
        ),
        (row.labels.iter().all(has_values), "has a label without values"),
    ];
    rules.into_iter().filter(|(holds, _)| !holds).map(|(_, what)| format!("{} {what}", row.name)).collect()
}

fn has_values(label: &Label) -> bool {
    match label.values {
        Values::Words(words) => !words.is_empty(),
        Values::NameOf(what) => !what.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{collector::Collector, encoding::text::encode, metrics::counter::Counter};

    use super::*;

    catalogue! {
        CALLS: Counter "a_calls" [] "Calls";
        LEADER: Info "a_leader" [name_of("server", "server")] "Leader";
        HELD: Gauge "a_held_bytes" [words("kind", &["hot", "cold"]), name_of("stream", "stream")] "Bytes held";
    }

    #[derive(Debug)]
    struct Held;

    impl Collector for Held {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            HELD.encode(&mut encoder, [(["hot", "a\"b"], u64::MAX), (["cold", "c"], 0)])?;
            LEADER.encode(&mut encoder, [(["n1"], true)])
        }
    }

    #[test]
    fn a_row_is_registered_and_encoded_by_its_name_unit_and_labels() {
        let mut registry = Registry::default();
        CALLS.register(&mut registry, Counter::<u64>::default());
        registry.register_collector(Box::new(Held));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let expected = "# HELP a_calls Calls.\n# TYPE a_calls counter\na_calls_total 0\n\
                        # HELP a_held_bytes Bytes held.\n# TYPE a_held_bytes gauge\n# UNIT a_held_bytes bytes\n\
                        a_held_bytes{kind=\"hot\",stream=\"a\\\"b\"} 18446744073709551615\n\
                        a_held_bytes{kind=\"cold\",stream=\"c\"} 0\n\
                        # HELP a_leader Leader.\n# TYPE a_leader info\na_leader_info{server=\"n1\"} 1\n# EOF\n";
        assert_eq!(text, expected);
        assert_eq!(problems(CATALOGUE), [""; 0]);
    }

    #[test]
    fn what_breaks_the_rules_is_named() {
        let row = |name, kind, labels, help| Definition { name, kind, labels, help };
        for (wrong, what) in [
            (row("aB", Kind::Gauge, &[], "x"), "snake case"),
            (row("a_total", Kind::Counter, &[], "x"), "text format"),
            (row("a_ms", Kind::Gauge, &[], "x"), "base unit"),
            (row("a", Kind::Histogram, &[], "x"), "without a unit"),
            (row("a", Kind::Gauge, &[], "x."), "full stop"),
            (row("a", Kind::Gauge, const { &[name_of("job", "job")] }, "x"), "Prometheus' own"),
            (row("a", Kind::Gauge, const { &[words("b", &[])] }, "x"), "without values"),
        ] {
            let found = problems(&[wrong]);
            assert!(found.len() == 1 && found[0].contains(what), "{found:?}");
        }
        assert_eq!(problems(&[CALLS, CALLS]), ["a_calls is there twice"]);
    }
}
