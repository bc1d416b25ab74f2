//! In: one of JetStream's advisories. Out: what it says that matters to the cache. Pure.

use jetwright_nats::api_request;
use serde::{Deserialize, de::IgnoredAny};

use super::asset::ConsumerKey;
use crate::contest::Writer;

/// What an advisory is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    Stream(String),
    Consumer(ConsumerKey),
}

impl Target {
    fn consumer(stream: &str, name: &str) -> Self {
        Self::Consumer(ConsumerKey { stream: stream.to_owned(), name: name.to_owned() })
    }
}

#[derive(Deserialize)]
struct Advisory {
    stream: Option<String>,
    consumer: Option<String>,
    leader: Option<String>,
    /// Subject of the API request, in an audit.
    subject: Option<String>,
    /// What JetStream answered to it, as JSON.
    response: Option<String>,
    client: Option<Client>,
}

impl Advisory {
    /// Whether JetStream refused the request.
    fn is_refused(&self) -> bool {
        #[derive(Deserialize)]
        struct Response {
            error: Option<IgnoredAny>,
        }
        let response = self.response.as_deref().map(serde_json::from_str::<Response>);
        response.is_some_and(|response| response.is_ok_and(|response| response.error.is_some()))
    }
}

#[derive(Default, Deserialize)]
struct Client {
    name: Option<String>,
    user: Option<String>,
    host: Option<String>,
}

/// What an advisory says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    Changed {
        /// What to ask JetStream about.
        target: Target,
        /// Another client that wrote it, which the audit of the API alone says.
        writer: Option<Writer>,
    },
    /// A server leads a stream from now on.
    Elected { stream: String, leader: String },
    /// A stream lost its leader, who lost most of the servers that keep it.
    QuorumLost { stream: String },
}

/// What an advisory says, or None of what changes nothing or was our own doing.
pub fn news(subject: &str, payload: &[u8], own_name: &str) -> Option<News> {
    let advisory: Advisory = serde_json::from_slice(payload).ok()?;
    let kind = subject.strip_prefix("$JS.EVENT.ADVISORY.")?;
    if kind == "API" {
        return audited(advisory, own_name);
    }
    let target = match (kind.split('.').next()?, kind.split('.').nth(1)?) {
        ("STREAM", "CREATED" | "UPDATED" | "DELETED" | "RESTORE_COMPLETE") => {
            Target::Stream(advisory.stream?)
        }
        ("CONSUMER", "CREATED" | "DELETED" | "PAUSE") => {
            Target::consumer(&advisory.stream?, &advisory.consumer?)
        }
        ("STREAM", "LEADER_ELECTED") => {
            return Some(News::Elected { stream: advisory.stream?, leader: advisory.leader? });
        }
        ("STREAM", "QUORUM_LOST") => return Some(News::QuorumLost { stream: advisory.stream? }),
        _ => return None,
    };
    Some(News::Changed { target, writer: None })
}

