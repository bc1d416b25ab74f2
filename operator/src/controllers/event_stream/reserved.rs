//! In: the name and the subjects of a stream, and what was found of whom they belong to. Out: what of them belongs to others. Pure.
//!
//! nats-server refuses subjects of another stream and those of its own API (`checkStreamCfg` in server/stream.go), and takes all others: whoever
//! listens to them gets what the programs of others publish, and acknowledges it to them.

use std::collections::BTreeSet;

use jetwright_crds::{EventStreamSpec, Size, stream::Storage};

use crate::field_error::FieldError;

/// How the servers' own subjects begin: the system's, those of replies and inboxes, those of gateways.
const SERVERS: [&str; 4] = ["$", "_INBOX", "_R_", "_GR_"];
/// The first token of Jetwright's own subjects.
const JETWRIGHT: &str = "jetwright";
/// The second token of those of dead letters, and of their replays.
const DEAD_LETTERS: [&str; 2] = ["dlq", "replay"];
/// The second token of those by which an installation is checked.
const VERIFY: &str = "verify";
/// The stream of the bucket that the operator itself makes.
const OPERATORS_BUCKET: &str = "KV_jetwright";
/// Most that a stream by which an installation is checked may hold.
const MAX_VERIFY_BYTES: Size = Size(64 << 10);

/// What was found of whom reserved subjects belong to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Streams whose dead letters the object may keep.
    pub dead_letters_of: BTreeSet<String>,
    /// Whether the object is in the operator's own namespace, where the streams are that the operator itself needs.
    pub in_operators_namespace: bool,
}

/// A kind of buckets, which clients find by the names of their streams and subjects (ADR-8 and ADR-20 of NATS).
struct BucketKind {
    name: &'static str,
    stream_prefix: &'static str,
    subject_prefix: &'static str,
    /// What follows the bucket's name in its subjects.
    rest: &'static [&'static str],
}

const BUCKETS: [BucketKind; 2] = [
    BucketKind { name: "key-value bucket", stream_prefix: "KV_", subject_prefix: "$KV.", rest: &[">"] },
    BucketKind { name: "object bucket", stream_prefix: "OBJ_", subject_prefix: "$O.", rest: &["C.>", "M.>"] },
];

impl BucketKind {
    fn subjects(&self, bucket: &str) -> Vec<String> {
        self.rest.iter().map(|rest| format!("{}{bucket}.{rest}", self.subject_prefix)).collect()
    }
}

/// Everything that belongs to others.
pub fn errors(name: &str, spec: &EventStreamSpec, grants: &Grants) -> Vec<FieldError> {
    // Subjects are the only field by which a stream takes what others publish. A field that has the servers copy, or publish elsewhere, is
    // judged here too.
    let EventStreamSpec {
        subjects,
        // It adds a token at the end of the stream's own subjects, and moves none.
        partitions: _,
        stream_name: _,
        profile: _,
        retention: _,
        storage: _,
        replicas: _,
        limits: _,
        discard: _,
        duplicate_window: _,
        allow_direct: _,
        allow_message_ttl: _,
        monitoring: _,
        deletion_policy: _,
        adoption_policy: _,
    } = spec;
    let of_name = name.starts_with('$').then(|| {
        let message = format!("{name} begins with $, as the servers' own streams do: choose another name");
        FieldError::new("spec.streamName", message)
    });
    let of_subjects = match bucket(name, subjects, grants) {
        Bucket::Not => subjects.iter().find_map(|subject| subject_error(subject, spec, grants)),
        Bucket::Whole => None,
        Bucket::Wrong(message) => Some(message),
    };
    of_name.into_iter().chain(of_subjects.map(|message| FieldError::new("spec.subjects", message))).collect()
}

/// Whether a stream is a bucket, by its name.
enum Bucket {
    Not,
    Whole,
    Wrong(String),
}

