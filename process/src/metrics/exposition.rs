//! In: what a program exports, as text, and catalogues. Out: what it exports otherwise than they say. Pure.

use super::catalogue::{Definition, Kind, Values};

/// What a text in the OpenMetrics format has that no row of these catalogues describes, a line for each: other metrics, types, labels, and
/// values that a label cannot have.
#[must_use]
pub fn deviations(text: &str, catalogues: &[&[Definition]]) -> Vec<String> {
    let rows = || catalogues.iter().flat_map(|catalogue| catalogue.iter());
    let mut deviations: Vec<_> = text
        .lines()
        .filter(|line| *line != "# EOF" && !line.starts_with("# HELP ") && !line.starts_with("# UNIT "))
        .filter_map(|line| match line.strip_prefix("# TYPE ") {
            Some(declared) => {
                let (name, kind) = declared.split_once(' ').unwrap_or((declared, ""));
                let known = rows().any(|row| row.name == name && row.kind.as_str() == kind);
                (!known).then(|| format!("{declared} is in no catalogue"))
            }
            None => deviation_of_sample(line, rows),
        })
        .collect();
    deviations.dedup();
    deviations
}

fn deviation_of_sample<'a, R: Iterator<Item = &'a Definition>>(
    line: &str,
    rows: impl Fn() -> R,
) -> Option<String> {
    let (name, mut labels) = split(line)?;
    labels.retain(|(label, _)| *label != "le");
    let Some(row) = rows().find(|row| is_sample_of(name, row)) else {
        return Some(format!("{name} is in no catalogue"));
    };
    let written: Vec<_> = labels.iter().map(|(label, _)| *label).collect();
    let named: Vec<_> = row.labels.iter().map(|label| label.name).collect();
    if written != named {
        return Some(format!("{name} has the labels {written:?}, and its row {named:?}"));
    }
    row.labels.iter().zip(&labels).find_map(|(label, (_, value))| match label.values {
        Values::Words(words) if !words.contains(&value.as_str()) => {
            Some(format!("{name} has {}={value:?}, which its row does not name", label.name))
        }
        Values::Words(_) | Values::NameOf(_) => None,
    })
}

fn is_sample_of(name: &str, row: &Definition) -> bool {
    match row.kind {
        Kind::Histogram => ["_bucket", "_sum", "_count"]
            .into_iter()
            .any(|suffix| name.strip_suffix(suffix).is_some_and(|stem| stem == row.name)),
        Kind::Counter | Kind::Gauge | Kind::Info => row.sample_name() == name,
    }
}

/// The name and the labels of a sample; None of a line that is none.
#[must_use]
pub fn split(line: &str) -> Option<(&str, Vec<(&str, String)>)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    while let Some(pair) = rest.strip_prefix(['{', ',']) {
        let (label, quoted) = pair.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        loop {
            match characters.next()? {
                (at, '"') => break rest = &quoted[at + 1..],
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    escaped => value.push(escaped),
                },
                (_, plain) => value.push(plain),
            }
        }
        labels.push((label, value));
    }
    Some((name, labels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::catalogue::{name_of, words};

    crate::catalogue! {
        CALLS: Counter "a_calls" [words("outcome", &["ok", "failed"]), name_of("stream", "stream")] "Calls";
        TIME: Histogram "a_time_seconds" [words("of", &["b"])] "Time";
    }

    #[test]
    fn only_what_the_catalogue_says_is_no_deviation() {
        let fine = "# HELP a_calls Calls.\n# TYPE a_calls counter\na_calls_total{outcome=\"ok\",stream=\"a\\\"b, {c\"} 1\n\
                    # TYPE a_time_seconds histogram\na_time_seconds_sum{of=\"b\"} 1\na_time_seconds_bucket{le=\"0.1\",of=\"b\"} 1 # {trace_id=\"1\"} 0.1\n# EOF\n";
        assert_eq!(deviations(fine, &[CATALOGUE]), [""; 0]);
        for (text, what) in [
            ("# TYPE a_calls gauge", "a_calls gauge is in no catalogue"),
            ("b 1", "b is in no catalogue"),
            ("a_calls{outcome=\"ok\",stream=\"a\"} 1", "a_calls is in no catalogue"),
            ("a_calls_total{outcome=\"ok\"} 1", "a_calls_total has the labels"),
            ("a_calls_total{outcome=\"late\",stream=\"a\"} 1", "outcome=\"late\""),
        ] {
            let found = deviations(text, &[CATALOGUE]);
            assert!(found.len() == 1 && found[0].contains(what), "{text}: {found:?}");
        }
    }

    #[test]
    fn a_sample_is_read_with_what_its_values_escape() {
        let labels = vec![("b", "c\"d\ne".to_owned()), ("f", String::new())];
        assert_eq!(split(r#"a{b="c\"d\ne",f=""} 1"#), Some(("a", labels)));
        assert_eq!(split("a 1"), Some(("a", Vec::new())));
        assert_eq!(split(""), None);
    }
}
