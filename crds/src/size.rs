//! Sizes in bytes as manifests write them: `512`, `100Mi`, `2G`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What a size must look like; the API server and the parser use the same pattern.
pub const PATTERN: &str = "^[0-9]+(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$";

/// A number of bytes. JetStream counts at most 2^63 - 1 ([`Size::MAX`]); more is read all the same where a manifest has it, since an object
/// that cannot be read could not say what is wrong with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Why a text is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseSizeError {
    /// The text does not follow [`PATTERN`].
    #[error(
        "{0:?} is no size: write bytes, or a whole number with a unit (Ki, Mi, Gi, Ti, Pi, k, M, G, T, P), as in 100Gi"
    )]
    Malformed(String),
    /// The text names more than 2^63 - 1 bytes.
    #[error("{0:?} is too large: JetStream counts at most 2^63 - 1 bytes")]
    TooLarge(String),
}

/// Units with their factors.
const UNITS: [(&str, u64); 10] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
];

impl Size {
    /// The most that JetStream counts.
    pub const MAX: Self = Self(i64::MAX.unsigned_abs());

    /// The size as JetStream's configuration has it.
    #[must_use]
    pub fn as_i64(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }
}

impl FromStr for Size {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = parse(text)?;
        if parsed > Self::MAX { Err(ParseSizeError::TooLarge(text.to_owned())) } else { Ok(parsed) }
    }
}

/// Reads a text that follows [`PATTERN`], however large it is: what is beyond all bounds counts as the largest that can be said.
fn parse(text: &str) -> Result<Size, ParseSizeError> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    let factor = if unit.is_empty() { Some(1) } else { factor };
    let (Some(factor), false) = (factor, number.is_empty()) else {
        return Err(ParseSizeError::Malformed(text.to_owned()));
    };
    // Digits that are no number are too many.
    Ok(Size(number.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(factor)))
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = UNITS[..5].iter().rev().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor));
        match binary {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u64),
            Text(String),
        }
        match Raw::deserialize(deserializer)? {
            Raw::Number(bytes) => Ok(Self(bytes)),
            Raw::Text(text) => parse(&text).map_err(de::Error::custom),
        }
    }
}

impl schemars::JsonSchema for Size {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        // The pattern is for texts, the minimum for bare numbers.
        schemars::json_schema!({
            "x-kubernetes-int-or-string": true, "pattern": PATTERN, "maxLength": 20, "minimum": 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_every_unit_are_read() {
        let read = |text: &str| text.parse::<Size>().unwrap().0;
        assert_eq!(read("0"), 0);
        assert_eq!(read("512"), 512);
        assert_eq!(read("1Ki"), 1024);
        assert_eq!(read("100Gi"), 107_374_182_400);
        assert_eq!(read("2G"), 2_000_000_000);
    }

    #[test]
    fn a_bare_number_of_yaml_is_bytes() {
        assert_eq!(serde_saphyr::from_str::<Size>("1048576").unwrap(), Size(1 << 20));
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_text() {
        for text in ["", "Gi", "1.5Gi", "-1", "1 Gi", "1GiB", "1K"] {
            assert_eq!(text.parse::<Size>(), Err(ParseSizeError::Malformed(text.to_owned())));
        }
        for text in ["9223372036854775808", "8192Pi", "99999999999999999999"] {
            assert_eq!(text.parse::<Size>(), Err(ParseSizeError::TooLarge(text.to_owned())));
        }
    }

    #[test]
    fn in_a_manifest_more_is_read_as_what_the_pattern_takes() {
        let read = |value: serde_json::Value| serde_json::from_value::<Size>(value).unwrap();
        assert_eq!(read(serde_json::json!("8192Pi")).to_string(), "8192Pi");
        for text in ["8192Pi", "99999999999999999999", "9999999999999999999P"] {
            assert!(read(serde_json::json!(text)) > Size::MAX, "{text}");
        }
        assert_eq!(read(serde_json::json!(i64::MAX)), Size::MAX);
        assert!(serde_json::from_value::<Size>(serde_json::json!("much")).is_err());
    }

    #[test]
    fn what_is_printed_reads_back_the_same() {
        for text in ["0", "1000", "1Ki", "3Mi", "100Gi"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
    }
}
