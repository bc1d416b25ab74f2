//! What the operator passes to a pod: where NATS is, who the pod is there, and which consumers its handlers consume from. Reads
//! the environment, one file, and the folder of credentials.

mod file;

use std::{env, path::Path};

use async_nats::ServerAddr;
use jetwright_crds::environment::{
    Bindings, JETWRIGHT_BINDINGS, JETWRIGHT_POD_NAME, JETWRIGHT_POD_NAMESPACE, JETWRIGHT_POD_UID,
    NATS_CREDENTIALS, NATS_URL, OTEL_SERVICE_NAME,
};
use jetwright_nats::{AddressError, Credentials, parse_addresses};
use jetwright_process::configuration::{Problem, Problems};

/// The environment of a service, checked.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Name of the connection in NATS' own reports.
    pub name: String,
    /// Addresses of the NATS servers; at least one.
    pub servers: Vec<ServerAddr>,
    /// The service's identity in NATS; none if the servers require none.
    pub credentials: Option<Credentials>,
    /// What each handler consumes from, by the name of its EventConsumer.
    pub bindings: Bindings,
    /// The pod that the program runs in; none outside Kubernetes.
    pub pod: Option<Pod>,
    /// Paths of unknown fields in the bindings file: this program ignores them, and [`Service::connect`] logs a warning with
    /// them.
    ///
    /// [`Service::connect`]: crate::Service::connect
    pub unknown_fields: Vec<String>,
}

