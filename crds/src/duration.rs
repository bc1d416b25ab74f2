//! Durations as manifests write them: `500ms`, `30s`, `1h30m`, `5y`.

use std::{fmt, str::FromStr, time};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a duration must look like; the API server and the parser use the same pattern.
pub const PATTERN: &str = "^([0-9]+(ms|s|m|h|d|w|y))+$";

/// A span of time of whole milliseconds. JetStream holds at most 292 years ([`Duration::MAX`]); more is read all the same where a manifest
/// has it, since an object that cannot be read could not say what is wrong with it.
///
/// Units are `ms`, `s`, `m`, `h`, `d` (24 hours), `w` (7 days) and `y` (365 days), largest first by convention;
/// several add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub time::Duration);

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseDurationError {
    /// The text does not follow [`PATTERN`].
    #[error("{0:?} is no duration: write a number with a unit (ms, s, m, h, d, w, y), as in 500ms or 1h30m")]
    Malformed(String),
    /// The text names more than 292 years.
    #[error("{0:?} is too long: JetStream holds at most 292 years")]
    TooLong(String),
}

/// Units in descending order, each in milliseconds.
const UNITS: [(&str, u64); 7] = [
    ("y", 31_536_000_000),
    ("w", 604_800_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

impl Duration {
    /// The longest that JetStream holds: it counts nanoseconds in 63 bits.
    pub const MAX: Self = Self::from_millis(i64::MAX.unsigned_abs() / 1_000_000);

    /// A duration of whole seconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(time::Duration::from_secs(seconds))
    }

    /// A duration of whole milliseconds.
    #[must_use]
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(time::Duration::from_millis(milliseconds))
    }

    /// The duration in nanoseconds, as JetStream's configuration has it.
    #[must_use]
    pub fn as_nanos(self) -> i64 {
        i64::try_from(self.0.as_nanos()).unwrap_or(i64::MAX)
    }
}

impl From<Duration> for time::Duration {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

impl FromStr for Duration {
    type Err = ParseDurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = parse(text)?;
        if parsed > Self::MAX { Err(ParseDurationError::TooLong(text.to_owned())) } else { Ok(parsed) }
    }
}

/// Reads a text that follows [`PATTERN`], however long it is: what is beyond all bounds counts as the longest that can be said.
fn parse(text: &str) -> Result<Duration, ParseDurationError> {
    let malformed = || ParseDurationError::Malformed(text.to_owned());
    if text.is_empty() {
        return Err(malformed());
    }
    let mut milliseconds: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(malformed)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, next) = tail.split_at(letters);
        let (_, in_unit) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(malformed)?;
        if number.is_empty() {
            return Err(malformed());
        }
        // Digits that are no number are too many.
        let count: u64 = number.parse().unwrap_or(u64::MAX);
        milliseconds = milliseconds.saturating_add(count.saturating_mul(*in_unit));
        rest = next;
    }
    Ok(Duration::from_millis(milliseconds))
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, in_unit) in UNITS {
            // Weeks and years would make 30 days read as 4w2d.
            let whole_only = unit == "w" || unit == "y";
            if rest < in_unit || (whole_only && rest % in_unit != 0) {
                continue;
            }
            write!(f, "{}{unit}", rest / in_unit)?;
            rest %= in_unit;
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "resources")]
impl schemars::JsonSchema for Duration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": PATTERN, "maxLength": 32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read_and_several_add_up() {
        let read = |text: &str| text.parse::<Duration>().unwrap().0.as_millis();
        assert_eq!(read("250ms"), 250);
        assert_eq!(read("1h30m"), 5_400_000);
        assert_eq!(read("1d"), 86_400_000);
        assert_eq!(read("2w"), 1_209_600_000);
        assert_eq!(read("5y"), 157_680_000_000);
        assert_eq!(read("1m500ms"), 60_500);
    }

    #[test]
    fn what_is_no_duration_is_refused_with_the_text_and_the_units() {
        for text in ["", "5", "s", "5 s", "-1s", "1.5h", "1s2", "5min", "1µs"] {
            let error = text.parse::<Duration>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("500ms"), "{error}");
        }
    }

    #[test]
    fn more_than_jetstream_can_hold_is_refused() {
        assert!("292y".parse::<Duration>().is_ok());
        for text in ["293y", "99999999999999999999s", "18446744073709551615y"] {
            assert_eq!(text.parse::<Duration>(), Err(ParseDurationError::TooLong(text.to_owned())));
        }
    }

    #[test]
    fn in_a_manifest_more_is_read_as_what_the_pattern_takes() {
        let read = |text: &str| serde_json::from_value::<Duration>(serde_json::json!(text)).unwrap();
        assert_eq!(read("300y").to_string(), "300y");
        for text in ["300y", "99999999999999999999s", "18446744073709551615y1ms"] {
            assert!(read(text) > Duration::MAX, "{text}");
        }
        assert!(read("292y") < Duration::MAX);
        assert!(serde_json::from_value::<Duration>(serde_json::json!("5 parsecs")).is_err());
    }

    #[test]
    fn what_is_printed_reads_back_the_same() {
        for text in ["0s", "1ms", "30s", "1m30s", "1h30m", "30d", "1w", "5y", "1h500ms"] {
            assert_eq!(text.parse::<Duration>().unwrap().to_string(), text);
        }
        assert_eq!(Duration::from_millis(1_500).to_string(), "1s500ms");
    }
}
