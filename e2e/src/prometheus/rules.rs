//! The rules of the chart with each duration divided, so that a test need not wait for a quarter of an hour. Pure, but for reading the files.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Where the chart has its rules, seen from this crate.
const FILES: &str = "../charts/jetwright/files/alerts";
/// Keys of a rule that are durations.
const DURATIONS: [&str; 2] = ["for", "keep_firing_for"];
/// Milliseconds of each unit of PromQL that the rules have.
const UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 24 * 3_600_000)];

/// Files of rules as the chart has them, by name.
///
/// # Errors
///
/// When one cannot be read, or is no YAML.
pub fn of_chart() -> Result<BTreeMap<String, Value>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(crate::path(FILES)).context(FILES)? {
        let path = entry?.path();
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let rules = serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
        files.insert(name_of(&path), rules);
    }
    Ok(files)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A file of rules with every `for`, `keep_firing_for`, window and offset divided by this. What an expression has as a number of seconds
/// stays, such as the threshold of a delay.
///
/// # Errors
///
/// When something that should be a duration is none.
pub fn divided(rules: &Value, by: u64) -> Result<Value> {
    let mut rules = rules.clone();
    let groups = rules["groups"].as_array_mut().context("a file of rules has groups")?;
    for rule in groups.iter_mut().filter_map(|group| group["rules"].as_array_mut()).flatten() {
        let expression = rule["expr"].as_str().context("a rule has an expression")?;
        rule["expr"] = divided_expression(expression, by)?.into();
        for key in DURATIONS {
            if let Some(duration) = rule.get(key).and_then(Value::as_str) {
                rule[key] = divided_duration(duration, by)?.into();
            }
        }
    }
    Ok(rules)
}

/// In PromQL, durations are in brackets and behind the word `offset`; names of metrics may look like some, and so may texts and comments.
fn divided_expression(expression: &str, by: u64) -> Result<String> {
    let mut divided = String::new();
    let mut rest = expression;
    while let Some(start) = rest.find(['"', '\'', '`', '#', '[']) {
        let (plain, special) = rest.split_at(start);
        divided += &divided_offsets(plain, by)?;
        let opening = special.chars().next().unwrap_or_default();
        let closing = match opening {
            '#' => '\n',
            '[' => ']',
            quote => quote,
        };
        let end = special[1..].find(closing).map_or(special.len(), |end| end + 2);
        let (special, after) = special.split_at(end);
        if opening == '[' {
            let window = special.trim_start_matches('[').trim_end_matches(']');
            let parts: Result<Vec<_>> = window.split(':').map(|part| divided_duration(part, by)).collect();
            divided.extend(["[", &parts?.join(":"), "]"]);
        } else {
            divided += special;
        }
        rest = after;
    }
    Ok(divided + &divided_offsets(rest, by)?)
}

fn divided_offsets(plain: &str, by: u64) -> Result<String> {
    const OFFSET: &str = " offset ";
    let mut parts = plain.split(OFFSET);
    let mut divided = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|letter: char| !letter.is_ascii_alphanumeric()).unwrap_or(part.len());
        let (duration, after) = part.split_at(end);
        divided.extend([OFFSET, &divided_duration(duration, by)?, after]);
    }
    Ok(divided)
}

fn divided_duration(duration: &str, by: u64) -> Result<String> {
    let mut milliseconds = 0;
    let mut rest = duration;
    while !rest.is_empty() {
        let (number, after) = split_where(rest, |letter| !letter.is_ascii_digit());
        let (unit, after) = split_where(after, |letter| letter.is_ascii_digit());
        let Some((_, each)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            bail!("'{duration}' is no duration");
        };
        milliseconds += number.parse::<u64>().with_context(|| format!("'{duration}' is no duration"))? * each;
        rest = after;
    }
    ensure!(milliseconds >= by, "'{duration}' is too short to be divided by {by}");
    Ok(format!("{}ms", milliseconds / by))
}

fn split_where(text: &str, ends: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(ends).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn windows_and_offsets_are_divided_and_nothing_else() {
        for (expression, divided) in [
            ("rate(x[5m])", "rate(x[5000ms])"),
            ("x offset 30m and y\noffset_1h > 1", "x offset 30000ms and y\noffset_1h > 1"),
            ("(a[1d] offset 15m) / b:increase_1h", "(a[1440000ms] offset 15000ms) / b:increase_1h"),
            ("max_over_time(x[1h30m:1m])", "max_over_time(x[90000ms:1000ms])"),
            (
                r#"label_replace(x, "a", "$1", "b", "[1h] offset 1h")"#,
                r#"label_replace(x, "a", "$1", "b", "[1h] offset 1h")"#,
            ),
            ("x[1h] > 30 # [1h] at most\nand y[1m]", "x[60000ms] > 30 # [1h] at most\nand y[1000ms]"),
            ("predict_linear(x[6h], 24 * 3600) # last", "predict_linear(x[360000ms], 24 * 3600) # last"),
        ] {
            assert_eq!(divided_expression(expression, 60).unwrap(), divided);
        }
    }

    #[test]
    fn a_rule_keeps_all_but_its_durations() {
        let rule = json!({"alert": "A", "expr": "x[2m] > 1", "for": "15m", "keep_firing_for": "1h", "labels": {"severity": "info"}});
        let rules = json!({"groups": [{"name": "g", "rules": [rule, {"record": "r:5m", "expr": "y"}]}]});
        let expected = json!({"alert": "A", "expr": "x[2000ms] > 1", "for": "15000ms", "keep_firing_for": "60000ms", "labels": {"severity": "info"}});
        let found = divided(&rules, 60).unwrap();
        assert_eq!(
            found,
            json!({"groups": [{"name": "g", "rules": [expected, {"record": "r:5m", "expr": "y"}]}]})
        );
    }

    #[test]
    fn every_rule_of_the_chart_can_be_divided() {
        let files = of_chart().unwrap();
        assert!(files.len() >= 4, "{:?}", files.keys());
        for (name, rules) in files {
            let divided = divided(&rules, 60).unwrap().to_string();
            let windows: Vec<_> =
                divided.split('[').skip(1).filter_map(|after| after.split(']').next()).collect();
            let durations =
                windows.iter().filter(|window| window.starts_with(|letter: char| letter.is_ascii_digit()));
            assert!(durations.clone().count() > 3, "{name}: {windows:?}");
            assert!(durations.clone().all(|window| window.ends_with("ms")), "{name}: {windows:?}");
        }
    }

    #[test]
    fn what_is_no_duration_is_told() {
        for wrong in ["x[5]", "x[soon]", "x offset 3q", "x[10ms]"] {
            assert!(divided_expression(wrong, 60).is_err(), "{wrong}");
        }
    }
}
