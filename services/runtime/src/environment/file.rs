//! In: the path of the bindings file. Out: what it says, or every mistake in it. Reads that one file.

use std::{fs, path::Path};

use jetwright_crds::environment::{
    BINDINGS_VERSION, Binding, Bindings, HANDLER_DEADLINES, JETWRIGHT_BINDINGS, StreamPartitions,
};
use jetwright_partitions::subjects::Partitions;
use jetwright_process::configuration::Problem;
use serde::Deserialize;

use super::problem;

/// Path of the version in the file.
const VERSION: &str = "version";

/// The content of a bindings file.
#[derive(Debug, Default)]
pub struct Read {
    pub bindings: Bindings,
    /// Paths of unknown fields.
    pub unknown_fields: Vec<String>,
}

/// Reads the file, which must have these bindings.
pub fn read(path: &Path, handlers: &[&str], problems: &mut Vec<Problem>) -> Read {
    let shown = path.display().to_string();
    let mut refuse = |path: &str, found: String, expected: &str| {
        problems.push(problem(path, Some(JETWRIGHT_BINDINGS), found, expected));
    };
    let text = fs::read_to_string(path).map_err(|error| error.to_string());
    match text.map_err(Refused::Unreadable).and_then(|text| parse(&text)) {
        Ok(read) => {
            for (name, binding) in &read.bindings.bindings {
                check(&format!("{shown}: bindings.{name}"), binding, &mut refuse);
            }
            for name in handlers.iter().filter(|name| !read.bindings.bindings.contains_key(**name)) {
                let known: Vec<_> = read.bindings.bindings.keys().map(String::as_str).collect();
                let found = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                refuse(
                    &format!("{shown}: bindings.{name}"),
                    format!("missing (there are: {found})"),
                    "expected the EventConsumer of this name among the workload's",
                );
            }
            read
        }
        Err(Refused::Unreadable(why)) => {
            refuse(&shown, why, "expected the operator's bindings file");
            Read::default()
        }
        Err(Refused::Version(found)) => {
            let expected = format!(
                "expected {BINDINGS_VERSION} at most: a newer operator wrote the file, so rebuild the program with a runtime of \
                 its release"
            );
            refuse(&format!("{shown}: {VERSION}"), format!("found {found}"), &expected);
            Read::default()
        }
    }
}

/// Why a file cannot be used.
#[derive(Debug)]
enum Refused {
    /// It is not a bindings file of its own version.
    Unreadable(String),
    /// It is of this version, which is newer than this code.
    Version(u64),
}

/// The part that every version of the file has.
#[derive(Deserialize)]
struct Head {
    #[serde(default = "first_version")]
    version: u64,
}

fn first_version() -> u64 {
    1
}

/// The version comes first: in a newer one, no other field is known to mean what it means here.
fn parse(text: &str) -> Result<Read, Refused> {
    let unreadable = |error: serde_saphyr::Error| Refused::Unreadable(error.to_string());
    match serde_saphyr::from_str::<Head>(text).map_err(unreadable)?.version {
        0 => return Err(Refused::Unreadable(format!("{VERSION} is 0, and the first one is 1"))),
        version if version > BINDINGS_VERSION => return Err(Refused::Version(version)),
        _ => {}
    }
    let mut unknown_fields = Vec::new();
    let bindings = serde_saphyr::with_deserializer_from_str(text, |file| {
        serde_ignored::deserialize(file, |path| unknown_fields.push(path.to_string()))
    });
    unknown_fields.retain(|path| path != VERSION);
    Ok(Read { bindings: bindings.map_err(unreadable)?, unknown_fields })
}

fn check(path: &str, binding: &Binding, refuse: &mut impl FnMut(&str, String, &str)) {
    let Binding {
        stream,
        consumer,
        ack_wait,
        max_ack_pending,
        retry,
        handler_deadline,
        partitions,
        ordering,
        dead_letters,
    } = binding;
    let backoff = retry.backoff;
    let dead_letters = dead_letters.as_ref().map_or("none", |dead_letters| &dead_letters.prefix);
    let partitions = partitions.as_ref().map_or(Ok(()), |StreamPartitions { subject, key_tokens, count }| {
        Partitions::new(subject, key_tokens, *count).map(drop)
    });
    let rules = [
        (
            "stream",
            is_name(stream),
            format!("found {stream:?}"),
            "expected a name without dots, spaces, * and >",
        ),
        (
            "consumer",
            is_name(consumer),
            format!("found {consumer:?}"),
            "expected a name without dots, spaces, * and >",
        ),
        ("ackWait", !ack_wait.0.is_zero(), format!("found {ack_wait}"), "expected more than nothing"),
        ("maxAckPending", *max_ack_pending > 0, "found 0".to_owned(), "expected at least 1"),
        (
            "handlerDeadline",
            HANDLER_DEADLINES.contains(handler_deadline),
            format!("found {handler_deadline}"),
            "expected 1s to 1h",
        ),
        ("retry.maxAttempts", retry.max_attempts > 0, "found 0".to_owned(), "expected at least 1"),
        ("retry.backoff.factor", backoff.factor > 0, "found 0".to_owned(), "expected at least 1"),
        // Without a delay all attempts would be over within milliseconds.
        (
            "retry.backoff.initial",
            !backoff.initial.0.is_zero() && backoff.initial <= backoff.max,
            format!("found {}", backoff.initial),
            "expected more than nothing and no more than retry.backoff.max",
        ),
        (
            "partitions",
            partitions.is_ok(),
            partitions.err().map_or_else(String::new, |error| format!("found that {error}")),
            "expected what the operator writes",
        ),
        (
            "ordering.keyTokens",
            ordering
                .as_ref()
                .is_none_or(|ordering| !ordering.key_tokens.is_empty() && !ordering.key_tokens.contains(&0)),
            ordering.as_ref().map_or_else(String::new, |ordering| format!("found {:?}", ordering.key_tokens)),
            "expected the positions, from 1, of the tokens of a subject that are the key",
        ),
        (
            "deadLetters.prefix",
            dead_letters.split('.').all(is_name),
            format!("found {dead_letters:?}"),
            "expected the beginning of a subject, without * and >",
        ),
    ];
    for (field, holds, found, expected) in rules {
        if !holds {
            refuse(&format!("{path}.{field}"), found, expected);
        }
    }
}

/// Names of streams and consumers are tokens of subjects (NATS ADR-6).
fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || ".*>/\\".contains(c))
}
