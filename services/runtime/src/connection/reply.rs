//! What a reply to a request means: a final result, or a reason to repeat the request. In: the reply, or why there is none. Pure.

use std::borrow::Cow;

use async_nats::{PublishErrorKind, jetstream};
use bytes::Bytes;
use jetwright_nats::Violation;
use serde::{Deserialize, de::DeserializeOwned};

use super::RequestError;
use crate::{
    Error, ErrorKind,
    error::{Disposition, classify},
    requests::NoReply,
};

/// What a reply means.
pub(super) enum Reply<T> {
    Final(Result<T, RequestError>),
    /// The request is worth repeating, and why there is no final answer.
    Retry(Cow<'static, str>),
}

/// Reads a reply. `object` is what the request is about, for the error.
pub(super) fn judge<T: DeserializeOwned>(reply: Result<Bytes, NoReply>, object: &str) -> Reply<T> {
    match reply.map(|reply| read(&reply)) {
        Ok(Ok(Ok(answer))) => Reply::Final(Ok(answer)),
        Ok(Ok(Err(refusal))) => refused(refusal, object),
        Ok(Err(error)) => Reply::Retry(format!("failed to read JetStream's answer: {error}").into()),
        Err(no_reply) => match retry_reason(no_reply, object) {
            Ok(why) => Reply::Retry(why),
            Err(error) => Reply::Final(Err(RequestError::Other(error))),
        },
    }
}

fn refused<T>(Refusal { error, stream }: Refusal, object: &str) -> Reply<T> {
    if classify(&error) == Disposition::Retry {
        return Reply::Retry(error.to_string().into());
    }
    Reply::Final(Err(match stream {
        Some(stream) if error.error_code() == jetstream::ErrorCode::STREAM_NOT_MATCH => {
            let reason = format!(
                "stream {stream} has this subject and is not the expected one, so nothing was stored; remove the subject from it ({error})"
            );
            RequestError::Other(Error::new(ErrorKind::Refused, object, reason))
        }
        _ => RequestError::Refused(error),
    }))
}

/// An answer of JetStream that is an error.
struct Refusal {
    error: jetstream::Error,
    /// The stream that answers, where it was a publish.
    stream: Option<String>,
}

/// Reads an answer of JetStream. The refusal of a write has the fields of an answer too, so an error is looked for first, where there
/// may be one.
fn read<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<Result<T, Refusal>> {
    #[derive(Deserialize)]
    struct Answer {
        error: Option<jetstream::Error>,
        stream: Option<String>,
    }
    const ERROR: &[u8] = b"\"error\"";
    if json.windows(ERROR.len()).any(|part| part == ERROR)
        && let Answer { error: Some(error), stream } = serde_json::from_slice(json)?
    {
        return Ok(Err(Refusal { error, stream }));
    }
    serde_json::from_slice(json).map(Ok)
}

/// Why a request is worth repeating; an error where it is not.
fn retry_reason(no_reply: NoReply, object: &str) -> Result<Cow<'static, str>, Error> {
    Ok(match no_reply {
        NoReply::NotConnected => "NATS is not connected".into(),
        NoReply::Lost => "the connection to NATS was lost".into(),
        NoReply::Silence => "NATS does not answer".into(),
        NoReply::NoResponders => "no stream takes it".into(),
        NoReply::NotSent(error) if error.kind() == PublishErrorKind::Send => error.to_string().into(),
        NoReply::NotSent(error) => return Err(Error::new(ErrorKind::Refused, object, error)),
        NoReply::Forbidden(violation) => {
            // Where only the reply is not permitted, the request may have been executed.
            let kind = match violation {
                Violation::Publish(_) => ErrorKind::Refused,
                Violation::Subscribe(_) => ErrorKind::Unavailable,
            };
            return Err(Error::new(kind, object, violation));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(answer: &str) -> String {
        match judge::<serde_json::Value>(Ok(Bytes::copy_from_slice(answer.as_bytes())), "orders.1") {
            Reply::Final(Ok(answer)) => format!("answer: {answer}"),
            Reply::Final(Err(error)) => error.into_error("orders.1").to_string(),
            Reply::Retry(why) => format!("retry: {why}"),
        }
    }

    #[test]
    fn a_stream_that_is_not_the_expected_one_is_named() {
        let refused = r#"{"error":{"code":400,"err_code":10060,"description":"expected stream does not match"},"stream":"thief","seq":0}"#;
        let error = judged(refused);
        assert!(error.starts_with("orders.1: refused: stream thief has this subject"), "{error}");
    }

    #[test]
    fn an_answer_is_an_answer_an_error_or_worth_another_request() {
        assert_eq!(judged(r#"{"stream":"\"error\""}"#), r#"answer: {"stream":"\"error\""}"#);
        let error = |code, number| {
            judged(&format!(
                r#"{{"error":{{"code":{code},"err_code":{number},"description":"x"}},"stream":"s"}}"#
            ))
        };
        assert!(error(429, 10_167).starts_with("retry: "), "{}", error(429, 10_167));
        assert!(error(400, 10_071).starts_with("orders.1: conflict: "), "{}", error(400, 10_071));
        assert!(judged("{").starts_with("retry: failed to read"), "{}", judged("{"));
    }
}
