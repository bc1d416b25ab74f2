//! Makes a connection read its credentials at every connect, and tell in words what happens to it.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_nats::{
    AuthError, ClientError, ConnectErrorKind, ConnectOptions, Event, ReconnectToServer, Server,
};

use super::{Credentials, Violation, Violations};

/// Prefix of the subjects on which answers are awaited, unless the credentials name another one.
const INBOX: &str = "_INBOX";
/// Servers whose errors are told; more would hide what matters.
const TOLD: usize = 3;

/// How the client begins to tell of certificates that it cannot use.
const TLS: &str = "TLS error";

/// What happens to a connection.
#[derive(Clone, Copy, Debug)]
pub enum Happening<'a> {
    /// It is there.
    Connected,
    /// It was lost, or closed.
    Disconnected,
    /// Attempts to connect fail for this reason, which is logged already. It is not told at every attempt.
    Failed(&'a str),
    /// It is there, but the user may not hear answers: each request would wait in vain.
    Deaf(&'a Violation),
    /// Messages came faster than they were read, and some were dropped.
    Dropped,
}

/// Options of a connection that authenticates with what the credentials say at that time, and tells the listener what happens.
/// `setting` is the flag or variable that names them, for messages.
///
/// A failed attempt, one whose credentials could not be read included, is followed by the next.
pub fn options<F>(
    credentials: Option<&Credentials>,
    setting: &'static str,
    listener: F,
) -> (ConnectOptions, Violations)
where
    F: Fn(Happening<'_>) + Send + Sync + 'static,
{
    let violations = Violations::new();
    (options_with(&violations, credentials, setting, listener), violations)
}

/// The same for a client that takes the place of an ended one: whoever watches these violations goes on.
pub fn options_with<F>(
    violations: &Violations,
    credentials: Option<&Credentials>,
    setting: &'static str,
    listener: F,
) -> ConnectOptions
where
    F: Fn(Happening<'_>) + Send + Sync + 'static,
{
    let prefix = credentials.and_then(Credentials::inbox_prefix).unwrap_or(INBOX);
    let teller = Arc::new(Teller {
        listener,
        violations: violations.clone(),
        inbox: format!("{prefix}."),
        identity: Identity { credentials: credentials.cloned(), setting },
        told: Mutex::default(),
    });
    let mut options = match credentials {
        Some(credentials) => authenticated(credentials, &teller),
        None => ConnectOptions::new(),
    };
    options = options.custom_inbox_prefix(prefix);
    let (attempting, happening) = (Arc::clone(&teller), teller);
    options
        .reconnect_to_server_callback(move |servers, _| {
            let teller = Arc::clone(&attempting);
            async move {
                teller.again(&servers).await;
                None::<ReconnectToServer>
            }
        })
        .event_callback(move |event| {
            happening.hear(&event);
            std::future::ready(())
        })
}

fn authenticated<F>(credentials: &Credentials, teller: &Arc<Teller<F>>) -> ConnectOptions
where
    F: Fn(Happening<'_>) + Send + Sync + 'static,
{
    let (callback, teller) = (credentials.clone(), Arc::clone(teller));
    let mut options = ConnectOptions::with_auth_callback(move |nonce| {
        let (credentials, teller) = (callback.clone(), Arc::clone(&teller));
        async move {
            let auth = credentials.authenticate(nonce).await;
            teller.read(auth.as_ref().map(|(_, way)| *way));
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

/// Who the program says it is, for messages.
#[derive(Debug)]
struct Identity {
    credentials: Option<Credentials>,
    setting: &'static str,
}

impl Identity {
    /// What is wrong with the files now, if something is.
    async fn unusable(&self) -> Option<String> {
        self.credentials.as_ref()?.unusable().await
    }

    /// What to say of servers that refuse it.
    fn refused(&self, way: &str) -> String {
        let setting = self.setting;
        match self.credentials.as_ref().map(|credentials| credentials.folder().display()) {
            Some(folder) => format!(
                "NATS refuses the credentials in {folder} ({way}): authorization violation; put those of a user that it knows there"
            ),
            None => format!(
                "NATS asks for credentials, and there are none: authorization violation; set {setting}"
            ),
        }
    }
}

/// Finds the words for what happens.
struct Teller<F> {
    listener: F,
    violations: Violations,
    /// What subjects begin with on which answers are awaited.
    inbox: String,
    identity: Identity,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    /// Why the files could not be used at the last attempt.
    unusable: Option<String>,
    /// Which files were used at the last attempt.
    way: &'static str,
    /// The reason that was told last, since the last connection.
    reason: Option<String>,
    /// Whether there was an attempt since the last connection.
    attempted: bool,
}

impl<F: Fn(Happening<'_>)> Teller<F> {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files were read for an attempt.
    fn read(&self, way: Result<&'static str, &String>) {
        let mut told = self.told();
        told.unusable = way.err().cloned();
        told.way = way.unwrap_or_default();
    }

    /// Another attempt begins, and the servers have what came of the last one.
    async fn again(&self, servers: &[Server]) {
        let errors = servers.iter().filter_map(|server| {
            let error = server.last_error.as_deref()?;
            Some((format!("{}:{}", server.addr.host(), server.addr.port()), error))
        });
        let errors: Vec<_> = errors.collect();
        let (mut unusable, way) = {
            let mut told = self.told();
            // Errors from before the last connection say nothing of this one's loss.
            if !mem::replace(&mut told.attempted, true) {
                return;
            }
            (told.unusable.take(), told.way)
        };
        // Certificates are read before the server is told anything, and by the client, which names no file.
        if unusable.is_none() && errors.iter().any(|(_, error)| error.starts_with(TLS)) {
            unusable = self.identity.unusable().await;
        }
        if let Some(reason) = unusable.or_else(|| reason(&errors, || self.identity.refused(way))) {
            self.failed(&reason);
        }
    }

    fn failed(&self, reason: &str) {
        let known = self.told().reason.replace(reason.to_owned());
        if known.as_deref() != Some(reason) {
            tracing::warn!(reason, "cannot connect to NATS; trying again");
            (self.listener)(Happening::Failed(reason));
        }
    }

    fn hear(&self, event: &Event) {
        match event {
            Event::Connected => {
                let mut told = self.told();
                (told.reason, told.attempted) = (None, false);
                drop(told);
                self.violations.forget();
                (self.listener)(Happening::Connected);
            }
            Event::Disconnected | Event::Closed => {
                (self.listener)(Happening::Disconnected);
                // Events come late: the next attempt may have failed already.
                let reason = self.told().reason.clone();
                if let Some(reason) = reason {
                    (self.listener)(Happening::Failed(&reason));
                }
            }
            Event::SlowConsumer(_) => (self.listener)(Happening::Dropped),
            // The servers' own errors have it in more words, but none is kept of a name that was not found.
            Event::ClientError(ClientError::Other(text)) if *text == ConnectErrorKind::Dns.to_string() => {
                self.failed("the servers' names could not be resolved (DNS)");
            }
            Event::ServerError(error) => {
                if let Some(violation) = Violation::read(error) {
                    self.forbidden(&violation);
                } else {
                    tracing::warn!(%error, "an error of the NATS server");
                }
            }
            event => tracing::debug!(%event, "NATS client"),
        }
    }

    fn forbidden(&self, violation: &Violation) {
        self.violations.tell(violation);
        if matches!(violation, Violation::Subscribe(subject) if subject.starts_with(&self.inbox)) {
            self.violations.deafen(violation);
            (self.listener)(Happening::Deaf(violation));
        }
    }
}

/// Why the servers, with what each said last, could not be connected to.
fn reason(errors: &[(String, &str)], refused: impl Fn() -> String) -> Option<String> {
    if errors.iter().any(|(_, error)| error.contains("authorization violation")) {
        return Some(refused());
    }
    let told: Vec<_> = errors.iter().take(TOLD).map(|(server, error)| format!("{server}: {error}")).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_credentials_are_told_before_anything_else() {
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
    fn a_reason_is_told_once_until_it_changes_or_the_connection_was_there() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hearing = Arc::clone(&heard);
        let listener = move |happening: Happening<'_>| hearing.lock().unwrap().push(format!("{happening:?}"));
        let teller = Teller {
            listener,
            violations: Violations::new(),
            inbox: "_INBOX.".to_owned(),
            identity: Identity { credentials: None, setting: "--folder" },
            told: Mutex::default(),
        };
        for reason in ["a", "a", "b"] {
            teller.failed(reason);
        }
        teller.hear(&Event::Connected);
        teller.failed("b");
        let expected = ["Failed(\"a\")", "Failed(\"b\")", "Connected", "Failed(\"b\")"];
        assert_eq!(*heard.lock().unwrap(), expected);
        assert!(teller.identity.refused("").contains("set --folder"));
    }
}
