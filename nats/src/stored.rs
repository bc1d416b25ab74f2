//! One message exactly as its stream stores it, by MSG.GET in JSON, and whether the client can receive it at all.
//!
//! JetStream stores any header block and any bytes as a subject. The client (async-nats 0.51) closes its connection, or its task panics,
//! when it receives what it cannot parse; JSON carries the same message in base64.

use std::{borrow::Cow, str};

use async_nats::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;
use data_encoding::BASE64;
use jiff::Timestamp;
use serde::Deserialize;

/// A message as its stream stores it; it is read from a response to STREAM.MSG.GET.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Answer")]
pub struct StoredMessage {
    /// As JSON gives it: bytes that are not UTF-8 are U+FFFD.
    pub subject: String,
    /// Its number in the stream.
    pub sequence: u64,
    /// When it was stored, by the server's clock.
    pub time: Timestamp,
    /// From the version line on.
    pub header_block: Option<Bytes>,
    /// Its payload.
    pub payload: Bytes,
}

#[derive(Deserialize)]
struct Answer {
    message: Stored,
}

#[derive(Deserialize)]
struct Stored {
    subject: String,
    seq: u64,
    time: Timestamp,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
}

impl StoredMessage {
    /// Why the client closes its connection, or panics, when it receives this message; `None` if it can receive it.
    #[must_use]
    pub fn unparsable(&self) -> Option<String> {
        // The client splits the line of a message with headers at every kind of white space.
        let splits = self.header_block.is_some() && self.subject.contains(char::is_whitespace);
        let splits = || splits.then(|| "its subject has white space".to_owned());
        self.unnameable().or_else(splits).or_else(|| self.headers().err())
    }

    /// The same for a message whose subject is in a header, as DIRECT.GET sends it.
    #[must_use]
    pub fn unparsable_as_answer(&self) -> Option<String> {
        self.unnameable().or_else(|| self.headers().err())
    }

    fn unnameable(&self) -> Option<String> {
        self.subject.contains(char::REPLACEMENT_CHARACTER).then(|| "its subject is not UTF-8".to_owned())
    }

    /// Its headers as the client reads them.
    fn headers(&self) -> Result<HeaderMap, String> {
        let Some(block) = &self.header_block else { return Ok(HeaderMap::new()) };
        let text = str::from_utf8(block).map_err(|_| "its headers are not UTF-8")?;
        let mut headers = HeaderMap::new();
        for header in read_header_block(text)? {
            let (name, value) = header?;
            headers.append(name, value);
        }
        Ok(headers)
    }

    /// The headers that can be read, whatever the others are.
    #[must_use]
    pub fn readable_headers(&self) -> HeaderMap {
        let text = self.header_block.as_deref().map_or(Cow::Borrowed(""), String::from_utf8_lossy);
        let mut headers = HeaderMap::new();
        for (name, value) in read_header_block(&text).into_iter().flatten().flatten() {
            headers.append(name, value);
        }
        headers
    }
}

/// Reads a header block as the client does, up to the first error in a line.
fn read_header_block(
    text: &str,
) -> Result<impl Iterator<Item = Result<(HeaderName, HeaderValue), String>>, String> {
    let mut lines = text.lines().peekable();
    let version = lines.next().and_then(|line| line.strip_prefix("NATS/1.0"));
    let status = version.ok_or("its headers do not begin with NATS/1.0")?.trim();
    let status = status.split_once(' ').map_or(status, |(status, _)| status.trim());
    if !status.is_empty() && status.parse::<StatusCode>().is_err() {
        return Err(format!("its headers have the status {status:?}"));
    }
    Ok(std::iter::from_fn(move || {
        let line = lines.find(|line| !line.is_empty())?;
        let folded = std::iter::from_fn(|| lines.next_if(|line| line.starts_with(char::is_whitespace)));
        Some(read_header(line, folded))
    }))
}

/// Reads one header, whose value may continue in lines that begin with white space.
fn read_header<'a>(
    line: &str,
    folded: impl Iterator<Item = &'a str>,
) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) =
        line.split_once(':').ok_or_else(|| format!("its header line {line:?} has no colon"))?;
    let name: HeaderName = name.parse().map_err(|_| format!("its header name {name:?} is not allowed"))?;
    let mut value = value.trim_start().to_owned();
    value.extend(folded);
    let value = value.trim_end().parse();
    let value = value.map_err(|_| format!("its header {name} has a carriage return in its value"))?;
    Ok((name, value))
}