/// The pod that a program runs in, for those that share partitions with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
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

    /// The same, from the caller's own variables.
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
        let file = match set(JETWRIGHT_BINDINGS) {
            None if handlers.is_empty() => file::Read::default(),
            None => {
                let expected = format!("expected the path of a file with {}", handlers.join(", "));
                problems.push(problem(JETWRIGHT_BINDINGS, None, "not set", &expected));
                file::Read::default()
            }
            Some(path) => file::read(Path::new(&path), handlers, &mut problems),
        };
        Problems::check(problems)?;
        let name = set(OTEL_SERVICE_NAME).unwrap_or_else(|| "jetwright-service".to_owned());
        let file::Read { bindings, unknown_fields } = file;
        let pod = |namespace, name, uid| Pod { namespace, name, uid };
        let pod = set(JETWRIGHT_POD_NAMESPACE)
            .zip(set(JETWRIGHT_POD_NAME))
            .zip(set(JETWRIGHT_POD_UID))
            .map(|((namespace, name), uid)| pod(namespace, name, uid));
        Ok(Self { name, servers, credentials, bindings, pod, unknown_fields })
    }

    /// Warns once, in one line, of unknown fields in the bindings file.
    pub(crate) fn warn_of_unknown_fields(&self) {
        if !self.unknown_fields.is_empty() {
            let fields = self.unknown_fields.join(", ");
            tracing::warn!(fields, "ignoring fields of JETWRIGHT_BINDINGS that a newer operator wrote");
        }
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
    for address in parse_addresses(text) {
        match address {
            Ok(server) => servers.push(server),
            Err(error @ AddressError::HasUser) => {
                let expected = format!("expected it in the files of {NATS_CREDENTIALS}");
                problems.push(problem(NATS_URL, None, error.to_string(), &expected));
            }
            Err(error) => problems.push(problem(NATS_URL, None, error.to_string(), expected)),
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use jetwright_crds::{
        Duration,
        environment::{Binding, Retry},
    };

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
    fn credentials_are_files_and_their_mistakes_are_reported_with_all_others() {
        let folder = tempfile::tempdir().unwrap();
        let read = |url: &str| {
            Environment::from_variables(&[], |name| match name {
                NATS_URL => Some(url.to_owned()),
                NATS_CREDENTIALS => Some(folder.path().display().to_string()),
                _ => None,
            })
        };
        fs::write(folder.path().join("password"), "hunter2").unwrap();
        let message = read("nats://a:4222,nats://service:hunter2@b:4222").unwrap_err().to_string();
        assert!(message.contains("NATS_URL: an address has a user, password or token; expected it in the files of NATS_CREDENTIALS"), "{message}");
        assert!(
            message.contains("/username (NATS_CREDENTIALS): missing; expected it beside password"),
            "{message}"
        );
        assert!(!message.contains("hunter2"), "{message}");
        fs::write(folder.path().join("username"), "service").unwrap();
        assert!(read("nats://a:4222").unwrap().credentials.is_some());
    }

    #[test]
    fn a_handler_without_a_binding_is_reported_with_all_other_mistakes() {
        let file = file(
            "bindings: {mails: {stream: users, consumer: c, ackWait: 30s, maxAckPending: 0, \
             retry: {maxAttempts: 3, backoff: {initial: 1s, factor: 2, max: 1s}}}}",
        );
        let message = for_handlers(&["mails", "letters"], None, Some(file.path())).unwrap_err().to_string();
        assert!(message.contains("NATS_URL: not set"), "{message}");
        assert!(message.contains("bindings.mails.maxAckPending"), "{message}");
        let missing =
            "bindings.letters (JETWRIGHT_BINDINGS): missing (there are: mails); expected the EventConsumer";
        assert!(message.contains(missing), "{message}");
        let message = for_handlers(&["letters"], Some("localhost"), None).unwrap_err().to_string();
        assert_eq!(message, "JETWRIGHT_BINDINGS: not set; expected the path of a file with letters");
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
                    partitions: None,
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

    /// A file of a newer operator.
    const LATER: &str = "
        bindings:
          mails:
            stream: users
            consumer: c
            ackWait: 30s
            maxAckPending: 256
            retry: {maxAttempts: 3, backoff: {initial: 1s, factor: 2, max: 1s, jitter: Full}}
            priority: {levels: 8}
        connection: {name: jetwright}
    ";

    #[test]
    fn the_file_of_a_later_operator_is_read_and_what_it_has_more_is_named_and_ignored() {
        let read = |text: &str| environment(Some("localhost"), Some(file(text).path()));
        let later = read(LATER).unwrap();
        assert_eq!(
            later.unknown_fields,
            ["bindings.mails.retry.backoff.jitter", "bindings.mails.priority", "connection"]
        );
        assert_eq!(later.bindings.bindings["mails"].retry.max_attempts, 3);
        assert_eq!(read(&format!("version: 1\n{}", unindented(LATER))).unwrap().bindings, later.bindings);
    }

    #[test]
    fn a_file_of_a_version_that_cannot_be_understood_is_refused_for_that_alone() {
        let later =
            file(&format!("version: 3\n{}", unindented(LATER).replace("stream: users", "streams: [users]")));
        let message = environment(Some("localhost"), Some(later.path())).unwrap_err().to_string();
        assert_eq!(
            message,
            format!(
                "{}: version (JETWRIGHT_BINDINGS): found 3; expected 2 at most: a newer operator wrote the file, so rebuild the \
                 program with a runtime of its release",
                later.path().display()
            )
        );
        for wrong in ["0", "latest", "1.5", "-1"] {
            let wrong = file(&format!("version: {wrong}\nbindings: {{}}"));
            let message = environment(Some("localhost"), Some(wrong.path())).unwrap_err().to_string();
            assert!(message.contains("version"), "{message}");
        }
    }

    fn unindented(text: &str) -> String {
        text.lines().map(|line| line.strip_prefix("        ").unwrap_or(line)).collect::<Vec<_>>().join("\n")
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
        let message = environment(None, Some(file.path())).unwrap_err().to_string();
        for path in [
            "stream",
            "ackWait",
            "maxAckPending",
            "handlerDeadline",
            "retry.maxAttempts",
            "retry.backoff.factor",
        ] {
            assert!(
                message.contains(&format!("bindings.a.{path} (JETWRIGHT_BINDINGS): found")),
                "{path}: {message}"
            );
        }
        assert!(message.contains("retry.backoff.initial (JETWRIGHT_BINDINGS): found 2s"), "{message}");
        assert!(message.starts_with("NATS_URL: not set"), "{message}");
    }

    #[test]
    fn attempts_without_a_delay_are_refused() {
        let file = file(
            "bindings: {a: {stream: users, consumer: c, ackWait: 30s, maxAckPending: 1, \
             retry: {maxAttempts: 3, backoff: {initial: 0s, factor: 2, max: 0s}}}}",
        );
        let message = environment(Some("localhost"), Some(file.path())).unwrap_err().to_string();
        assert!(
            message.contains("bindings.a.retry.backoff.initial (JETWRIGHT_BINDINGS): found 0"),
            "{message}"
        );
    }

    #[test]
    fn a_file_that_is_absent_or_of_another_kind_is_named() {
        let message =
            environment(Some("localhost"), Some(Path::new("/nowhere.yaml"))).unwrap_err().to_string();
        assert!(message.starts_with("/nowhere.yaml (JETWRIGHT_BINDINGS): No such file"), "{message}");
        let other = file("replicas: 2");
        let message = environment(Some("localhost"), Some(other.path())).unwrap_err().to_string();
        assert!(message.contains("missing field `bindings`"), "{message}");
    }
}
