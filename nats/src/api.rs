//! JetStream's API: requests and responses as JSON, each sent once and with a timeout. Does I/O and decides nothing.
//!
//! The types of async-nats drop unknown fields, so that reading, changing and writing back would remove newer settings. Here
//! configurations are what the caller can write, and responses what the caller reads of them.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json, value::RawValue};

use crate::{
    api_span,
    connection::Connection,
    jetstream_error::{
        CLUSTER_NOT_AVAILABLE, CONSUMER_NOT_FOUND, CONSUMER_OFFLINE, JetStreamError, STREAM_NOT_FOUND,
        STREAM_OFFLINE,
    },
    mux::NoReply,
    reply::read,
    violation::Violation,
};

/// Minimum timeout of a list request: with a server down the cluster takes 4 s to answer one.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest name of a stream or consumer (JSMaxNameLen of nats-server).
const MAX_NAME_BYTES: usize = 255;
/// Longest part of an invalid name that an error has.
const MAX_TOLD_CHARS: usize = 80;

/// Why a request to JetStream failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No response: NATS or JetStream is unavailable, or slow. The request may have been executed all the same.
    #[error("JetStream did not answer {subject}: {why}")]
    Unanswered {
        /// Subject of the request.
        subject: String,
        /// What happened instead.
        why: String,
    },
    /// The servers do not permit this program's user to send the request.
    #[error("{violation}")]
    NotPermitted {
        /// What is not permitted.
        violation: Violation,
    },
    /// No stream or consumer can have this name; nothing was sent. As part of a subject it could address something else, and a server ends
    /// the connection at one that is too long.
    #[error(
        "JetStream takes no name such as {name:?}: 1 to {MAX_NAME_BYTES} bytes without dots, blanks, '*' and '>'"
    )]
    InvalidName {
        /// The name, or its beginning.
        name: String,
    },
    /// JetStream responded with an error.
    #[error("JetStream refused: {} ({}/{})", error.description, error.code, error.err_code)]
    Refused {
        /// Subject of the request.
        subject: String,
        /// What it responded with.
        error: JetStreamError,
    },
    /// The response is not of the expected form.
    #[error("failed to read the response to {subject}")]
    Malformed {
        /// Subject of the request.
        subject: String,
        /// Why reading failed.
        source: serde_json::Error,
    },
}

impl ApiError {
    /// Whether the stream or consumer does not exist, as JetStream says, or as its name does.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::InvalidName { .. })
            || matches!(self.err_code(), Some(STREAM_NOT_FOUND | CONSUMER_NOT_FOUND))
    }

    /// Whether JetStream is away, as far as this request can tell: nobody answered, or a server answered that nobody leads what was asked for.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Unanswered { .. } => true,
            Self::Refused { error, .. } => {
                [CLUSTER_NOT_AVAILABLE, STREAM_OFFLINE, CONSUMER_OFFLINE].contains(&error.err_code)
            }
            Self::InvalidName { .. } | Self::NotPermitted { .. } | Self::Malformed { .. } => false,
        }
    }

    /// How a request ended, in one word for metrics and spans.
    #[must_use]
    pub fn outcome(error: Option<&Self>) -> &'static str {
        match error {
            None => "ok",
            Some(error) if error.is_absence() => "not_found",
            Some(Self::Refused { .. } | Self::InvalidName { .. } | Self::NotPermitted { .. }) => "refused",
            Some(Self::Unanswered { .. }) => "unanswered",
            Some(Self::Malformed { .. }) => "malformed",
        }
    }

    /// JetStream's error code, if it responded with one.
    #[must_use]
    pub fn err_code(&self) -> Option<u64> {
        match self {
            Self::Refused { error, .. } => Some(error.err_code),
            Self::Unanswered { .. }
            | Self::InvalidName { .. }
            | Self::NotPermitted { .. }
            | Self::Malformed { .. } => None,
        }
    }
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<I> {
    /// What is on it; less than there is where servers did not respond.
    pub items: Vec<I>,
    /// Names of those whose servers did not.
    pub missing: Vec<String>,
    /// Most that a page has, as the server says; 0 where it does not.
    pub limit: usize,
    /// How many there are on all pages, as the server says.
    pub total: usize,
}

