//! In: a registry. Out: its text as the body of a response, compressed for who takes that: with thousands of objects it has tens of megabytes,
//! of which one in ten or twenty is left, and it never exists whole.

use std::{
    fmt,
    io::{self, Write},
};

use flate2::{Compression, write::GzEncoder};
use prometheus_client::{encoding::text::encode, registry::Registry};

/// The text.
///
/// # Errors
///
/// A metric cannot be written.
pub(crate) fn plain(registry: &Registry) -> Result<Vec<u8>, fmt::Error> {
    let mut text = String::new();
    encode(&mut text, registry)?;
    Ok(text.into_bytes())
}

/// The text, compressed by gzip.
///
/// # Errors
///
/// A metric cannot be written.
pub(crate) fn gzip(registry: &Registry) -> Result<Vec<u8>, fmt::Error> {
    let mut text = Text(io::BufWriter::new(GzEncoder::new(Vec::new(), Compression::fast())));
    encode(&mut text, registry)?;
    let compressed = text.0.into_inner().map_err(|_| fmt::Error)?;
    compressed.finish().map_err(|_| fmt::Error)
}

/// Whether an Accept-Encoding header takes gzip.
pub(crate) fn takes_gzip(accepted: &str) -> bool {
    accepted.split(',').any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let refused = weight.trim().strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0));
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

/// Text written as bytes.
struct Text<W>(W);

impl<W: Write> fmt::Write for Text<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write_all(text.as_bytes()).map_err(|_| fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn the_compressed_text_is_the_text() {
        let mut registry = Registry::default();
        registry.register("calls", "Calls", prometheus_client::metrics::counter::Counter::<u64>::default());
        let (plain, compressed) = (plain(&registry).unwrap(), gzip(&registry).unwrap());
        let mut text = Vec::new();
        GzDecoder::new(compressed.as_slice()).read_to_end(&mut text).unwrap();
        assert_eq!(text, plain);
        assert!(text.ends_with(b"# EOF\n"));
    }

    #[test]
    fn gzip_is_for_who_takes_it() {
        for takes in ["gzip", "deflate, gzip;q=0.5", "GZIP"] {
            assert!(takes_gzip(takes), "{takes}");
        }
        for takes_not in ["", "identity", "gzip;q=0", "br"] {
            assert!(!takes_gzip(takes_not), "{takes_not}");
        }
    }
}
