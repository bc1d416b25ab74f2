//! In: a raw spec. Out: the stream that it declares, whole, or everything that is wrong with it. Pure.
//!
//! What the API server refuses by the schema is not judged again here.

use std::time::Duration;

use jetwright_crds::{
    EventStreamSpec,
    stream::{Discard, Limits, Profile, Retention, Storage},
};
use serde_json::json;

use crate::{
    identity::Identity,
    jetstream::Config,
    outcome::{Problem, problem},
};

/// Shortest age and duplicate window that JetStream takes (checkStreamCfg in server/stream.go of nats-server).
const SHORTEST: Duration = Duration::from_millis(100);
/// JetStream's duplicate window where none is set.
const DUPLICATE_WINDOW: Duration = Duration::from_mins(2);

/// How the subjects and the streams of key-value and object buckets begin (ADR-8 and ADR-20 of NATS).
const BUCKETS: [(&str, &str); 2] = [("$KV.", "KV_"), ("$O.", "OBJ_")];

/// A stream as it is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Name of the stream.
    pub name: String,
    /// Whose it is.
    pub identity: Identity,
    /// Servers that keep a copy.
    pub replicas: Replicas,
    /// Everything else: fields that are left out have JetStream's default.
    config: Config,
}

/// How many servers are to keep a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicas {
    /// So many.
    Exactly(u8),
    /// So many if there are so many servers when the stream is made; later what was settled then.
    UpTo(u8),
}

impl Desired {
    /// The whole configuration, with this number of replicas.
    pub fn config(&self, replicas: u8) -> Config {
        self.identity.mark(self.config.clone().with("num_replicas", replicas))
    }
}

/// What a profile has for the fields that are left out.
struct Defaults {
    storage: Storage,
    replicas: Replicas,
    max_age: Option<Duration>,
    discard: Discard,
}

fn defaults(profile: Option<Profile>) -> Defaults {
    let jetstream = Defaults {
        storage: Storage::File,
        replicas: Replicas::Exactly(1),
        max_age: None,
        discard: Discard::Old,
    };
    match profile {
        None => jetstream,
        Some(Profile::Critical) => {
            Defaults { replicas: Replicas::UpTo(3), discard: Discard::New, ..jetstream }
        }
        Some(Profile::Standard) => {
            Defaults { replicas: Replicas::UpTo(3), max_age: Some(Duration::from_hours(7 * 24)), ..jetstream }
        }
        Some(Profile::Ephemeral) => {
            Defaults { storage: Storage::Memory, max_age: Some(Duration::from_hours(1)), ..jetstream }
        }
    }
}

/// Where messages are kept: what is set, or what the profile says.
#[must_use]
pub fn effective_storage(spec: &EventStreamSpec) -> Storage {
    spec.storage.unwrap_or_else(|| defaults(spec.profile).storage)
}

/// Makes the desired stream of a spec.
///
/// # Errors
///
/// Everything that is wrong, each with its field and what to do.
pub fn validate(spec: &EventStreamSpec, identity: &Identity) -> Result<Desired, Vec<Problem>> {
    let EventStreamSpec {
        stream_name,
        profile,
        subjects,
        retention,
        storage: _,
        replicas,
        limits,
        discard,
        duplicate_window,
        allow_direct,
        allow_message_ttl,
        deletion_policy: _,
    } = spec;
    let defaults = defaults(*profile);
    let limits = limits.clone().unwrap_or_default();
    let max_age = limits.max_age.map(|age| age.0).or(defaults.max_age);
    let window = duplicate_window
        .map_or_else(|| max_age.map_or(DUPLICATE_WINDOW, |age| age.min(DUPLICATE_WINDOW)), |window| window.0);

    let name = stream_name.clone().unwrap_or_else(|| identity.name.clone());
    let mut problems = limit_problems(&limits);
    problems.extend(bucket_problem(&name, subjects));
    problems.extend(window_problem(window, max_age));
    if !problems.is_empty() {
        return Err(problems);
    }

    let config = Config::default()
        .with("name", name.clone())
        .with("subjects", json!(subjects))
        .with("retention", retention_text(retention.unwrap_or_default()))
        .with("storage", storage_text(effective_storage(spec)))
        .with("discard", discard_text(discard.unwrap_or(defaults.discard)))
        .with("max_age", max_age.map_or(0, nanos))
        .with("max_bytes", limits.max_bytes.map_or(-1, jetwright_crds::Size::as_i64))
        .with("max_msgs", count(limits.max_messages))
        .with("max_msgs_per_subject", count(limits.max_messages_per_subject))
        .with("max_msg_size", limits.max_message_size.map_or(-1, jetwright_crds::Size::as_i64))
        .with("duplicate_window", nanos(window))
        .with("allow_direct", allow_direct.unwrap_or_default())
        .with("allow_msg_ttl", allow_message_ttl.unwrap_or_default());
    let replicas = replicas.map_or(defaults.replicas, Replicas::Exactly);
    Ok(Desired { name, identity: identity.clone(), replicas, config })
}