/// Called with the verb of each request, and with its error if it failed. The verb is that of the subject, but for updates of consumers:
/// `CONSUMER.UPDATE`, although JetStream takes them as `CONSUMER.CREATE`.
type Observe = dyn Fn(&'static str, Option<&ApiError>) + Send + Sync;

/// JetStream's API over one connection. Responses are read into the caller's types. Clones share the connection.
#[derive(Clone)]
pub struct Api {
    connection: Connection,
    timeout: Duration,
    list_timeout: Duration,
    observe: Arc<Observe>,
}

impl Api {
    /// An API that waits for each response for at most `timeout`, and calls `observe` with the verb of each request and its error.
    #[must_use]
    pub fn new(
        connection: &Connection,
        timeout: Duration,
        observe: impl Fn(&'static str, Option<&ApiError>) + Send + Sync + 'static,
    ) -> Self {
        let list_timeout = timeout.max(LIST_TIMEOUT);
        Self { connection: connection.clone(), timeout, list_timeout, observe: Arc::new(observe) }
    }

    /// The same, with another observer.
    #[must_use]
    pub fn observed(
        &self,
        observe: impl Fn(&'static str, Option<&ApiError>) + Send + Sync + 'static,
    ) -> Self {
        Self { observe: Arc::new(observe), ..self.clone() }
    }

    /// The same connection, with one timeout for all requests, lists too, and with another observer.
    #[must_use]
    pub fn with_timeout(
        &self,
        timeout: Duration,
        observe: impl Fn(&'static str, Option<&ApiError>) + Send + Sync + 'static,
    ) -> Self {
        Self { timeout, list_timeout: timeout, observe: Arc::new(observe), ..self.clone() }
    }

    /// The stream of this name, or `None` if JetStream says that it does not exist.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses.
    pub async fn stream_info<I: DeserializeOwned>(&self, name: &str) -> Result<Option<I>, ApiError> {
        absent_is_none(self.request("STREAM.INFO", &[name], &json!({})).await)
    }

    /// How many subjects that match a filter have messages in a stream, or `None` if JetStream says that it does not exist.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses.
    pub async fn subject_count(&self, stream: &str, filter: &str) -> Result<Option<u64>, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            total: u64,
        }
        // A page beyond the end brings the total without the subjects.
        let body = json!({ "subjects_filter": filter, "offset": i32::MAX });
        let answer: Result<Answer, _> = self.request("STREAM.INFO", &[stream], &body).await;
        absent_is_none(answer.map(|answer| answer.total))
    }

    /// One page of streams with their configurations and states, at most 256. Those whose servers did not answer are named alone, although
    /// JetStream lists some of them with an empty state.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses.
    pub async fn list_streams<I: DeserializeOwned>(&self, offset: usize) -> Result<Page<I>, ApiError> {
        // As texts: a whole page as a tree of values takes many times the memory.
        #[derive(Deserialize)]
        struct Answer {
            streams: Option<Vec<Box<RawValue>>>,
            missing: Option<Vec<String>>,
            #[serde(default)]
            limit: usize,
            #[serde(default)]
            total: usize,
        }
        let Answer { streams, missing, limit, total } = self.list("STREAM.LIST", &[], offset).await?;
        let missing = missing.unwrap_or_default();
        let is_missing = |stream: &RawValue| {
            let named = || serde_json::from_str::<Named>(stream.get());
            !missing.is_empty() && named().is_ok_and(|named| missing.contains(&named.config.name))
        };
        let streams = streams.into_iter().flatten().filter(|stream| !is_missing(stream));
        let items: Result<_, _> = streams.map(|stream| serde_json::from_str(stream.get())).collect();
        let malformed = |source| ApiError::Malformed { subject: "STREAM.LIST".to_owned(), source };
        Ok(Page { items: items.map_err(malformed)?, missing, limit, total })
    }

    /// One page of a stream's consumers, at most 256. Consumers whose servers did not respond are missing.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses.
    pub async fn list_consumers<I: DeserializeOwned>(
        &self,
        stream: &str,
        offset: usize,
    ) -> Result<Page<I>, ApiError> {
        #[derive(Deserialize)]
        struct Answer<I> {
            consumers: Option<Vec<I>>,
            missing: Option<Vec<String>>,
            #[serde(default)]
            limit: usize,
            #[serde(default)]
            total: usize,
        }
        let Answer { consumers, missing, limit, total } =
            self.list("CONSUMER.LIST", &[stream], offset).await?;
        let (items, missing) = (consumers.unwrap_or_default(), missing.unwrap_or_default());
        Ok(Page { items, missing, limit, total })
    }

    async fn list<T: DeserializeOwned>(
        &self,
        verb: &'static str,
        names: &[&str],
        offset: usize,
    ) -> Result<T, ApiError> {
        let patient = Self { timeout: self.list_timeout, ..self.clone() };
        patient.request(verb, names, &json!({ "offset": offset })).await
    }

    /// Creates a stream.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses.
    pub async fn create_stream<I: DeserializeOwned>(
        &self,
        name: &str,
        config: &(impl Serialize + Sync),
    ) -> Result<I, ApiError> {
        self.request("STREAM.CREATE", &[name], config).await
    }

    /// Changes a stream's configuration, whole.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses.
    pub async fn update_stream<I: DeserializeOwned>(
        &self,
        name: &str,
        config: &(impl Serialize + Sync),
    ) -> Result<I, ApiError> {
        self.request("STREAM.UPDATE", &[name], config).await
    }

    /// Deletes a stream with all its messages; false if it did not exist.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses. Without a response, the deletion may take effect later: ask again.
    pub async fn delete_stream(&self, name: &str) -> Result<bool, ApiError> {
        let answer: Result<Value, _> = self.request("STREAM.DELETE", &[name], &json!({})).await;
        absent_is_none(answer).map(|deleted| deleted.is_some())
    }

    /// The consumer of this name, or `None` if JetStream says that it or its stream does not exist.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses.
    pub async fn consumer_info<I: DeserializeOwned>(
        &self,
        stream: &str,
        name: &str,
    ) -> Result<Option<I>, ApiError> {
        absent_is_none(self.request("CONSUMER.INFO", &[stream, name], &json!({})).await)
    }

    /// Creates a durable consumer; refused if one of the name exists with another configuration.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses.
    pub async fn create_consumer<I: DeserializeOwned>(
        &self,
        stream: &str,
        name: &str,
        config: &(impl Serialize + Sync),
    ) -> Result<I, ApiError> {
        let body = json!({ "stream_name": stream, "config": config, "action": "create" });
        self.request("CONSUMER.CREATE", &[stream, name], &body).await
    }

    /// Changes a durable consumer's configuration, whole.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses.
    pub async fn update_consumer<I: DeserializeOwned>(
        &self,
        stream: &str,
        name: &str,
        config: &(impl Serialize + Sync),
    ) -> Result<I, ApiError> {
        let body = json!({ "stream_name": stream, "config": config, "action": "update" });
        // The server tells the two apart by the body alone.
        self.request_as("CONSUMER.UPDATE", "CONSUMER.CREATE", &[stream, name], &body).await
    }

    /// Pauses a consumer until this time (RFC 3339), or lets it go on: it delivers nothing meanwhile, and takes acknowledgements. An update does
    /// not change that.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses.
    pub async fn pause_consumer(
        &self,
        stream: &str,
        name: &str,
        until: Option<&str>,
    ) -> Result<(), ApiError> {
        let answer: Result<Value, _> =
            self.request("CONSUMER.PAUSE", &[stream, name], &json!({ "pause_until": until })).await;
        answer.map(drop)
    }

    /// Deletes a consumer; false if it did not exist.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses. Without a response, the deletion may take effect later: ask again.
    pub async fn delete_consumer(&self, stream: &str, name: &str) -> Result<bool, ApiError> {
        let answer: Result<Value, _> = self.request("CONSUMER.DELETE", &[stream, name], &json!({})).await;
        absent_is_none(answer).map(|deleted| deleted.is_some())
    }

    async fn request<T: DeserializeOwned>(
        &self,
        verb: &'static str,
        names: &[&str],
        body: &(impl Serialize + Sync),
    ) -> Result<T, ApiError> {
        self.request_as(verb, verb, names, body).await
    }

    /// A request that is observed by another verb than that of its subject.
    async fn request_as<T: DeserializeOwned>(
        &self,
        observed: &'static str,
        verb: &'static str,
        names: &[&str],
        body: &(impl Serialize + Sync),
    ) -> Result<T, ApiError> {
        if let Some(name) = names.iter().find(|name| !can_be_name(name)) {
            return Err(ApiError::InvalidName { name: name.chars().take(MAX_TOLD_CHARS).collect() });
        }
        let subject = self.connection.api_subjects().request(verb, names);
        let span = api_span::start(observed, &subject);
        let answer = self.exchange(&subject, body).await;
        if let Some(span) = span {
            api_span::end(&span, answer.as_ref().err());
        }
        (self.observe)(observed, answer.as_ref().err());
        answer
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        subject: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, ApiError> {
        let malformed = |source| ApiError::Malformed { subject: subject.to_owned(), source };
        let payload = serde_json::to_vec(body).map_err(malformed)?;
        // On the heap, since every future around it would include it.
        let reply = Box::pin(self.connection.request_once(subject.to_owned(), payload.into(), self.timeout));
        let reply = reply.await.map_err(|no_reply| match no_reply {
            NoReply::Forbidden(violation @ Violation::Publish(_)) => ApiError::NotPermitted { violation },
            no_reply => ApiError::Unanswered { subject: subject.to_owned(), why: self.describe(&no_reply) },
        })?;
        read(&reply)
            .map_err(malformed)?
            .map_err(|refusal| ApiError::Refused { subject: subject.to_owned(), error: refusal.error })
    }

    fn describe(&self, no_reply: &NoReply) -> String {
        match no_reply {
            NoReply::Silence => format!("no response within {:?}", self.timeout),
            NoReply::NoResponders => "JetStream is unavailable, or this account may not use it".to_owned(),
            other => other.to_string(),
        }
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Api").field("connection", &self.connection).finish_non_exhaustive()
    }
}

/// Whether a server looks for a stream or consumer of this name (isValidName of nats-server).
fn can_be_name(name: &str) -> bool {
    let is_excluded = |c: char| c.is_ascii_whitespace() || matches!(c, '.' | '*' | '>');
    (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.contains(is_excluded)
}

/// What a stream is called.
#[derive(Deserialize)]
struct Named {
    config: NamedConfig,
}

#[derive(Deserialize)]
struct NamedConfig {
    name: String,
}

fn absent_is_none<T>(answer: Result<T, ApiError>) -> Result<Option<T>, ApiError> {
    match answer {
        Ok(there) => Ok(Some(there)),
        Err(error) if error.is_absence() => Ok(None),
        Err(error) => Err(error),
    }
}