/// What a request to the API changed: consumers have no advisory of their changes, and no other advisory names the client. What was refused
/// changed nothing.
fn audited(advisory: Advisory, own_name: &str) -> Option<News> {
    if advisory.is_refused() {
        return None;
    }
    let client = advisory.client.unwrap_or_default();
    if client.name.as_deref() == Some(own_name) {
        return None;
    }
    let subject = advisory.subject?;
    let tokens: Vec<_> = api_request(&subject)?.split('.').collect();
    let (target, is_write) = match tokens[..] {
        ["CONSUMER", "CREATE", stream, name, ..] | ["CONSUMER", "DURABLE", "CREATE", stream, name] => {
            (Target::consumer(stream, name), true)
        }
        ["CONSUMER", "DELETE", stream, name] => (Target::consumer(stream, name), true),
        ["CONSUMER", "RESET", stream, name] => (Target::consumer(stream, name), false),
        ["STREAM", "CREATE" | "UPDATE" | "DELETE", name] => (Target::Stream(name.to_owned()), true),
        ["STREAM", "PURGE", name] => (Target::Stream(name.to_owned()), false),
        _ => return None,
    };
    let writer = is_write.then_some(Writer { name: client.name, user: client.user, host: client.host });
    Some(News::Changed { target, writer })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(subject: &str, payload: &[u8], own_name: &str) -> Option<Target> {
        match news(subject, payload, own_name)? {
            News::Changed { target, .. } => Some(target),
            News::Elected { .. } | News::QuorumLost { .. } => None,
        }
    }

    fn stream(name: &str) -> Target {
        Target::Stream(name.to_owned())
    }

    fn consumer(stream: &str, name: &str) -> Target {
        Target::consumer(stream, name)
    }

    #[test]
    fn advisories_name_the_stream_or_consumer_to_refresh() {
        let payload = br#"{"stream":"orders","consumer":"billing","action":"delete"}"#;
        let of = |subject: &str| target(subject, payload, "me");
        assert_eq!(of("$JS.EVENT.ADVISORY.STREAM.UPDATED.orders"), Some(stream("orders")));
        assert_eq!(
            of("$JS.EVENT.ADVISORY.CONSUMER.DELETED.orders.billing"),
            Some(consumer("orders", "billing"))
        );
        assert_eq!(of("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.orders.billing"), None);
    }

    #[test]
    fn the_audit_of_the_api_names_what_others_changed() {
        let of = |request: &str, by: &str| {
            let payload = serde_json::json!({"subject": request, "client": {"name": by}}).to_string();
            target("$JS.EVENT.ADVISORY.API", payload.as_bytes(), "me")
        };
        assert_eq!(
            of("$JS.API.CONSUMER.CREATE.orders.billing.orders.*.placed", "nats"),
            Some(consumer("orders", "billing"))
        );
        assert_eq!(
            of("$JS.hub.API.CONSUMER.DURABLE.CREATE.orders.billing", "nats"),
            Some(consumer("orders", "billing"))
        );
        assert_eq!(of("$JS.API.STREAM.PURGE.orders", "nats"), Some(stream("orders")));
        assert_eq!(of("$JS.API.STREAM.UPDATE.orders", "me"), None);
        assert_eq!(of("$JS.API.STREAM.INFO.orders", "nats"), None);
    }

    #[test]
    fn the_audit_of_the_api_names_who_wrote() {
        let of = |request: &str| {
            let client = serde_json::json!({"name": "nats", "user": "app", "host": "10.0.0.7"});
            let payload = serde_json::json!({"subject": request, "client": client});
            match news("$JS.EVENT.ADVISORY.API", payload.to_string().as_bytes(), "me") {
                Some(News::Changed { writer, .. }) => writer,
                other => panic!("{other:?}"),
            }
        };
        let [name, user, host] = ["nats", "app", "10.0.0.7"].map(|text| Some(text.to_owned()));
        let writer = Some(Writer { name, user, host });
        assert_eq!(of("$JS.API.STREAM.UPDATE.orders"), writer);
        assert_eq!(of("$JS.API.CONSUMER.DELETE.orders.billing"), writer);
        // What is declared stays as it is.
        assert_eq!(of("$JS.API.STREAM.PURGE.orders"), None);
    }

    #[test]
    fn a_request_of_others_that_was_refused_is_no_news() {
        let of = |response: &str| {
            let payload =
                serde_json::json!({"subject": "$JS.API.STREAM.CREATE.orders", "response": response});
            target("$JS.EVENT.ADVISORY.API", payload.to_string().as_bytes(), "me")
        };
        assert_eq!(of(r#"{"type": "x", "error": {"code": 400, "err_code": 10065}}"#), None);
        for answered in [r#"{"type": "x", "config": {"error": 1}}"#, "{", ""] {
            assert_eq!(of(answered), Some(stream("orders")), "{answered}");
        }
    }

    #[test]
    fn advisories_name_who_leads_a_stream_and_that_nobody_does() {
        let payload = br#"{"stream":"orders","leader":"n2","replicas":[]}"#;
        let of = |kind: &str| news(&format!("$JS.EVENT.ADVISORY.STREAM.{kind}.orders"), payload, "me");
        let stream = || "orders".to_owned();
        assert_eq!(of("LEADER_ELECTED"), Some(News::Elected { stream: stream(), leader: "n2".into() }));
        assert_eq!(of("QUORUM_LOST"), Some(News::QuorumLost { stream: stream() }));
    }

    #[test]
    fn what_is_no_advisory_is_skipped() {
        assert_eq!(target("$JS.EVENT.ADVISORY.API", b"{", "me"), None);
        assert_eq!(target("$JS.EVENT.ADVISORY.STREAM.UPDATED.x", b"{}", "me"), None);
    }
}
