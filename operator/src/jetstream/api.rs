//! The adapter of `$JS.API`: requests and answers as JSON, every one bounded in time. Does I/O and decides nothing.
//!
//! The types of async-nats drop fields that they do not know, so that reading, changing and writing back would take newer
//! settings away; [`Config`] keeps them.

use std::time::Duration;

use async_nats::{RequestError, RequestErrorKind};
use jetwright_process::nats::Violations;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use super::{
    config::Config,
    info::{ConsumerInfo, StreamInfo, StreamPage},
};
use crate::{connection::Nats, metrics::Metrics};

/// Error code of an answer that says that the stream does not exist.
const STREAM_NOT_FOUND: u64 = 10059;
/// Error code of an answer that says that the consumer does not exist.
const CONSUMER_NOT_FOUND: u64 = 10014;
/// A stream of this name exists with another configuration.
pub const STREAM_NAME_IN_USE: u64 = 10058;
/// More than one replica needs clustered servers.
pub const REPLICAS_NEED_CLUSTER: u64 = 10074;
/// The cluster has no servers for it; the text says why.
pub const NO_SUITABLE_PEERS: u64 = 10005;

/// Another stream of the account has subjects in common.
const SUBJECTS_OVERLAP: u64 = 10065;
/// A move or a scaling of the stream goes on.
pub const RECONFIGURING: u64 = 10226;
/// Least time to wait for a list: with a server away the cluster takes 4 s to answer one.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a request to JetStream failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No answer: NATS or JetStream is away, or slow. What was asked may have been done all the same.
    #[error("JetStream did not answer {subject}: {why}")]
    Unanswered {
        /// Subject of the request.
        subject: String,
        /// What was seen instead.
        why: String,
    },
    /// JetStream answered with an error.
    #[error("JetStream refused: {description} ({code}/{err_code}){}", remedy(*err_code))]
    Refused {
        /// Subject of the request.
        subject: String,
        /// HTTP-like code; from 500 on it is the server's own trouble.
        code: u64,
        /// JetStream's error code (server/errors.json of nats-server).
        err_code: u64,
        /// JetStream's words.
        description: String,
    },
    /// The answer is not what JetStream answers.
    #[error("the answer to {subject} could not be read")]
    Malformed {
        /// Subject of the request.
        subject: String,
        /// What could not be read.
        source: serde_json::Error,
    },
}

impl ApiError {
    /// Whether JetStream said that there is no such stream or consumer.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Refused { err_code: STREAM_NOT_FOUND | CONSUMER_NOT_FOUND, .. })
    }

    /// JetStream's error code, where it answered with one.
    #[must_use]
    pub fn err_code(&self) -> Option<u64> {
        match self {
            Self::Refused { err_code, .. } => Some(*err_code),
            _ => None,
        }
    }
}

/// What to do about errors that come from what an object declares.
fn remedy(err_code: u64) -> &'static str {
    match err_code {
        SUBJECTS_OVERLAP => {
            ": choose other subjects in spec.subjects, or find the other stream with `nats stream ls --subject`"
        }
        REPLICAS_NEED_CLUSTER => {
            ": set spec.replicas to 1, or a profile, which settles for the servers that there are"
        }
        _ => "",
    }
}

/// Why a request was not answered.
fn why(error: &RequestError) -> String {
    match error.kind() {
        RequestErrorKind::NoResponders => "JetStream is not there, or this account may not use it".to_owned(),
        _ => error.to_string(),
    }
}

/// JetStream's API over one connection.
#[derive(Clone)]
pub struct Api {
    client: async_nats::Client,
    violations: Violations,
    timeout: Duration,
    metrics: Metrics,
}

impl Api {
    /// An API that waits for each answer for at most `timeout`.
    #[must_use]
    pub fn new(nats: &Nats, timeout: Duration, metrics: Metrics) -> Self {
        Self { client: nats.client().clone(), violations: nats.violations().clone(), timeout, metrics }
    }

    /// The stream of this name, or None where JetStream says that there is none.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses.
    pub async fn stream_info(&self, name: &str) -> Result<Option<StreamInfo>, ApiError> {
        absent_is_none(self.request("STREAM.INFO", &[name], &json!({})).await, STREAM_NOT_FOUND)
    }

    /// One page of streams with their configurations and states, 256 at most.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses.
    pub async fn stream_page(&self, offset: usize) -> Result<StreamPage, ApiError> {
        let patient = Self { timeout: self.timeout.max(LIST_TIMEOUT), ..self.clone() };
        patient.request("STREAM.LIST", &[], &json!({ "offset": offset })).await
    }

    /// Makes a stream.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses.
    pub async fn create_stream(&self, name: &str, config: &Config) -> Result<StreamInfo, ApiError> {
        self.request("STREAM.CREATE", &[name], config).await
    }