fn bucket(name: &str, subjects: &[String], grants: &Grants) -> Bucket {
    let named = BUCKETS.iter().find_map(|kind| Some((kind, name.strip_prefix(kind.stream_prefix)?)));
    let Some((kind, bucket)) = named else { return Bucket::Not };
    if name == OPERATORS_BUCKET {
        return Bucket::Wrong(format!(
            "stream {name} is the bucket in which partitions are shared out, and the operator makes it: name the stream otherwise by \
             spec.streamName"
        ));
    }
    let is_jetwrights = bucket.split('-').next() == Some(JETWRIGHT);
    if is_jetwrights && !grants.in_operators_namespace {
        return Bucket::Wrong(format!(
            "buckets whose names begin with {JETWRIGHT} belong to Jetwright: name the stream otherwise by spec.streamName"
        ));
    }
    let expected = kind.subjects(bucket);
    if expected.iter().collect::<BTreeSet<_>>() == subjects.iter().collect::<BTreeSet<_>>() {
        return Bucket::Whole;
    }
    Bucket::Wrong(format!(
        "stream {name} is the {} {bucket}, whose subjects are {}: set these and no others, or name the stream otherwise by \
         spec.streamName",
        kind.name,
        expected.join(", ")
    ))
}

/// Whom a subject belongs to, of a stream that is no bucket.
fn subject_error(subject: &str, spec: &EventStreamSpec, grants: &Grants) -> Option<String> {
    let tokens: Vec<_> = subject.split('.').collect();
    match tokens.as_slice() {
        [first, ..] if is_wildcard(first) => Some(format!(
            "{subject} begins with a wildcard, and so covers what belongs to others: begin with a word of your own"
        )),
        [JETWRIGHT, rest @ ..] if !rest.is_empty() => jetwright_error(subject, rest, spec, grants),
        [first, ..] if SERVERS.iter().any(|prefix| first.starts_with(prefix)) => {
            Some(bucket_of(subject).unwrap_or_else(|| {
                format!(
                    "{subject}: subjects that begin with {} belong to the servers: choose others",
                    SERVERS.join(", ")
                )
            }))
        }
        _ => None,
    }
}

/// Whose bucket a subject belongs to.
fn bucket_of(subject: &str) -> Option<String> {
    let found = BUCKETS.iter().find_map(|kind| Some((kind, subject.strip_prefix(kind.subject_prefix)?)));
    let (kind, bucket) = found.map(|(kind, rest)| (kind, rest.split('.').next().unwrap_or_default()))?;
    Some(format!(
        "{}{bucket} belongs to the stream {}{bucket}: name this stream so by spec.streamName, or choose other subjects",
        kind.subject_prefix, kind.stream_prefix
    ))
}

/// Whom one of Jetwright's own subjects belongs to.
fn jetwright_error(subject: &str, rest: &[&str], spec: &EventStreamSpec, grants: &Grants) -> Option<String> {
    match rest {
        [kind, stream, _, ..] if DEAD_LETTERS.contains(kind) => {
            (!grants.dead_letters_of.contains(*stream)).then(|| {
                format!(
                    "{subject} is for the dead letters of stream {stream}, which only an EventStream <name>-dlq may keep in whose namespace \
                     the EventStream <name> owns that stream in JetStream: choose other subjects"
                )
            })
        }
        [VERIFY, token] if !is_wildcard(token) => {
            let max_bytes = spec.limits.as_ref().and_then(|limits| limits.max_bytes);
            let bounded = max_bytes.is_some_and(|bytes| bytes <= MAX_VERIFY_BYTES);
            (spec.effective_storage() != Storage::Memory || !bounded).then(|| {
                format!(
                    "{subject} is for checks of an installation: set storage: Memory and limits.maxBytes to {MAX_VERIFY_BYTES} at \
                     most, or choose other subjects"
                )
            })
        }
        [kind, ..]
            if grants.in_operators_namespace
                && !is_wildcard(kind)
                && *kind != VERIFY
                && !DEAD_LETTERS.contains(kind) =>
        {
            None
        }
        _ => Some(format!("{subject}: subjects that begin with {JETWRIGHT} belong to Jetwright: choose others")),
    }
}