impl TryFrom<Answer> for StoredMessage {
    type Error = data_encoding::DecodeError;

    fn try_from(Answer { message }: Answer) -> Result<Self, Self::Error> {
        let Stored { subject, seq, time, hdrs, data } = message;
        let header_block = if hdrs.is_empty() { None } else { Some(BASE64.decode(hdrs.as_bytes())?.into()) };
        let payload = BASE64.decode(data.as_bytes())?.into();
        Ok(Self { subject, sequence: seq, time, header_block, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(subject: &str, block: Option<&[u8]>) -> StoredMessage {
        let header_block = block.map(Bytes::copy_from_slice);
        let (time, payload) = (Timestamp::UNIX_EPOCH, Bytes::new());
        StoredMessage { subject: subject.to_owned(), sequence: 1, time, header_block, payload }
    }

    #[test]
    fn what_the_client_parses_can_be_sent() {
        for block in [
            &b"NATS/1.0\r\nEvent-Type: a\r\n\r\n"[..],
            b"NATS/1.0\r\n\r\n",
            b"NATS/1.0 503\r\n\r\n",
            b"NATS/1.0 404 No Messages\r\nA:\r\nB: c\r\n folded\r\n\r\n",
            "NATS/1.0\r\nA: \u{fc}\r\n\r\n".as_bytes(),
        ] {
            assert_eq!(raw("a.b", Some(block)).unparsable(), None, "{block:?}");
        }
        assert_eq!(raw("a.\u{a0}b", None).unparsable(), None);
    }

    #[test]
    fn what_ends_the_connection_is_known_by_its_cause() {
        for (subject, block, why) in [
            ("a.\u{fffd}", None, "its subject is not UTF-8"),
            ("a.\u{a0}b", Some(&b"NATS/1.0\r\n\r\n"[..]), "its subject has white space"),
            ("a", Some(b"NATS/1.0\r\nX Trace: 1\r\n\r\n"), "its header name \"X Trace\" is not allowed"),
            ("a", Some(b"NATS/1.0\r\nX: caf\xe9\r\n\r\n"), "its headers are not UTF-8"),
            ("a", Some(b"NATS/1.0\r\nno colon\r\n\r\n"), "its header line \"no colon\" has no colon"),
            ("a", Some(b"NATS/1.0\r\nX: a\rb\r\n\r\n"), "its header X has a carriage return in its value"),
            ("a", Some(b"NATS/1.0 x\r\n\r\n"), "its headers have the status \"x\""),
            ("a", Some(b"HTTP/1.1\r\n\r\n"), "its headers do not begin with NATS/1.0"),
        ] {
            assert_eq!(raw(subject, block).unparsable().as_deref(), Some(why));
        }
        // A response of DIRECT.GET has its subject in a header.
        let answer = raw("a.\u{a0}b", Some(&b"NATS/1.0\r\n\r\n"[..])).unparsable_as_answer();
        assert_eq!(answer, None);
    }

    #[test]
    fn headers_are_read_as_the_client_reads_them_and_past_those_that_cannot_be() {
        let block = b"NATS/1.0\r\nA: b \r\n c\r\nX Trace: 1\r\n d\r\nE:f:g\r\nH: \xe9\r\n\r\n";
        let headers = raw("a", Some(block)).readable_headers();
        let read = |name: &'static str| headers.get(name).map(HeaderValue::as_str);
        assert_eq!([read("A"), read("E"), read("H")], [Some("b  c"), Some("f:g"), Some("\u{fffd}")]);
        assert_eq!(headers.len(), 3);
    }

    #[test]
    fn a_response_has_the_message_in_base64() {
        let read = |data: &str| {
            let time = "1970-01-01T00:00:00Z";
            serde_json::from_value::<StoredMessage>(serde_json::json!({
                "message": {"subject": "a", "seq": 1, "time": time, "hdrs": "TkFUUy8xLjANCg0K", "data": data}
            }))
        };
        let expected = StoredMessage { payload: "value".into(), ..raw("a", Some(b"NATS/1.0\r\n\r\n")) };
        assert_eq!(read("dmFsdWU=").unwrap(), expected);
        assert!(read("?").is_err());
    }
}