    /// Changes a stream's configuration, whole.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses.
    pub async fn update_stream(&self, name: &str, config: &Config) -> Result<StreamInfo, ApiError> {
        self.request("STREAM.UPDATE", &[name], config).await
    }

    /// Deletes a stream with all that is in it; false where there was none.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses. Unanswered, it may take effect later: look again.
    pub async fn delete_stream(&self, name: &str) -> Result<bool, ApiError> {
        let answer: Result<Value, _> = self.request("STREAM.DELETE", &[name], &json!({})).await;
        absent_is_none(answer, STREAM_NOT_FOUND).map(|deleted| deleted.is_some())
    }

    /// The consumer of this name, or None where JetStream says that it or its stream does not exist.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses.
    pub async fn consumer_info(&self, stream: &str, name: &str) -> Result<Option<ConsumerInfo>, ApiError> {
        let answer = self.request("CONSUMER.INFO", &[stream, name], &json!({})).await;
        match absent_is_none(answer, CONSUMER_NOT_FOUND) {
            Err(error) if error.err_code() == Some(STREAM_NOT_FOUND) => Ok(None),
            answer => answer,
        }
    }

    /// Makes a durable consumer; refused where one of the name exists with another configuration.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses.
    pub async fn create_consumer(
        &self,
        stream: &str,
        name: &str,
        config: &Config,
    ) -> Result<ConsumerInfo, ApiError> {
        self.write_consumer("create", stream, name, config).await
    }

    /// Changes a durable consumer's configuration, whole.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses.
    pub async fn update_consumer(
        &self,
        stream: &str,
        name: &str,
        config: &Config,
    ) -> Result<ConsumerInfo, ApiError> {
        self.write_consumer("update", stream, name, config).await
    }

    async fn write_consumer(
        &self,
        action: &str,
        stream: &str,
        name: &str,
        config: &Config,
    ) -> Result<ConsumerInfo, ApiError> {
        let body = json!({ "stream_name": stream, "config": config, "action": action });
        self.request("CONSUMER.CREATE", &[stream, name], &body).await
    }

    /// Deletes a consumer; false where there was none.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer or refuses. Unanswered, it may take effect later: look again.
    pub async fn delete_consumer(&self, stream: &str, name: &str) -> Result<bool, ApiError> {
        let answer: Result<Value, _> = self.request("CONSUMER.DELETE", &[stream, name], &json!({})).await;
        match absent_is_none(answer, CONSUMER_NOT_FOUND) {
            Err(error) if error.err_code() == Some(STREAM_NOT_FOUND) => Ok(false),
            answer => answer.map(|deleted| deleted.is_some()),
        }
    }

    async fn request<T: DeserializeOwned>(
        &self,
        verb: &'static str,
        names: &[&str],
        body: &(impl Serialize + Sync),
    ) -> Result<T, ApiError> {
        let subject =
            names.iter().fold(format!("$JS.API.{verb}"), |subject, name| format!("{subject}.{name}"));
        let answer = self.exchange(&subject, body).await;
        self.metrics.api_request(verb, &answer);
        answer
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        subject: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, ApiError> {
        let malformed = |source| ApiError::Malformed { subject: subject.to_owned(), source };
        let unanswered = |why: String| ApiError::Unanswered { subject: subject.to_owned(), why };
        let payload = serde_json::to_vec(body).map_err(malformed)?;
        let mut violations = self.violations.watch();
        let request = self.client.request(subject.to_owned(), payload.into());
        // On the heap, since every future around it would hold it.
        let answer = Box::pin(async {
            tokio::select! {
                answer = request => answer.map_err(|error| unanswered(why(&error))),
                violation = violations.publish_to(subject) => Err(unanswered(violation.to_string())),
            }
        });
        let late = |_| Err(unanswered(format!("no answer within {:?}", self.timeout)));
        let message = tokio::time::timeout(self.timeout, answer).await.unwrap_or_else(late)?;
        let mut answer: Map<String, Value> = serde_json::from_slice(&message.payload).map_err(malformed)?;
        match answer.remove("error") {
            Some(error) => {
                let error: ErrorBody = serde_json::from_value(error).map_err(malformed)?;
                let ErrorBody { code, err_code, description } = error;
                Err(ApiError::Refused { subject: subject.to_owned(), code, err_code, description })
            }
            None => serde_json::from_value(Value::Object(answer)).map_err(malformed),
        }
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

fn absent_is_none<T>(answer: Result<T, ApiError>, absent: u64) -> Result<Option<T>, ApiError> {
    match answer {
        Ok(there) => Ok(Some(there)),
        Err(error) if error.err_code() == Some(absent) => Ok(None),
        Err(error) => Err(error),
    }
}
