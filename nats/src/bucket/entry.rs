//! What a key has, from a response of JetStream. Pure.

use async_nats::HeaderMap;
use bytes::Bytes;
use data_encoding::BASE64;
use serde::Deserialize;

/// Header of a message that deletes its key.
pub(super) const OPERATION_HEADER: &str = "KV-Operation";
/// Header of a message by which a server says that it removed the last one of a key.
const MARKER_HEADER: &str = "Nats-Marker-Reason";

/// What a key has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// This value.
    Value {
        /// Number of the write that stored it.
        revision: u64,
        /// The value.
        value: Bytes,
    },
    /// None: it was deleted by this write.
    Deleted {
        /// Number of that write.
        revision: u64,
    },
    /// None, and no write of it is known.
    Absent,
    /// There is no answer, and why.
    Unknown(String),
}

/// A response to STREAM.MSG.GET.
#[derive(Deserialize)]
pub(super) struct Answer {
    message: Stored,
}

#[derive(Deserialize)]
struct Stored {
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
}

impl Answer {
    pub(super) fn found(self) -> Found {
        let Stored { seq: revision, hdrs, data } = self.message;
        let (Ok(headers), Ok(value)) = (BASE64.decode(hdrs.as_bytes()), BASE64.decode(data.as_bytes()))
        else {
            return Found::Unknown("the response of JetStream is not in base64".to_owned());
        };
        let headers = String::from_utf8_lossy(&headers);
        let names = headers.lines().filter_map(|line| Some(line.split_once(':')?.0));
        if names.into_iter().any(is_deletion) {
            return Found::Deleted { revision };
        }
        Found::Value { revision, value: value.into() }
    }
}

/// Whether a message with these headers deletes its key.
pub(super) fn deletes(headers: &HeaderMap) -> bool {
    headers.iter().any(|(name, _)| is_deletion(name.as_ref()))
}

fn is_deletion(header: &str) -> bool {
    [OPERATION_HEADER, MARKER_HEADER].iter().any(|name| name.eq_ignore_ascii_case(header))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(headers: &str) -> Found {
        let message =
            Stored { seq: 7, hdrs: BASE64.encode(headers.as_bytes()), data: BASE64.encode(b"value") };
        Answer { message }.found()
    }

    #[test]
    fn a_message_that_says_so_deletes_its_key_and_any_other_has_its_value() {
        let value = Found::Value { revision: 7, value: "value".into() };
        assert_eq!([found(""), found("NATS/1.0\r\nNote: KV-Operation\r\n\r\n")], [value.clone(), value]);
        for header in ["KV-Operation: DEL", "KV-Operation: PURGE", "Nats-Marker-Reason: MaxAge"] {
            assert_eq!(found(&format!("NATS/1.0\r\n{header}\r\n\r\n")), Found::Deleted { revision: 7 });
        }
    }

    #[test]
    fn a_response_that_cannot_be_read_says_nothing() {
        let message = Stored { seq: 7, hdrs: String::new(), data: "?".to_owned() };
        assert!(matches!(Answer { message }.found(), Found::Unknown(_)));
    }
}