/// Subjects of a bucket belong to the stream that is the bucket: another stream would keep what is not its own.
fn bucket_problem(name: &str, subjects: &[String]) -> Option<Problem> {
    BUCKETS.iter().find_map(|(subject_prefix, name_prefix)| {
        let bucket = |subject: &String| subject.strip_prefix(subject_prefix)?.split('.').next().map(str::to_owned);
        let foreign = subjects.iter().filter_map(bucket).find(|bucket| *name != format!("{name_prefix}{bucket}"))?;
        let message = format!(
            "{subject_prefix}{foreign} belongs to the stream {name_prefix}{foreign}: name this stream so by spec.streamName, or \
             choose other subjects"
        );
        Some(problem("spec.subjects", message))
    })
}

fn limit_problems(limits: &Limits) -> Vec<Problem> {
    let Limits { max_age, max_bytes, max_messages: _, max_messages_per_subject: _, max_message_size } =
        limits;
    let mut problems = Vec::new();
    if let Some(age) = max_age
        && age.0 < SHORTEST
    {
        problems.push(problem(
            "spec.limits.maxAge",
            format!("{age} is less than 100ms; leave it out to keep messages for ever"),
        ));
    }
    if max_bytes.is_some_and(|bytes| bytes.0 == 0) {
        problems.push(problem("spec.limits.maxBytes", "0 would hold nothing; leave it out for no limit"));
    }
    match max_message_size {
        Some(size) if size.0 == 0 => {
            problems.push(problem(
                "spec.limits.maxMessageSize",
                "0 would take nothing; leave it out for no limit",
            ));
        }
        Some(size) if i32::try_from(size.0).is_err() => {
            problems.push(problem(
                "spec.limits.maxMessageSize",
                format!("{size} is more than 2Gi - 1, JetStream's own limit"),
            ));
        }
        _ => {}
    }
    problems
}

fn window_problem(window: Duration, max_age: Option<Duration>) -> Option<Problem> {
    let field = "spec.duplicateWindow";
    let shown = jetwright_crds::Duration(window);
    if window < SHORTEST {
        return Some(problem(
            field,
            format!("{shown} is less than 100ms, the shortest that JetStream takes"),
        ));
    }
    let age = max_age.filter(|age| window > *age)?;
    let age = jetwright_crds::Duration(age);
    Some(problem(
        field,
        format!("{shown} is longer than messages are kept ({age}): shorten it, or raise spec.limits.maxAge"),
    ))
}

fn nanos(duration: Duration) -> i64 {
    jetwright_crds::Duration(duration).as_nanos()
}

fn count(limit: Option<u64>) -> i64 {
    limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX))
}

fn retention_text(retention: Retention) -> &'static str {
    match retention {
        Retention::Limits => "limits",
        Retention::Interest => "interest",
        Retention::WorkQueue => "workqueue",
    }
}

fn storage_text(storage: Storage) -> &'static str {
    match storage {
        Storage::File => "file",
        Storage::Memory => "memory",
    }
}

