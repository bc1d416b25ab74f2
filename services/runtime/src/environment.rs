//! What the operator tells a pod: where NATS is, who the pod is there, and which consumers its handlers consume from. Reads
//! the environment, one file, and the folder of credentials.

use std::{env, fs, path::Path};

use async_nats::ServerAddr;
use jetwright_crds::environment::{
    Binding, Bindings, HANDLER_DEADLINES, JETWRIGHT_BINDINGS, NATS_CREDENTIALS, NATS_URL, OTEL_SERVICE_NAME,
};
use jetwright_process::{
    configuration::{Problem, Problems},
    nats::Credentials,
};

/// The environment of a service, checked.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Name that the connection carries, as NATS' own reports show it.
    pub name: String,
    /// Addresses of the NATS servers; at least one.
    pub servers: Vec<ServerAddr>,
    /// Who the service is to NATS; none where the servers ask for nothing.
    pub credentials: Option<Credentials>,
    /// What each handler consumes from, by the name of its EventConsumer.
    pub bindings: Bindings,
}

impl Environment {
    /// Reads `NATS_URL`, the folder that `NATS_CREDENTIALS` names, and the file that `JETWRIGHT_BINDINGS` names, which must have
    /// these bindings: those of the program's handlers. A program without handlers needs no file.
    ///
    /// # Errors
    ///
    /// Every mistake, each with its variable or its path in the file.
    pub fn from_env(handlers: &[&str]) -> Result<Self, Problems> {
        Self::from_variables(handlers, |name| env::var(name).ok())
    }

    /// The same from variables of the caller's.
    ///
    /// # Errors
    ///
    /// Every mistake, each with its variable or its path in the file.
    pub fn from_variables(
        handlers: &[&str],
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Problems> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let mut problems = Vec::new();
        let servers = servers(set(NATS_URL).as_deref(), &mut problems);
        let credentials = set(NATS_CREDENTIALS).map(|folder| Credentials::open(NATS_CREDENTIALS, folder));
        let credentials = credentials.transpose().unwrap_or_else(|found| {
            problems.extend_from_slice(found.as_slice());
            None
        });
        let bindings = match set(JETWRIGHT_BINDINGS) {
            None if handlers.is_empty() => Bindings::default(),
            None => {
                let expected = format!("expected the path of a file with {}", handlers.join(", "));
                problems.push(problem(JETWRIGHT_BINDINGS, None, "not set", &expected));
                Bindings::default()
            }
            Some(path) => bindings(Path::new(&path), handlers, &mut problems),
        };
        Problems::check(problems)?;
        let name = set(OTEL_SERVICE_NAME).unwrap_or_else(|| "jetwright-service".to_owned());
        Ok(Self { name, servers, credentials, bindings })
    }
}

fn problem(path: &str, variable: Option<&str>, found: impl Into<String>, expected: &str) -> Problem {
    Problem {
        path: path.to_owned(),
        variable: variable.map(ToOwned::to_owned),
        found: found.into(),
        expected: expected.to_owned(),
    }
}

fn servers(text: Option<&str>, problems: &mut Vec<Problem>) -> Vec<ServerAddr> {
    let expected = "expected comma-separated addresses of NATS servers, as in nats://nats.nats.svc:4222";
    let Some(text) = text else {
        problems.push(problem(NATS_URL, None, "not set", expected));
        return Vec::new();
    };
    let mut servers = Vec::new();
    for address in text.split(',').map(str::trim) {
        match address.parse::<ServerAddr>() {
            // The client would not use it (async-nats 0.51), and the environment is no place for it.
            Ok(server) if server.has_user_pass() => {
                let expected = format!("expected it in the files of {NATS_CREDENTIALS}");
                problems.push(problem(NATS_URL, None, "an address has a user, password or token", &expected));
            }
            Ok(server) if !address.is_empty() => servers.push(server),
            // The text may hold a password, so only the reason is told.
            Ok(_) => problems.push(problem(NATS_URL, None, "an address is empty", expected)),
            Err(error) => {
                problems.push(problem(NATS_URL, None, format!("an address is wrong: {error}"), expected));
            }
        }
    }
    servers
}

