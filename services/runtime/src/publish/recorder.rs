//! What a publisher of a test stores, in memory. In: messages as they would be sent. Out: what a stream of one replica answers. No I/O.

use std::collections::VecDeque;

use async_nats::{HeaderMap, HeaderName, HeaderValue, header, message::OutboundMessage};
use bytes::Bytes;
use jetwright_nats::{JetStreamError, RequestError, jetstream_error::WRONG_LAST_SEQUENCE};
use parking_lot::{Mutex, MutexGuard};

use crate::{event::EXPECTED_SUBJECT, subject::matches};

/// Stores messages in memory.
#[derive(Debug, Default)]
pub(crate) struct Recorder(Mutex<Recording>);

#[derive(Debug, Default)]
struct Recording {
    messages: Vec<RecordedMessage>,
    /// How publishes fail, and how many of them.
    faults: VecDeque<(usize, Fault)>,
}

/// A message that was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordedMessage {
    pub(crate) stream: String,
    pub(crate) subject: String,
    pub(crate) sequence: u64,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
}

/// Where a message is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) stream: String,
    pub(super) sequence: u64,
    pub(super) duplicate: bool,
}

/// How a publish fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing is stored.
    Unavailable,
    /// The message is stored, and the answer is lost.
    AnswerLost,
}

impl Recorder {
    /// The next publishes, so many after those that fail already, fail in this way.
    pub(crate) fn fail_next(&self, times: usize, fault: Fault) {
        self.recording().faults.push_back((times, fault));
    }

    /// Everything that was stored, in its order.
    pub(crate) fn messages(&self) -> Vec<RecordedMessage> {
        self.recording().messages.clone()
    }

    /// Stores a message. `stream` is the stream that is expected to store it.
    pub(super) fn store(
        &self,
        stream: Option<&str>,
        message: OutboundMessage,
    ) -> Result<Stored, RequestError> {
        let mut recording = self.recording();
        match recording.next_fault() {
            None => recording.store(stream, message),
            Some(Fault::Unavailable) => {
                Err(RequestError::Unavailable("the test has this publish fail".into()))
            }
            Some(Fault::AnswerLost) => {
                recording.store(stream, message)?;
                Err(RequestError::Unavailable("the test loses the answer to this publish".into()))
            }
        }
    }

    fn recording(&self) -> MutexGuard<'_, Recording> {
        self.0.lock()
    }
}

impl Recording {
    fn next_fault(&mut self) -> Option<Fault> {
        self.faults.retain(|(times, _)| *times > 0);
        let (times, fault) = self.faults.front_mut()?;
        *times -= 1;
        Some(*fault)
    }

    /// As a server does it for a stream of one replica: the expected sequence is compared before the message id is looked for.
    fn store(&mut self, stream: Option<&str>, message: OutboundMessage) -> Result<Stored, RequestError> {
        let OutboundMessage { subject, payload, headers, .. } = message;
        let (subject, headers) = (subject.to_string(), headers.unwrap_or_default());
        let stream = stream.unwrap_or_else(|| first_token(&subject)).to_owned();
        self.compare_sequence(&subject, &headers)?;
        if let Some(id) = headers.get(header::NATS_MESSAGE_ID)
            && let Some(sequence) = self.find(&stream, id)
        {
            return Ok(Stored { stream, sequence, duplicate: true });
        }
        let sequence = self.next_sequence();
        self.messages.push(RecordedMessage { stream: stream.clone(), subject, sequence, headers, payload });
        Ok(Stored { stream, sequence, duplicate: false })
    }

    /// # Errors
    ///
    /// The message expects another sequence to be the newest of its subject, or of its filter.
    fn compare_sequence(&self, subject: &str, headers: &HeaderMap) -> Result<(), RequestError> {
        let Some(expected) = headers.get(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE) else { return Ok(()) };
        let filter = headers.get(HeaderName::from_static(EXPECTED_SUBJECT));
        let filter = filter.map_or(subject, HeaderValue::as_str);
        let last = self.messages.iter().rev().find(|stored| matches(filter, &stored.subject));
        let last = last.map_or(0, |stored| stored.sequence);
        if expected.as_str() == last.to_string() {
            return Ok(());
        }
        let description = format!("wrong last sequence: {last}");
        Err(RequestError::Refused(JetStreamError { code: 400, err_code: WRONG_LAST_SEQUENCE, description }))
    }

    fn find(&self, stream: &str, id: &HeaderValue) -> Option<u64> {
        let is_same = |stored: &&RecordedMessage| {
            stored.stream == stream && stored.headers.get(header::NATS_MESSAGE_ID) == Some(id)
        };
        self.messages.iter().find(is_same).map(|stored| stored.sequence)
    }

    /// One count for all streams: sequences of a stream may have gaps.
    fn next_sequence(&self) -> u64 {
        self.messages.last().map_or(1, |last| last.sequence + 1)
    }
}

/// The stream of a subject where none is named.
fn first_token(subject: &str) -> &str {
    subject.split('.').next().unwrap_or(subject)
}