fn discard_text(discard: Discard) -> &'static str {
    match discard {
        Discard::Old => "old",
        Discard::New => "new",
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::Value;

    use super::*;

    fn identity(generation: i64) -> Identity {
        Identity {
            cluster: "east".into(),
            namespace: "shop".into(),
            name: "orders".into(),
            uid: "u1".into(),
            generation,
        }
    }

    pub fn desired(spec: &str) -> Desired {
        desired_at(1, spec)
    }

    pub fn desired_at(generation: i64, spec: &str) -> Desired {
        validate(&serde_saphyr::from_str(spec).unwrap(), &identity(generation)).unwrap()
    }

    fn validated(spec: &str) -> Result<Desired, Vec<Problem>> {
        validate(&serde_saphyr::from_str(spec).unwrap(), &identity(1))
    }

    fn fields(spec: &str) -> Vec<&'static str> {
        validated(spec).unwrap_err().into_iter().map(|problem| problem.field).collect()
    }

    fn json_of(desired: &Desired) -> Value {
        let mut config = serde_json::to_value(desired.config(1)).unwrap();
        config["metadata"].as_object_mut().unwrap().remove("jetwright.dev/applied").unwrap();
        config
    }

    #[test]
    fn a_minimal_spec_is_whole_with_jetstreams_defaults() {
        let desired = desired("subjects: [orders.>]");
        assert_eq!(desired.replicas, Replicas::Exactly(1));
        assert_eq!(
            json_of(&desired),
            json!({
                "name": "orders", "subjects": ["orders.>"], "retention": "limits", "storage": "file", "discard": "old",
                "max_age": 0, "max_bytes": -1, "max_msgs": -1, "max_msgs_per_subject": -1, "max_msg_size": -1,
                "duplicate_window": 120_000_000_000_i64, "num_replicas": 1, "allow_direct": false, "allow_msg_ttl": false,
                "metadata": {
                    "jetwright.dev/owner": "east/shop/orders", "jetwright.dev/uid": "u1", "jetwright.dev/generation": "1",
                },
            })
        );
    }

    #[test]
    fn profiles_are_defaults_and_a_field_that_is_set_wins() {
        let critical = desired("{subjects: [a], profile: Critical}");
        assert_eq!(critical.replicas, Replicas::UpTo(3));
        assert_eq!(
            (&json_of(&critical)["discard"], &json_of(&critical)["max_age"]),
            (&json!("new"), &json!(0))
        );
        let standard = desired("{subjects: [a], profile: Standard, replicas: 1, limits: {maxAge: 1d}}");
        assert_eq!(standard.replicas, Replicas::Exactly(1));
        assert_eq!(json_of(&standard)["max_age"], json!(86_400_000_000_000_i64));
        let ephemeral = json_of(&desired("{subjects: [a], profile: Ephemeral}"));
        assert_eq!(
            (&ephemeral["storage"], &ephemeral["max_age"]),
            (&json!("memory"), &json!(3_600_000_000_000_i64))
        );
    }

    #[test]
    fn the_duplicate_window_shrinks_with_the_age_unless_it_is_set() {
        assert_eq!(
            json_of(&desired("{subjects: [a], limits: {maxAge: 30s}}"))["duplicate_window"],
            json!(30_000_000_000_i64)
        );
        assert_eq!(
            fields("{subjects: [a], limits: {maxAge: 30s}, duplicateWindow: 1m}"),
            ["spec.duplicateWindow"]
        );
    }

    #[test]
    fn the_subjects_of_a_bucket_are_its_own_streams() {
        assert_eq!(fields("{subjects: ['$KV.users.>']}"), ["spec.subjects"]);
        assert_eq!(
            fields("{streamName: KV_users, subjects: ['$KV.users.>', '$KV.others.>']}"),
            ["spec.subjects"]
        );
        desired("{streamName: KV_users, subjects: ['$KV.users.>']}");
        desired("{streamName: OBJ_files, subjects: ['$O.files.C.>', '$O.files.M.>']}");
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let spec =
            "{subjects: [a], limits: {maxAge: 10ms, maxBytes: 0, maxMessageSize: 2Gi}, duplicateWindow: 1ms}";
        let all = [
            "spec.limits.maxAge",
            "spec.limits.maxBytes",
            "spec.limits.maxMessageSize",
            "spec.duplicateWindow",
        ];
        assert_eq!(fields(spec), all);
    }
}