fn bindings(path: &Path, handlers: &[&str], problems: &mut Vec<Problem>) -> Bindings {
    let shown = path.display().to_string();
    let read = fs::read_to_string(path).map_err(|error| error.to_string());
    let parsed =
        read.and_then(|text| serde_saphyr::from_str::<Bindings>(&text).map_err(|error| error.to_string()));
    match parsed {
        Ok(bindings) => {
            for (name, binding) in &bindings.bindings {
                check(&format!("{shown}: bindings.{name}"), binding, problems);
            }
            for name in handlers.iter().filter(|name| !bindings.bindings.contains_key(**name)) {
                let known: Vec<_> = bindings.bindings.keys().map(String::as_str).collect();
                let found = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                problems.push(problem(
                    &format!("{shown}: bindings.{name}"),
                    Some(JETWRIGHT_BINDINGS),
                    format!("missing (there are: {found})"),
                    "expected the EventConsumer of this name among the workload's",
                ));
            }
            bindings
        }
        Err(error) => {
            problems.push(problem(
                &shown,
                Some(JETWRIGHT_BINDINGS),
                error,
                "expected the operator's bindings file",
            ));
            Bindings::default()
        }
    }
}

fn check(path: &str, binding: &Binding, problems: &mut Vec<Problem>) {
    let Binding {
        stream,
        consumer,
        ack_wait,
        max_ack_pending,
        retry,
        handler_deadline,
        ordering,
        dead_letters,
    } = binding;
    let backoff = retry.backoff;
    let dead_letters = dead_letters.as_ref().map_or("none", |dead_letters| &dead_letters.prefix);
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
            "ordering.keyTokens",
            ordering.as_ref().is_none_or(|ordering| !ordering.key_tokens.is_empty()),
            "found none".to_owned(),
            "expected the positions, from 0, of the tokens of a subject that are the key",
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
            problems.push(problem(&format!("{path}.{field}"), Some(JETWRIGHT_BINDINGS), found, expected));
        }
    }
}

