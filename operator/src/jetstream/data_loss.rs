//! In: an update of a stream, what is in the stream, and what its user accepts to lose. Out: why it is not made. Pure.
//!
//! A server enforces a smaller limit at once (`UpdateConfig` in server/filestore.go of nats-server), and with retention Interest it drops
//! what no consumer waits for.

use std::time;

use jetwright_crds::{
    Duration, EventStream, Size, conditions::Reason, labels::ACCEPT_DATA_LOSS, stream::Profile,
};
use jiff::Timestamp;
use kube::ResourceExt as _;
use serde_json::Value;

use super::{
    config::Config,
    info::{StreamInfo, StreamState},
    plan::{Cause, Plan},
};
use crate::outcome::Blocked;

const DAY: time::Duration = time::Duration::from_hours(24);

/// What the user of a stream accepts to lose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consent {
    /// Nothing in the stream was promised to stay.
    anything: bool,
    /// Fields, each with the value that it may get.
    accepted: Vec<(String, String)>,
}

impl Consent {
    #[must_use]
    pub fn of(object: &EventStream) -> Self {
        let text = object.annotations().get(ACCEPT_DATA_LOSS).map(String::as_str).unwrap_or_default();
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        Self {
            anything: object.spec.profile == Some(Profile::Ephemeral),
            accepted: pairs
                .map(|(field, value)| (field.trim().to_owned(), value.trim().to_owned()))
                .collect(),
        }
    }

    fn covers(&self, loss: &Loss) -> bool {
        self.accepted.iter().any(|(field, value)| field == loss.field && loss.value.is_written(value))
    }
}

/// A value as a spec writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Word(&'static str),
    Duration(Duration),
    Size(Size),
    Count(u64),
}

impl Target {
    /// Whether a text means the same: `168h` is `7d`.
    fn is_written(self, text: &str) -> bool {
        match self {
            Self::Word(word) => text == word,
            Self::Duration(duration) => text.parse() == Ok(duration),
            Self::Size(size) => text.parse() == Ok(size),
            Self::Count(count) => text.parse() == Ok(count),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Word(word) => f.write_str(word),
            // Most specs count days, and not weeks or years.
            Self::Duration(duration) if duration.0.as_millis().is_multiple_of(DAY.as_millis()) => {
                write!(f, "{}d", duration.0.as_millis() / DAY.as_millis())
            }
            Self::Duration(duration) => duration.fmt(f),
            Self::Size(size) => size.fmt(f),
            Self::Count(count) => count.fmt(f),
        }
    }
}

/// What an update would lose by one field.
struct Loss {
    /// Below `spec`.
    field: &'static str,
    value: Target,
    /// What INFO says of what would go.
    what: String,
}

/// Why an update is not made; None where it loses nothing, or all that it loses is accepted.
#[must_use]
pub fn refusal(plan: &Plan, info: Option<&StreamInfo>, consent: &Consent, now: Timestamp) -> Option<Blocked> {
    let (Plan::Update { steps, cause, .. }, Some(info)) = (plan, info) else { return None };
    if consent.anything || info.state.messages == 0 {
        return None;
    }
    let change = Change { from: &info.config, to: steps.last()?, state: &info.state, now };
    let lost: Vec<_> = change.losses(*cause == Cause::Drift).filter(|loss| !consent.covers(loss)).collect();
    if lost.is_empty() {
        return None;
    }
    let pairs: Vec<_> = lost.iter().map(|loss| format!("{}={}", loss.field, loss.value)).collect();
    let what: Vec<_> = lost.iter().map(|loss| format!("spec.{}: {}", loss.field, loss.what)).collect();
    let message = format!(
        "stream {} was not updated, since messages would be lost. {}. To accept that, set the annotation {ACCEPT_DATA_LOSS}: \"{}\"; else \
         set the fields to what the stream has",
        info.name().unwrap_or_default(),
        what.join("; "),
        pairs.join(", ")
    );
    Some(Blocked { reason: Reason::DataLoss, message })
}

/// An update, and what is in the stream.
struct Change<'a> {
    from: &'a Config,
    to: &'a Config,
    state: &'a StreamState,
    now: Timestamp,
}

