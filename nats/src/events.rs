//! Makes a client read its credentials at every connect, and reports what happens to its connection. In: the events of the client.
//! Out: [`ConnectionEvent`]s, with the reason if an attempt to connect fails.

use std::{mem, sync::Arc};

use async_nats::{
    AuthError, ClientError, ConnectErrorKind, ConnectOptions, Event, ReconnectToServer, Server,
};
use parking_lot::{Mutex, MutexGuard};

use crate::{
    credentials::Credentials,
    violation::{Violation, Violations},
};

/// Unless the credentials name another one.
const DEFAULT_INBOX_PREFIX: &str = "_INBOX";
/// Maximum servers whose errors a reason includes; more would hide what matters.
const MAX_REPORTED_SERVERS: usize = 3;

/// Start of the client's errors about certificates that it cannot use.
const TLS_ERROR: &str = "TLS error";

/// What happens to a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ConnectionEvent<'a> {
    Connected,
    /// The connection was lost or closed.
    Disconnected,
    /// Attempts to connect fail for this reason, which is logged already. It is reported once, not at every attempt.
    Failed(&'a str),
    /// The user may not subscribe to its inbox: no reply can arrive.
    InboxDenied(&'a Violation),
    /// Messages arrived faster than they were read, and the client dropped some.
    SlowConsumer,
}

/// Options of a client that authenticates with the credentials as they are at each connect, and calls the listener with its events.
/// `setting` is the flag or variable that names the credentials, for messages. Receivers of the violations outlive the client.
///
/// After a failed attempt comes the next, also if the credentials could not be read.
pub(crate) fn options<F>(
    violations: &Violations,
    credentials: Option<&Credentials>,
    setting: &'static str,
    listener: F,
) -> ConnectOptions
where
    F: Fn(ConnectionEvent<'_>) + Send + Sync + 'static,
{
    let prefix = credentials.and_then(Credentials::inbox_prefix).unwrap_or(DEFAULT_INBOX_PREFIX);
    let reporter = Arc::new(ConnectionReporter {
        listener,
        violations: violations.clone(),
        inbox: format!("{prefix}."),
        identity: Identity { credentials: credentials.cloned(), setting },
        reported: Mutex::default(),
    });
    let mut options = match credentials {
        Some(credentials) => authenticated(credentials, &reporter),
        None => ConnectOptions::new(),
    };
    options = options.custom_inbox_prefix(prefix);
    let (attempting, listening) = (Arc::clone(&reporter), reporter);
    options
        .reconnect_to_server_callback(move |servers, _| {
            let reporter = Arc::clone(&attempting);
            async move {
                reporter.attempt_begins(&servers).await;
                None::<ReconnectToServer>
            }
        })
        .event_callback(move |event| {
            listening.handle(&event);
            std::future::ready(())
        })
}

fn authenticated<F>(credentials: &Credentials, reporter: &Arc<ConnectionReporter<F>>) -> ConnectOptions
where
    F: Fn(ConnectionEvent<'_>) + Send + Sync + 'static,
{
    let (callback, reporter) = (credentials.clone(), Arc::clone(reporter));
    let mut options = ConnectOptions::with_auth_callback(move |nonce| {
        let (credentials, reporter) = (callback.clone(), Arc::clone(&reporter));
        async move {
            let auth = credentials.authenticate(nonce).await;
            reporter.credentials_read(auth.as_ref().map(|(_, files)| *files));
            auth.map(|(auth, _)| auth).map_err(AuthError::new)
        }
    });
    if let Some(authorities) = credentials.authorities() {
        options = options.add_root_certificates(authorities).require_tls(true);
    }
    if let Some((certificate, key)) = credentials.certificate() {
        options = options.add_client_certificate(certificate, key).require_tls(true);
    }
    options
}

/// The credentials, for messages.
#[derive(Debug)]
struct Identity {
    credentials: Option<Credentials>,
    setting: &'static str,
}

impl Identity {
    /// What is wrong with the files now, if anything.
    async fn unusable(&self) -> Option<String> {
        self.credentials.as_ref()?.unusable().await
    }

    /// The reason if the servers refuse the credentials. `files` are those that the attempt used.
    fn refused(&self, files: &str) -> String {
        let setting = self.setting;
        match self.credentials.as_ref().map(|credentials| credentials.folder().display()) {
            Some(folder) => format!(
                "NATS refuses the credentials in {folder} ({files}): authorization violation; put those of a user that it knows there"
            ),
            None => format!(
                "NATS asks for credentials, and there are none: authorization violation; set {setting}"
            ),
        }
    }
}

/// Turns the client's events into [`ConnectionEvent`]s and log lines.
struct ConnectionReporter<F> {
    listener: F,
    violations: Violations,
    /// Start of the subjects of replies.
    inbox: String,
    identity: Identity,
    reported: Mutex<Reported>,
}

#[derive(Default)]
struct Reported {
    /// Why the files could not be used at the last attempt.
    unusable: Option<String>,
    /// Which files were used at the last attempt.
    files: &'static str,
    /// The reason that was reported last, since the last connection.
    reason: Option<String>,
    /// Whether there was an attempt since the last connection.
    attempted: bool,
}

impl<F: Fn(ConnectionEvent<'_>)> ConnectionReporter<F> {
    fn reported(&self) -> MutexGuard<'_, Reported> {
        self.reported.lock()
    }

    /// The files were read for an attempt.
    fn credentials_read(&self, files: Result<&'static str, &String>) {
        let mut reported = self.reported();
        reported.unusable = files.err().cloned();
        reported.files = files.unwrap_or_default();
    }

    /// The next attempt begins; the servers have the errors of the last one.
    async fn attempt_begins(&self, servers: &[Server]) {
        let errors = servers.iter().filter_map(|server| {
            let error = server.last_error.as_deref()?;
            Some((format!("{}:{}", server.addr.host(), server.addr.port()), error))
        });
        let errors: Vec<_> = errors.collect();
        let (mut unusable, files) = {
            let mut reported = self.reported();
            // Errors from before the last connection do not explain the loss of this one.
            if !mem::replace(&mut reported.attempted, true) {
                return;
            }
            (reported.unusable.take(), reported.files)
        };
        // The client reads certificates before it authenticates, and its errors name no file.
        if unusable.is_none() && errors.iter().any(|(_, error)| error.starts_with(TLS_ERROR)) {
            unusable = self.identity.unusable().await;
        }
        if let Some(reason) = unusable.or_else(|| reason(&errors, || self.identity.refused(files))) {
            self.failed(&reason);
        }
    }

    fn failed(&self, reason: &str) {
        let known = self.reported().reason.replace(reason.to_owned());
        if known.as_deref() != Some(reason) {
            tracing::warn!(reason, "failed to connect to NATS, will retry");
            (self.listener)(ConnectionEvent::Failed(reason));
        }
    }

    fn handle(&self, event: &Event) {
        match event {
            Event::Connected => {
                let mut reported = self.reported();
                (reported.reason, reported.attempted) = (None, false);
                drop(reported);
                self.violations.reset();
                (self.listener)(ConnectionEvent::Connected);
            }
            Event::Disconnected | Event::Closed => {
                (self.listener)(ConnectionEvent::Disconnected);
                // Events come late: the next attempt may have failed already.
                let reason = self.reported().reason.clone();
                if let Some(reason) = reason {
                    (self.listener)(ConnectionEvent::Failed(&reason));
                }
            }
            Event::SlowConsumer(_) => (self.listener)(ConnectionEvent::SlowConsumer),
            // The servers' own errors are more precise, but a name that does not resolve has none.
            Event::ClientError(ClientError::Other(text)) if *text == ConnectErrorKind::Dns.to_string() => {
                self.failed("failed to resolve the servers' names (DNS)");
            }
            Event::ServerError(error) => {
                if let Some(violation) = Violation::read(error) {
                    self.violated(&violation);
                } else {
                    tracing::warn!(%error, "received an error from the NATS server");
                }
            }
            event => tracing::debug!(%event, "NATS client"),
        }
    }

    fn violated(&self, violation: &Violation) {
        self.violations.report(violation);
        if matches!(violation, Violation::Subscribe(subject) if subject.starts_with(&self.inbox)) {
            self.violations.deny_inbox(violation);
            (self.listener)(ConnectionEvent::InboxDenied(violation));
        }
    }
}

/// Why connecting failed, from the last error of each server.
fn reason(errors: &[(String, &str)], refused: impl Fn() -> String) -> Option<String> {
    if errors.iter().any(|(_, error)| error.contains("authorization violation")) {
        return Some(refused());
    }
    let texts: Vec<_> = errors
        .iter()
        .take(MAX_REPORTED_SERVERS)
        .map(|(server, error)| format!("{server}: {error}"))
        .collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_credentials_come_before_any_other_reason() {
        let refused = || "refused".to_owned();
        let errors = [
            ("a:1".to_owned(), "IO error: Connection refused (os error 111)"),
            ("b:2".to_owned(), "authorization violation: nats: authorization violation"),
        ];
        assert_eq!(reason(&errors, refused), Some("refused".to_owned()));
        let away = Some("a:1: IO error: Connection refused (os error 111)".to_owned());
        assert_eq!(reason(&errors[..1], refused), away);
        assert_eq!(reason(&[], refused), None);
    }

    #[test]
    fn a_reason_is_reported_once_until_it_changes_or_the_connection_was_there() {
        let received = Arc::new(Mutex::new(Vec::new()));
        let receiving = Arc::clone(&received);
        let listener = move |event: ConnectionEvent<'_>| receiving.lock().push(format!("{event:?}"));
        let reporter = ConnectionReporter {
            listener,
            violations: Violations::new(),
            inbox: "_INBOX.".to_owned(),
            identity: Identity { credentials: None, setting: "--folder" },
            reported: Mutex::default(),
        };
        for reason in ["a", "a", "b"] {
            reporter.failed(reason);
        }
        reporter.handle(&Event::Connected);
        reporter.failed("b");
        let expected = ["Failed(\"a\")", "Failed(\"b\")", "Connected", "Failed(\"b\")"];
        assert_eq!(*received.lock(), expected);
        assert!(reporter.identity.refused("").contains("set --folder"));
    }
}
