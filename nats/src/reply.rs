//! What a reply to a request means: a final result, or a reason to repeat the request. In: the reply, or why there is none. Pure.

use std::borrow::Cow;

use async_nats::{PublishError, PublishErrorKind};
use bytes::Bytes;
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    jetstream_error::{Disposition, JetStreamError, STREAM_NOT_MATCH},
    mux::NoReply,
    violation::Violation,
};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// JetStream responded with an error that repeating does not change.
    #[error(transparent)]
    Refused(JetStreamError),
    /// A stream other than the expected one responded to a publish.
    #[error(
        "stream {stream} has this subject and is not the expected one, so nothing was stored; remove the subject from it ({error})"
    )]
    WrongStream {
        /// Name of the stream that responded.
        stream: String,
        /// Its response.
        error: JetStreamError,
    },
    /// The servers do not permit it. If only the reply is not permitted, the request may have been executed.
    #[error(transparent)]
    NotPermitted(Violation),
    /// The client refuses it, for example because it is too large.
    #[error(transparent)]
    NotSent(PublishError),
    /// There was no final response in time, and why. The request may have been executed.
    #[error("{0}")]
    Unavailable(Cow<'static, str>),
}

impl RequestError {
    /// What a caller can do about it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Refused(error) => error.disposition(),
            Self::Unavailable(_) | Self::NotPermitted(Violation::Subscribe(_)) => Disposition::Unavailable,
            Self::WrongStream { .. } | Self::NotSent(_) | Self::NotPermitted(Violation::Publish(_)) => {
                Disposition::Refused
            }
        }
    }
}

/// What a reply means.
pub(crate) enum Reply<T> {
    Final(Result<T, RequestError>),
    /// The request is worth repeating, and why there is no final response.
    Retry(Cow<'static, str>),
}

/// Reads a reply to a request that may be repeated.
pub(crate) fn interpret<T: DeserializeOwned>(reply: Result<Bytes, NoReply>) -> Reply<T> {
    match reply.map(|reply| read(&reply)) {
        Ok(Ok(Ok(answer))) => Reply::Final(Ok(answer)),
        Ok(Ok(Err(refusal))) => refused(refusal),
        Ok(Err(error)) => Reply::Retry(format!("failed to read JetStream's response: {error}").into()),
        Err(no_reply) => match retry_reason(no_reply) {
            Ok(reason) => Reply::Retry(reason),
            Err(error) => Reply::Final(Err(error)),
        },
    }
}

fn refused<T>(Refusal { error, stream }: Refusal) -> Reply<T> {
    if error.disposition() == Disposition::Retry {
        return Reply::Retry(error.to_string().into());
    }
    Reply::Final(Err(match stream {
        Some(stream) if error.err_code == STREAM_NOT_MATCH => RequestError::WrongStream { stream, error },
        _ => RequestError::Refused(error),
    }))
}

/// An error response of JetStream.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) error: JetStreamError,
    /// The stream that responds, if the request was a publish.
    stream: Option<String>,
}

/// Reads a response of JetStream. The refusal of a write has the fields of a success too, so an error is looked for first, if there
/// may be one.
pub(crate) fn read<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<Result<T, Refusal>> {
    #[derive(Deserialize)]
    struct Answer {
        error: Option<JetStreamError>,
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

/// Why a request is worth repeating; an error if it is not.
fn retry_reason(no_reply: NoReply) -> Result<Cow<'static, str>, RequestError> {
    match no_reply {
        NoReply::NotSent(error) if error.kind() != PublishErrorKind::Send => {
            Err(RequestError::NotSent(error))
        }
        NoReply::Forbidden(violation) => Err(RequestError::NotPermitted(violation)),
        passing => Ok(passing.to_string().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interpreted(answer: &str) -> String {
        match interpret::<serde_json::Value>(Ok(Bytes::copy_from_slice(answer.as_bytes()))) {
            Reply::Final(Ok(answer)) => format!("answer: {answer}"),
            Reply::Final(Err(error)) => format!("{:?}: {error}", error.disposition()),
            Reply::Retry(why) => format!("retry: {why}"),
        }
    }

    #[test]
    fn a_stream_that_is_not_the_expected_one_is_named() {
        let refused = r#"{"error":{"code":400,"err_code":10060,"description":"expected stream does not match"},"stream":"thief","seq":0}"#;
        let error = interpreted(refused);
        assert!(error.starts_with("Refused: stream thief has this subject"), "{error}");
    }

    #[test]
    fn what_the_servers_do_not_permit_is_final_and_may_have_been_executed_where_only_the_reply_is_denied() {
        let disposition = |violation| match interpret::<()>(Err(NoReply::Forbidden(violation))) {
            Reply::Final(Err(error)) => Some(error.disposition()),
            Reply::Final(Ok(())) | Reply::Retry(_) => None,
        };
        assert_eq!(disposition(Violation::Publish("a".to_owned())), Some(Disposition::Refused));
        assert_eq!(disposition(Violation::Subscribe("b".to_owned())), Some(Disposition::Unavailable));
        assert!(matches!(interpret::<()>(Err(NoReply::Lost)), Reply::Retry(_)));
    }

    #[test]
    fn an_answer_is_an_answer_an_error_or_worth_another_request() {
        assert_eq!(interpreted(r#"{"stream":"\"error\""}"#), r#"answer: {"stream":"\"error\""}"#);
        let error = |code, number| {
            interpreted(&format!(
                r#"{{"error":{{"code":{code},"err_code":{number},"description":"x"}},"stream":"s"}}"#
            ))
        };
        assert!(error(429, 10_167).starts_with("retry: "), "{}", error(429, 10_167));
        assert!(error(400, 10_071).starts_with("Conflict: "), "{}", error(400, 10_071));
        assert!(interpreted("{").starts_with("retry: failed to read"), "{}", interpreted("{"));
    }
}