/// Names of streams and consumers are tokens of subjects (NATS ADR-6).
fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || ".*>/\\".contains(c))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use jetwright_crds::{Duration, environment::Retry};

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn environment(url: Option<&str>, bindings: Option<&Path>) -> Result<Environment, Problems> {
        for_handlers(&[], url, bindings)
    }

    fn for_handlers(
        handlers: &[&str],
        url: Option<&str>,
        bindings: Option<&Path>,
    ) -> Result<Environment, Problems> {
        Environment::from_variables(handlers, |name| match name {
            NATS_URL => url.map(ToOwned::to_owned),
            JETWRIGHT_BINDINGS => bindings.map(|path| path.display().to_string()),
            _ => None,
        })
    }

    #[test]
    fn credentials_are_files_and_what_is_wrong_with_them_is_told_with_all_other_mistakes() {
        let folder = tempfile::tempdir().unwrap();
        let read = |url: &str| {
            Environment::from_variables(&[], |name| match name {
                NATS_URL => Some(url.to_owned()),
                NATS_CREDENTIALS => Some(folder.path().display().to_string()),
                _ => None,
            })
        };
        fs::write(folder.path().join("password"), "hunter2").unwrap();
        let told = read("nats://a:4222,nats://service:hunter2@b:4222").unwrap_err().to_string();
        assert!(told.contains("NATS_URL: an address has a user, password or token; expected it in the files of NATS_CREDENTIALS"), "{told}");
        assert!(
            told.contains("/username (NATS_CREDENTIALS): missing; expected it beside password"),
            "{told}"
        );
        assert!(!told.contains("hunter2"), "{told}");
        fs::write(folder.path().join("username"), "service").unwrap();
        assert!(read("nats://a:4222").unwrap().credentials.is_some());
    }

    #[test]
    fn a_handler_without_a_binding_is_told_with_all_other_mistakes() {
        let file = file(
            "bindings: {mails: {stream: users, consumer: c, ackWait: 30s, maxAckPending: 0, \
             retry: {maxAttempts: 3, backoff: {initial: 1s, factor: 2, max: 1s}}}}",
        );
        let told = for_handlers(&["mails", "letters"], None, Some(file.path())).unwrap_err().to_string();
        assert!(told.contains("NATS_URL: not set"), "{told}");
        assert!(told.contains("bindings.mails.maxAckPending"), "{told}");
        let missing =
            "bindings.letters (JETWRIGHT_BINDINGS): missing (there are: mails); expected the EventConsumer";
        assert!(told.contains(missing), "{told}");
        let told = for_handlers(&["letters"], Some("localhost"), None).unwrap_err().to_string();
        assert_eq!(told, "JETWRIGHT_BINDINGS: not set; expected the path of a file with letters");
    }

    #[test]
    fn what_the_operator_writes_is_read() {
        let written = Bindings {
            bindings: [(
                "order-users".to_owned(),
                Binding {
                    stream: "users".to_owned(),
                    consumer: "order-users".to_owned(),
                    ack_wait: Duration::from_secs(30),
                    max_ack_pending: 256,
                    retry: Retry::default(),
                    handler_deadline: Duration::from_secs(90),
                    ordering: None,
                    dead_letters: None,
                },
            )]
            .into(),
        };
        let file = file(&serde_saphyr::to_string(&written).unwrap());
        let environment = environment(Some("nats://one:4222, nats://two:4222"), Some(file.path())).unwrap();
        assert_eq!(environment.bindings, written);
        assert_eq!(environment.servers.iter().map(ServerAddr::host).collect::<Vec<_>>(), ["one", "two"]);
    }

    #[test]
    fn a_program_without_handlers_needs_no_bindings() {
        assert_eq!(environment(Some("localhost"), None).unwrap().bindings, Bindings::default());
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let file = file(
            "bindings: {a: {stream: users.all, consumer: c, ackWait: 0s, maxAckPending: 0, handlerDeadline: 2h, \
             retry: {maxAttempts: 0, backoff: {initial: 2s, factor: 0, max: 1s}}}}",
        );
        let told = environment(None, Some(file.path())).unwrap_err().to_string();
        for path in [
            "stream",
            "ackWait",
            "maxAckPending",
            "handlerDeadline",
            "retry.maxAttempts",
            "retry.backoff.factor",
        ] {
            assert!(
                told.contains(&format!("bindings.a.{path} (JETWRIGHT_BINDINGS): found")),
                "{path}: {told}"
            );
        }
        assert!(told.contains("retry.backoff.initial (JETWRIGHT_BINDINGS): found 2s"), "{told}");
        assert!(told.starts_with("NATS_URL: not set"), "{told}");
    }

    #[test]
    fn attempts_without_a_delay_are_refused() {
        let file = file(
            "bindings: {a: {stream: users, consumer: c, ackWait: 30s, maxAckPending: 1, \
             retry: {maxAttempts: 3, backoff: {initial: 0s, factor: 2, max: 0s}}}}",
        );
        let told = environment(Some("localhost"), Some(file.path())).unwrap_err().to_string();
        assert!(told.contains("bindings.a.retry.backoff.initial (JETWRIGHT_BINDINGS): found 0"), "{told}");
    }

    #[test]
    fn a_file_that_is_absent_or_of_another_kind_is_named() {
        let told = environment(Some("localhost"), Some(Path::new("/nowhere.yaml"))).unwrap_err().to_string();
        assert!(told.starts_with("/nowhere.yaml (JETWRIGHT_BINDINGS): No such file"), "{told}");
        let other = file("replicas: 2");
        let told = environment(Some("localhost"), Some(other.path())).unwrap_err().to_string();
        assert!(told.contains("replicas"), "{told}");
    }
}
