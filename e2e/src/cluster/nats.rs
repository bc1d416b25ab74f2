//! JetStream as an administrator sees it: through a forwarded port of one server, as a user who may do everything.

use std::{collections::BTreeMap, time::Duration};

use async_nats::jetstream::{
    self,
    stream::{RawMessageErrorKind, Stream},
};
use jetwright_testing::{Process, await_until};
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};

use super::{Cluster, OPERATOR, SOON};
use crate::published;

/// How long kubectl may take to start.
const START: Duration = Duration::from_secs(20);
/// Secret of the user that `tests/cluster/values.yaml` adds to the bundled NATS.
const CREDENTIALS: &str = "nats-tester";

/// A connection to one of the bundled servers.
pub struct Nats {
    /// JetStream of the account that all streams are in.
    pub jetstream: jetstream::Context,
    _kubectl: Process,
}

/// A message as it is stored.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The subject under which it was published.
    pub subject: String,
    /// Its sequence.
    pub sequence: u64,
}

impl Cluster {
    /// Connects to the server of this number, 0 to 2.
    pub async fn nats(&self, server: u8) -> Nats {
        let kubectl = Process::builder("kubectl")
            .name("kubectl-port-forward")
            .env("KUBECONFIG", std::env::var_os("KUBECONFIG").unwrap_or_default())
            .args(["port-forward", "--namespace", OPERATOR, &format!("pod/jetwright-nats-{server}"), ":4222"])
            .start();
        let line = kubectl.await_log("Forwarding from 127.0.0.1:", START).await;
        let port =
            line.trim_start_matches("Forwarding from 127.0.0.1:").split(' ').next().unwrap_or_default();
        let secret = self.secret(OPERATOR, CREDENTIALS).await;
        let client = async_nats::ConnectOptions::with_user_and_password(
            secret["username"].clone(),
            secret["password"].clone(),
        )
        .custom_inbox_prefix(secret["inbox-prefix"].clone())
        // Their addresses are inside the cluster.
        .ignore_discovered_servers()
        .connect(format!("127.0.0.1:{port}"))
        .await
        .unwrap_or_else(|error| panic!("NATS server {server}: {error}"));
        Nats { jetstream: jetstream::new(client), _kubectl: kubectl }
    }

    /// The values of a Secret.
    pub async fn secret(&self, namespace: &str, name: &str) -> BTreeMap<String, String> {
        let found = self.api::<Secret>(namespace).get(name).await;
        let data = found.unwrap_or_else(|error| panic!("Secret {namespace}/{name}: {error}")).data;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        data.into_iter().flatten().map(|(key, value)| (key, text(value.0))).collect()
    }
}

impl Nats {
    /// A stream, once it is there and its leader answers.
    pub async fn stream(&self, name: &str) -> Stream {
        await_until(&format!("the stream {name}"), SOON, || self.jetstream.get_stream(name)).await
    }

    /// Streams and consumers by name, a consumer as `stream/consumer`: when each was made, and its configuration with the metadata.
    pub async fn assets(&self) -> BTreeMap<String, Value> {
        let mut found = BTreeMap::new();
        for stream in self.listed("STREAM.LIST", "streams").await {
            let name = stream["config"]["name"].as_str().unwrap_or_default();
            for consumer in self.listed(&format!("CONSUMER.LIST.{name}"), "consumers").await {
                let consumer_name = consumer["name"].as_str().unwrap_or_default();
                found.insert(
                    format!("{name}/{consumer_name}"),
                    json!([consumer["created"], consumer["config"]]),
                );
            }
            found.insert(name.to_owned(), json!([stream["created"], stream["config"]]));
        }
        found
    }

    /// What a request for a list answers, complete: everybody who leads a stream was heard.
    async fn listed(&self, request: &str, of: &str) -> Vec<Value> {
        await_until(&format!("the whole answer to {request}"), SOON, async || {
            let answer: Value = self
                .jetstream
                .request(request.to_owned(), &json!({}))
                .await
                .map_err(|error| error.to_string())?;
            let listed = answer[of].as_array().cloned().unwrap_or_default();
            let whole =
                answer["missing"].is_null() && answer["total"].as_u64() == u64::try_from(listed.len()).ok();
            if whole { Ok(listed) } else { Err(answer.to_string()) }
        })
        .await
    }

    /// How many messages a stream has.
    pub async fn messages(&self, stream: &str) -> u64 {
        self.stream(stream).await.cached_info().state.messages
    }

    /// Every message of a stream below a subject, in order.
    pub async fn stored(&self, stream: &str, subject: &str) -> Vec<Stored> {
        let found = self.stream(stream).await;
        let mut messages: Vec<Stored> = Vec::new();
        while let Some(message) =
            next(&found, subject, messages.last().map_or(1, |last| last.sequence + 1)).await
        {
            messages.push(message);
        }
        messages
    }
}

/// The first message below a subject at or after a sequence.
async fn next(stream: &Stream, subject: &str, from: u64) -> Option<Stored> {
    await_until(&format!("an answer about the messages from {from}"), SOON, async || {
        let ask = stream.raw_message_builder().sequence(from).next_by_subject(subject.to_owned());
        match ask.send().await {
            Ok(found) => {
                let subject = published(&found.subject).to_owned();
                Ok(Some(Stored { subject, sequence: found.sequence }))
            }
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
}
