//! What a key has, from a message as the bucket stores it. Pure.

use async_nats::HeaderMap;
use bytes::Bytes;

use crate::stored::StoredMessage;

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

/// A change of a key.
pub(super) enum Change {
    Value(Bytes),
    Deletion,
}

impl Change {
    /// What a message with these headers and this payload does to its key.
    pub(super) fn of(headers: Option<&HeaderMap>, payload: Bytes) -> Self {
        let names = headers.into_iter().flat_map(|headers| headers.iter().map(|(name, _)| name));
        let is_deletion = |header: &str| {
            [OPERATION_HEADER, MARKER_HEADER].iter().any(|name| name.eq_ignore_ascii_case(header))
        };
        if names.into_iter().any(|name| is_deletion(name.as_ref())) {
            Self::Deletion
        } else {
            Self::Value(payload)
        }
    }

    /// The same of a message whose headers may be such that some cannot be read.
    pub(super) fn stored(message: &StoredMessage) -> Self {
        Self::of(Some(&message.readable_headers()), message.payload.clone())
    }
}

impl From<StoredMessage> for Found {
    fn from(message: StoredMessage) -> Self {
        let revision = message.sequence;
        match Change::stored(&message) {
            Change::Value(value) => Self::Value { revision, value },
            Change::Deletion => Self::Deleted { revision },
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn found(headers: &str) -> Found {
        let header_block = (!headers.is_empty()).then(|| Bytes::copy_from_slice(headers.as_bytes()));
        let (subject, time) = ("$KV.b.a".to_owned(), Timestamp::UNIX_EPOCH);
        StoredMessage { subject, sequence: 7, time, header_block, payload: "value".into() }.into()
    }

    #[test]
    fn a_message_that_says_so_deletes_its_key_and_any_other_has_its_value() {
        let value = Found::Value { revision: 7, value: "value".into() };
        for headers in ["", "NATS/1.0\r\nNote: KV-Operation\r\n\r\n", "NATS/1.0\r\nX Trace: 1\r\n\r\n"] {
            assert_eq!(found(headers), value);
        }
        for header in ["KV-Operation: DEL", "kv-operation: PURGE", "X Trace: 1\r\nNats-Marker-Reason: MaxAge"]
        {
            assert_eq!(found(&format!("NATS/1.0\r\n{header}\r\n\r\n")), Found::Deleted { revision: 7 });
        }
    }
}