impl Change<'_> {
    fn losses(&self, is_drift: bool) -> impl Iterator<Item = Loss> {
        [
            self.by_interest(),
            self.by_age(is_drift),
            self.by_bytes(),
            self.by_messages(),
            self.by_messages_per_subject(),
        ]
        .into_iter()
        .flatten()
    }

    fn by_interest(&self) -> Option<Loss> {
        let is_interest =
            |config: &Config| config.get("retention").is_some_and(|policy| policy == "interest");
        let StreamState { messages, bytes, consumer_count, .. } = self.state;
        (is_interest(self.to) && !is_interest(self.from)).then(|| Loss {
            field: "retention",
            value: Target::Word("Interest"),
            what: format!(
                "of {messages} messages ({bytes} bytes) all go for which none of {consumer_count} consumers waits"
            ),
        })
    }

    /// What is in the stream was to be kept for longer: it goes before its time, if not at once. Where another writer has set a longer time,
    /// only what is older goes before the time that is declared.
    fn by_age(&self, is_drift: bool) -> Option<Loss> {
        let nanos = self.shrinks("max_age")?;
        let limit = Duration(time::Duration::from_millis(nanos / 1_000_000));
        let first = self.state.first_ts.as_deref();
        let age = first.and_then(|first| Some(self.now.duration_since(first.parse().ok()?).unsigned_abs()));
        if is_drift && age.is_some_and(|age| age <= limit.0) {
            return None;
        }
        let oldest = match (age, first) {
            (Some(age), Some(first)) => {
                let seconds = Duration::from_secs(age.as_secs());
                format!("the oldest is {seconds} old, of {first}")
            }
            _ => "the oldest has an unknown age".to_owned(),
        };
        let StreamState { messages, bytes, .. } = self.state;
        let what = format!("of {messages} messages ({bytes} bytes) {oldest}");
        Some(Loss { field: "limits.maxAge", value: Target::Duration(limit), what })
    }

    fn by_bytes(&self) -> Option<Loss> {
        let limit = self.enforced("max_bytes")?;
        let (bytes, messages) = (self.state.bytes, self.state.messages);
        let over = bytes.checked_sub(limit).filter(|over| *over > 0)?;
        let what = format!("{over} of {bytes} bytes ({messages} messages) are over the limit");
        Some(Loss { field: "limits.maxBytes", value: Target::Size(Size(limit)), what })
    }

    fn by_messages(&self) -> Option<Loss> {
        let limit = self.enforced("max_msgs")?;
        let (bytes, messages) = (self.state.bytes, self.state.messages);
        let over = messages.checked_sub(limit).filter(|over| *over > 0)?;
        let what = format!("{over} of {messages} messages ({bytes} bytes) are over the limit");
        Some(Loss { field: "limits.maxMessages", value: Target::Count(limit), what })
    }

    /// INFO says how many subjects there are, and not how many messages each has.
    fn by_messages_per_subject(&self) -> Option<Loss> {
        let limit = self.shrinks("max_msgs_per_subject")?;
        let StreamState { messages, bytes, num_subjects, .. } = self.state;
        // Each subject has one at least.
        let most = messages.saturating_sub(num_subjects.saturating_sub(1));
        let at_least = messages.saturating_sub(num_subjects.saturating_mul(limit));
        let over = match num_subjects {
            0 => format!("up to {}", messages.saturating_sub(limit)),
            _ => format!("at least {at_least}"),
        };
        (most > limit).then(|| Loss {
            field: "limits.maxMessagesPerSubject",
            value: Target::Count(limit),
            what: format!(
                "{over} of {messages} messages ({bytes} bytes) of {num_subjects} subjects are over the limit"
            ),
        })
    }

    /// The new limit, where it is smaller than the one before.
    fn shrinks(&self, field: &str) -> Option<u64> {
        let to = limit(self.to, field)?;
        limit(self.from, field).is_none_or(|from| to < from).then_some(to)
    }

    /// The new limit, where the server drops at once what is over it: it refuses new messages alone with discard New.
    fn enforced(&self, field: &str) -> Option<u64> {
        let drops = |config: &Config| config.get("discard").is_none_or(|policy| policy != "new");
        let to = limit(self.to, field).filter(|_| drops(self.to))?;
        (self.shrinks(field).is_some() || !drops(self.from)).then_some(to)
    }
}