fn is_wildcard(token: &str) -> bool {
    matches!(token, "*" | ">")
}

/// The stream whose dead letters, or replays of them, a subject is for.
pub fn dead_letters_of(subject: &str) -> Option<&str> {
    let mut tokens = subject.split('.');
    let kind = (tokens.next()? == JETWRIGHT).then(|| tokens.next()).flatten()?;
    let stream = tokens.next().filter(|stream| !is_wildcard(stream))?;
    (DEAD_LETTERS.contains(&kind) && tokens.next().is_some()).then_some(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors_of(name: &str, spec: &str, grants: &Grants) -> Vec<FieldError> {
        errors(name, &serde_saphyr::from_str(spec).unwrap(), grants)
    }

    fn is_refused(subject: &str, grants: &Grants) -> bool {
        let found = errors_of("orders", &format!("{{subjects: ['{subject}']}}"), grants);
        assert!(found.iter().all(|error| error.field == "spec.subjects" && error.message.contains(subject)));
        !found.is_empty()
    }

    #[test]
    fn subjects_of_ones_own_are_free() {
        for subject in [
            "orders.>",
            "orders.*.placed",
            "a",
            "orders.$KV.a",
            "jetwright",
            "jetwrighter.dlq.a.>",
            "a._INBOX",
        ] {
            assert!(!is_refused(subject, &Grants::default()), "{subject}");
        }
    }

    #[test]
    fn what_belongs_to_the_servers_is_refused_with_every_wildcard_that_covers_it() {
        for subject in [
            ">",
            "*",
            "*.x",
            "*.>",
            "$MQTT.>",
            "$SRV.PING",
            "$JS.EVENT.ADVISORY.>",
            "$JS.ACK.>",
            "$SYS.ACCOUNT.>",
            "$NRG.x",
            "$JSC.x",
            "$LDS.x",
            "$GR.x",
            "$G",
            "$x",
            "_INBOX.>",
            "_INBOX_operator.>",
            "_R_.x",
            "_GR_.>",
        ] {
            assert!(is_refused(subject, &Grants::default()), "{subject}");
            let own = Grants { in_operators_namespace: true, ..Grants::default() };
            assert!(is_refused(subject, &own), "{subject}");
        }
    }

    #[test]
    fn a_stream_is_a_bucket_by_its_name_if_and_only_if_its_subjects_are_the_buckets() {
        for (name, subjects, right) in [
            ("KV_users", "'$KV.users.>'", true),
            ("KV_users", "'$KV.users.>', '$KV.others.>'", false),
            ("KV_users", "'$KV.users.>', users", false),
            ("KV_users", "'$KV.users.a.>'", false),
            ("KV_users", "users", false),
            ("KV_", "users", false),
            ("users", "'$KV.users.>'", false),
            ("OBJ_users", "'$KV.users.>'", false),
            ("OBJ_files", "'$O.files.C.>', '$O.files.M.>'", true),
            ("OBJ_files", "'$O.files.M.>', '$O.files.C.>'", true),
            ("OBJ_files", "'$O.files.C.>'", false),
            ("OBJ_files", "'$O.files.>'", false),
        ] {
            let found = errors_of(name, &format!("{{subjects: [{subjects}]}}"), &Grants::default());
            assert_eq!(found.is_empty(), right, "{name} {subjects}: {found:?}");
        }
    }

    #[test]
    fn buckets_of_jetwright_itself_are_for_the_operators_namespace_and_its_own_bucket_for_nobody() {
        let own = Grants { in_operators_namespace: true, ..Grants::default() };
        for (bucket, is_free) in [("jetwright", false), ("jetwright-notes", true)] {
            let (name, spec) = (format!("KV_{bucket}"), format!("{{subjects: ['$KV.{bucket}.>']}}"));
            assert!(!errors_of(&name, &spec, &Grants::default()).is_empty());
            assert_eq!(errors_of(&name, &spec, &own).is_empty(), is_free, "{bucket}");
        }
        let others = errors_of("mine", "{subjects: ['$KV.jetwright.>']}", &own);
        assert_eq!(others.len(), 1, "{others:?}");
        assert_eq!(errors_of("KV_jetwrights", "{subjects: ['$KV.jetwrights.>']}", &Grants::default()), []);
    }

    #[test]
    fn the_names_of_the_servers_own_streams_are_refused() {
        let found = errors_of("$MQTT_sess", "{subjects: [a]}", &Grants::default());
        assert_eq!(found.iter().map(|error| error.field).collect::<Vec<_>>(), ["spec.streamName"]);
    }

    #[test]
    fn dead_letters_are_kept_for_the_streams_that_were_granted_and_no_other() {
        let grants = Grants { dead_letters_of: ["orders".to_owned()].into(), ..Grants::default() };
        for subject in ["jetwright.dlq.orders.>", "jetwright.replay.orders.>", "jetwright.dlq.orders.*.1.>"] {
            assert!(!is_refused(subject, &grants), "{subject}");
            assert!(is_refused(subject, &Grants::default()), "{subject}");
        }
        for subject in [
            "jetwright.dlq.payments.>",
            "jetwright.dlq.*.>",
            "jetwright.dlq.>",
            "jetwright.dlq.orders",
            "jetwright.*.orders.>",
            "jetwright.>",
            "jetwright.*.*.*",
        ] {
            assert!(is_refused(subject, &grants), "{subject}");
        }
    }

    #[test]
    fn checks_of_an_installation_are_small_and_in_memory() {
        let verify = |rest: &str| {
            errors_of("a", &format!("{{subjects: [jetwright.verify.0a], {rest}}}"), &Grants::default())
                .is_empty()
        };
        assert!(verify("storage: Memory, limits: {maxBytes: 64Ki}"));
        assert!(verify("profile: Ephemeral, limits: {maxBytes: 1Ki}"));
        assert!(!verify("limits: {maxBytes: 64Ki}"));
        assert!(!verify("storage: Memory"));
        assert!(!verify("storage: Memory, limits: {maxBytes: 65537}"));
        let all = "{subjects: [jetwright.verify.>], storage: Memory, limits: {maxBytes: 64Ki}}";
        assert!(!errors_of("a", all, &Grants::default()).is_empty());
    }

    #[test]
    fn what_jetwright_itself_needs_is_for_the_operators_namespace_and_takes_nothing_of_others_with_it() {
        let own = Grants { in_operators_namespace: true, ..Grants::default() };
        assert!(!is_refused("jetwright.advisories.>", &own));
        assert!(is_refused("jetwright.advisories.>", &Grants::default()));
        for subject in [
            "jetwright.>",
            "jetwright.*.x",
            "jetwright.dlq.>",
            "jetwright.dlq.orders.>",
            "jetwright.verify.>",
        ] {
            assert!(is_refused(subject, &own), "{subject}");
        }
    }

    #[test]
    fn a_subject_tells_whose_dead_letters_it_is_for() {
        for (subject, stream) in [
            ("jetwright.dlq.orders.>", Some("orders")),
            ("jetwright.replay.orders.c.0.1.2", Some("orders")),
            ("jetwright.dlq.orders", None),
            ("jetwright.dlq.*.>", None),
            ("jetwright.dlq.>", None),
            ("jetwright.verify.a.b", None),
            ("orders.dlq.orders.>", None),
        ] {
            assert_eq!(dead_letters_of(subject), stream, "{subject}");
        }
    }
}