/// A limit, where there is one.
fn limit(config: &Config, field: &str) -> Option<u64> {
    config
        .get(field)
        .and_then(Value::as_i64)
        .and_then(|limit| u64::try_from(limit).ok())
        .filter(|limit| *limit > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DAY_NANOS: u64 = 86_400_000_000_000;

    fn config(value: &Value) -> Config {
        serde_json::from_value(value.clone()).unwrap()
    }

    /// A stream with 10 messages of 1,000 bytes and 4 subjects, the oldest of which is two days old.
    fn info(config: &Value) -> StreamInfo {
        serde_json::from_value(json!({
            "config": config, "created": "2026-11-01T10:00:00Z",
            "state": {
                "messages": 10, "bytes": 1000, "first_seq": 1, "last_seq": 10, "consumer_count": 2, "num_subjects": 4,
                "first_ts": "2026-11-19T10:00:00Z",
            },
        }))
        .unwrap()
    }

    fn consent(annotation: &str, spec: &str) -> Consent {
        let mut object = EventStream::new("orders", serde_saphyr::from_str(spec).unwrap());
        object.annotations_mut().insert(ACCEPT_DATA_LOSS.to_owned(), annotation.to_owned());
        Consent::of(&object)
    }

    fn refused_by(from: &Value, to: &Value, cause: Cause, annotation: &str) -> Option<String> {
        let plan = Plan::Update { steps: vec![config(to)], fields: Vec::new(), cause };
        let now = "2026-11-21T10:00:00Z".parse().unwrap();
        let consent = consent(annotation, "subjects: [a]");
        let blocked = refusal(&plan, Some(&info(from)), &consent, now)?;
        assert_eq!(blocked.reason, Reason::DataLoss);
        Some(blocked.message)
    }

    /// The annotation that an update needs.
    fn needs(from: &Value, to: &Value) -> Option<String> {
        let message = refused_by(from, to, Cause::Declaration, "")?;
        let pairs = message.split('"').nth(1)?.to_owned();
        assert_eq!(refused_by(from, to, Cause::Declaration, &pairs), None, "{pairs} is accepted");
        Some(pairs)
    }

    #[test]
    fn what_would_be_lost_needs_consent_to_each_field_and_value() {
        let none = json!({});
        for (from, to, expected) in [
            (none.clone(), json!({"retention": "interest"}), "retention=Interest"),
            (none.clone(), json!({"max_age": 7 * DAY_NANOS}), "limits.maxAge=7d"),
            (json!({"max_age": 9 * DAY_NANOS}), json!({"max_age": DAY_NANOS / 24}), "limits.maxAge=1h"),
            (none.clone(), json!({"max_bytes": 512}), "limits.maxBytes=512"),
            (json!({"max_msgs": 100}), json!({"max_msgs": 9}), "limits.maxMessages=9"),
            (none.clone(), json!({"max_msgs_per_subject": 1}), "limits.maxMessagesPerSubject=1"),
            (json!({"max_msgs": 5, "discard": "new"}), json!({"max_msgs": 5}), "limits.maxMessages=5"),
            (
                none.clone(),
                json!({"retention": "interest", "max_msgs": 1}),
                "retention=Interest, limits.maxMessages=1",
            ),
        ] {
            assert_eq!(needs(&from, &to).as_deref(), Some(expected), "{to}");
        }
    }

    #[test]
    fn what_loses_nothing_needs_none() {
        let none = json!({});
        for (from, to) in [
            (json!({"retention": "interest", "max_age": 5}), none.clone()),
            (json!({"max_age": DAY_NANOS}), json!({"max_age": 2 * DAY_NANOS})),
            (none.clone(), json!({"max_bytes": 1000, "max_msgs": 10, "max_msgs_per_subject": 7})),
            (none.clone(), json!({"max_msgs": 1, "max_bytes": 1, "discard": "new"})),
            (none.clone(), json!({"max_msg_size": 1, "subjects": ["b"]})),
        ] {
            assert_eq!(needs(&from, &to), None, "{to}");
        }
    }

    #[test]
    fn consent_is_to_a_value_however_it_is_written_and_to_no_other() {
        let of = |annotation: &str| {
            refused_by(&json!({}), &json!({"max_age": 7 * DAY_NANOS}), Cause::Declaration, annotation)
                .is_none()
        };
        assert!(of("limits.maxAge=168h") && of("retention=Interest,limits.maxAge = 1w"));
        assert!(!of("limits.maxAge=6d") && !of("limits.maxAge") && !of("maxAge=7d") && !of("true"));
    }

    #[test]
    fn the_message_has_what_is_known_of_what_would_go() {
        let message = |to: &Value| refused_by(&json!({}), to, Cause::Declaration, "").unwrap();
        let aged = message(&json!({"max_age": DAY_NANOS}));
        assert!(
            aged.contains("10 messages (1000 bytes) the oldest is 2d old, of 2026-11-19T10:00:00Z"),
            "{aged}"
        );
        let counted = message(&json!({"max_bytes": 300}));
        assert!(counted.contains("700 of 1000 bytes (10 messages) are over the limit"), "{counted}");
        let per_subject = message(&json!({"max_msgs_per_subject": 2}));
        assert!(per_subject.contains("at least 2 of 10 messages"), "{per_subject}");
    }

    #[test]
    fn another_writers_longer_age_is_corrected_where_nothing_is_too_old() {
        let of = |age: u64| {
            refused_by(&json!({"max_age": 9 * DAY_NANOS}), &json!({"max_age": age}), Cause::Drift, "")
        };
        assert_eq!(of(7 * DAY_NANOS), None);
        assert!(of(DAY_NANOS).is_some());
    }

    #[test]
    fn an_empty_stream_and_an_ephemeral_one_need_no_consent() {
        let plan = Plan::Update {
            steps: vec![config(&json!({"retention": "interest"}))],
            fields: Vec::new(),
            cause: Cause::Declaration,
        };
        let refused = |info: &StreamInfo, spec: &str| {
            refusal(&plan, Some(info), &consent("", spec), Timestamp::UNIX_EPOCH).is_some()
        };
        let mut stream = info(&json!({}));
        assert!(refused(&stream, "subjects: [a]"));
        assert!(!refused(&stream, "{subjects: [a], profile: Ephemeral}"));
        stream.state.messages = 0;
        assert!(!refused(&stream, "subjects: [a]"));
    }
}
