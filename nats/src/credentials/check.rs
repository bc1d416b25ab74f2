//! What the files of a folder mean. In: the files. Out: how the program authenticates, or every error in them. Pure.

use std::fmt;

use nkeys::KeyPair;

use super::files::{
    AUTHORITIES, CERTIFICATE, CERTIFICATE_KEY, CREDENTIALS, Files, INBOX_PREFIX, KEY, PASSWORD, TOKEN, USER,
};

const EXPECTED_ONE_METHOD: &str =
    "expected exactly one of user.creds, username with password, token, and nkey";

/// How the program authenticates. Its `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum AuthMethod {
    /// A JWT and the seed of the key that it names.
    Jwt { jwt: String, seed: String },
    /// A user's name and password.
    Password { user: String, password: String },
    /// A token.
    Token(String),
    /// The seed of a user's key.
    Key(String),
    /// By the client certificate alone, or not at all.
    Certificate,
}

/// What a folder holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) method: AuthMethod,
    /// Whether it has a CA certificate.
    pub(super) authorities: bool,
    /// Whether it has a client certificate.
    pub(super) certificate: bool,
    pub(super) inbox_prefix: Option<String>,
}

/// One thing that is wrong. It shows no content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CredentialError {
    /// `None` if it is the folder.
    pub(super) file: Option<&'static str>,
    pub(super) found: String,
    pub(super) expected: String,
}

impl AuthMethod {
    /// The files that it comes from, for messages.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Jwt { .. } => CREDENTIALS,
            Self::Password { .. } => "username and password",
            Self::Token(_) => TOKEN,
            Self::Key(_) => KEY,
            Self::Certificate => "no more than certificates",
        }
    }
}

impl fmt::Debug for AuthMethod {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Checks what a folder holds, and returns every error at once.
pub(super) fn check(files: &Files) -> Result<Found, Vec<CredentialError>> {
    let mut errors: Vec<_> = files.known.keys().filter_map(|name| unusable(name, files)).collect();
    let method = auth_method(files).map_err(|error| errors.extend(error));
    let certificate = pair(files, CERTIFICATE, CERTIFICATE_KEY).map_err(|error| errors.push(error));
    match (method, certificate) {
        (Ok(method), Ok(certificate)) if errors.is_empty() => Ok(Found {
            method,
            authorities: files.known.contains_key(AUTHORITIES),
            certificate: certificate.is_some(),
            inbox_prefix: text(files, INBOX_PREFIX).map(str::to_owned),
        }),
        _ => Err(errors),
    }
}

fn invalid(file: &'static str, found: impl Into<String>, expected: impl Into<String>) -> CredentialError {
    CredentialError { file: Some(file), found: found.into(), expected: expected.into() }
}

/// A file's content, if it can be read.
fn text<'a>(files: &'a Files, name: &str) -> Option<&'a str> {
    files.known.get(name)?.as_deref().ok()
}

/// What is wrong with one file.
fn unusable(name: &'static str, files: &Files) -> Option<CredentialError> {
    let content = match files.known.get(name)? {
        Ok(content) => content,
        Err(why) => {
            let expected = "expected a text that this program's user may read";
            return Some(invalid(name, format!("failed to read: {why}"), expected));
        }
    };
    let (holds, expected) = match name {
        CREDENTIALS => {
            (jwt_and_seed(content).is_some(), "expected what `nsc generate creds` prints: a JWT and a seed")
        }
        KEY => (
            KeyPair::from_seed(content.trim()).is_ok(),
            "expected the seed of a user's key, which begins with SU",
        ),
        AUTHORITIES | CERTIFICATE => {
            (content.contains("-----BEGIN CERTIFICATE-----"), "expected certificates in PEM")
        }
        CERTIFICATE_KEY => (content.contains("PRIVATE KEY-----"), "expected a private key in PEM"),
        INBOX_PREFIX => {
            (is_prefix(content), "expected a subject without wildcards and blanks, such as _INBOX_orders")
        }
        _ => (true, "expected it to hold something, or not to exist"),
    };
    if content.is_empty() {
        return Some(invalid(name, "empty", expected));
    }
    (!holds).then(|| invalid(name, "not in the expected form", expected))
}

/// The one method that the files are for. The error is `None` if its file is unusable, which is an error of that file.
fn auth_method(files: &Files) -> Result<AuthMethod, Option<CredentialError>> {
    let has = |name: &str| files.known.contains_key(name);
    let methods: Vec<_> = [
        (CREDENTIALS, has(CREDENTIALS)),
        (USER, has(USER) || has(PASSWORD)),
        (TOKEN, has(TOKEN)),
        (KEY, has(KEY)),
    ]
    .into_iter()
    .filter_map(|(method, there)| there.then_some(method))
    .collect();
    let content = |name| text(files, name).ok_or(None);
    match methods[..] {
        [CREDENTIALS] => {
            let (jwt, seed) = jwt_and_seed(content(CREDENTIALS)?).ok_or(None)?;
            Ok(AuthMethod::Jwt { jwt: jwt.to_owned(), seed: seed.to_owned() })
        }
        [TOKEN] => Ok(AuthMethod::Token(content(TOKEN)?.to_owned())),
        [KEY] => Ok(AuthMethod::Key(content(KEY)?.trim().to_owned())),
        [_] => {
            let (user, password) = pair(files, USER, PASSWORD)?.ok_or(None)?;
            Ok(AuthMethod::Password { user: user.to_owned(), password: password.to_owned() })
        }
        [] if has(AUTHORITIES) || has(CERTIFICATE) => Ok(AuthMethod::Certificate),
        [] => Err(Some(CredentialError {
            file: None,
            found: no_method(&files.others),
            expected: EXPECTED_ONE_METHOD.to_owned(),
        })),
        _ => {
            let found = format!("several ways to authenticate: {}", methods.join(", "));
            Err(Some(CredentialError { file: None, found, expected: EXPECTED_ONE_METHOD.to_owned() }))
        }
    }
}

fn no_method(others: &[String]) -> String {
    let shown: Vec<_> = others.iter().take(5).map(String::as_str).collect();
    match shown[..] {
        [] => "no way to authenticate".to_owned(),
        _ => format!("no way to authenticate, but {}", shown.join(", ")),
    }
}

/// The contents of two files that belong together; `None` if neither exists.
fn pair<'a>(
    files: &'a Files,
    one: &'static str,
    other: &'static str,
) -> Result<Option<(&'a str, &'a str)>, CredentialError> {
    let missing = |name, beside| invalid(name, "missing", format!("expected it beside {beside}"));
    match (files.known.contains_key(one), files.known.contains_key(other)) {
        (true, false) => Err(missing(other, one)),
        (false, true) => Err(missing(one, other)),
        _ => Ok(text(files, one).zip(text(files, other))),
    }
}

/// The JWT and the seed of a credentials file: each stands between a begin line and an end line.
fn jwt_and_seed(credentials: &str) -> Option<(&str, &str)> {
    let block = |title: &str| {
        let mut lines = credentials.lines().map(str::trim);
        lines.find(|line| line.starts_with("---") && line.contains("BEGIN") && line.contains(title))?;
        lines.find(|line| !line.is_empty()).filter(|line| !line.starts_with("---"))
    };
    let (jwt, seed) = (block("JWT")?, block("SEED")?);
    KeyPair::from_seed(seed).is_ok().then_some((jwt, seed))
}

fn is_prefix(text: &str) -> bool {
    let is_token = |token: &str| !token.is_empty() && !token.contains(['*', '>']);
    !text.contains(char::is_whitespace) && text.split('.').all(is_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(contents: &[(&'static str, &str)]) -> Files {
        let known = contents.iter().map(|(name, content)| (*name, Ok((*content).to_owned()))).collect();
        Files { known, others: Vec::new() }
    }

    /// The method of these files, which hold nothing else.
    fn method_of(contents: &[(&'static str, &str)]) -> AuthMethod {
        let Found { method, authorities, certificate, inbox_prefix } = check(&files(contents)).unwrap();
        assert_eq!((authorities, certificate, inbox_prefix), (false, false, None));
        method
    }

    /// Every error, as text.
    fn wrong(files: &Files) -> Vec<String> {
        let errors = check(files).unwrap_err();
        let message = |error: CredentialError| {
            format!("{}: {}; {}", error.file.unwrap_or("folder"), error.found, error.expected)
        };
        errors.into_iter().map(message).collect()
    }

    fn seed() -> String {
        KeyPair::new_user().seed().unwrap()
    }

    fn credentials(jwt: &str, seed: &str) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\nKeep it to yourself.\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }

    #[test]
    fn each_way_to_authenticate_is_known_by_its_files() {
        let seed = seed();
        let password = AuthMethod::Password { user: "op".into(), password: " p:w ".into() };
        assert_eq!(method_of(&[(USER, "op"), (PASSWORD, " p:w ")]), password);
        assert_eq!(method_of(&[(TOKEN, "t")]), AuthMethod::Token("t".into()));
        assert_eq!(method_of(&[(KEY, &seed)]), AuthMethod::Key(seed.clone()));
        let jwt = AuthMethod::Jwt { jwt: "e30.e30.x".into(), seed: seed.clone() };
        assert_eq!(method_of(&[(CREDENTIALS, &credentials("e30.e30.x", &seed))]), jwt);
    }

    #[test]
    fn certificates_and_a_prefix_stand_beside_any_way_and_certificates_alone() {
        let authorities = (AUTHORITIES, "-----BEGIN CERTIFICATE-----");
        let certificate = [
            (CERTIFICATE, "-----BEGIN CERTIFICATE-----"),
            (CERTIFICATE_KEY, "-----BEGIN EC PRIVATE KEY-----"),
        ];
        let all = [&[authorities, (TOKEN, "t"), (INBOX_PREFIX, "_INBOX_a.b")], &certificate[..]].concat();
        let token = Found {
            method: AuthMethod::Token("t".into()),
            authorities: true,
            certificate: true,
            inbox_prefix: Some("_INBOX_a.b".into()),
        };
        assert_eq!(check(&files(&all)), Ok(token));
        let alone = Found {
            method: AuthMethod::Certificate,
            authorities: false,
            certificate: true,
            inbox_prefix: None,
        };
        assert_eq!(check(&files(&certificate)), Ok(alone));
        assert!(check(&files(&[authorities])).is_ok());
    }

    #[test]
    fn no_method_and_several_methods_are_errors_with_the_names_of_the_files() {
        assert_eq!(wrong(&files(&[])), [format!("folder: no way to authenticate; {EXPECTED_ONE_METHOD}")]);
        let misspelt = Files { others: vec!["user.cred".into()], ..files(&[(INBOX_PREFIX, "a")]) };
        assert_eq!(
            wrong(&misspelt),
            [format!("folder: no way to authenticate, but user.cred; {EXPECTED_ONE_METHOD}")]
        );
        let several = files(&[(PASSWORD, "p"), (USER, "u"), (TOKEN, "t")]);
        assert_eq!(
            wrong(&several),
            [format!("folder: several ways to authenticate: username, token; {EXPECTED_ONE_METHOD}")]
        );
    }

    #[test]
    fn a_half_of_a_pair_names_the_other() {
        assert_eq!(wrong(&files(&[(PASSWORD, "p")])), ["username: missing; expected it beside password"]);
        assert_eq!(wrong(&files(&[(USER, "u")])), ["password: missing; expected it beside username"]);
        let certificate = files(&[(TOKEN, "t"), (CERTIFICATE, "-----BEGIN CERTIFICATE-----")]);
        assert_eq!(wrong(&certificate), ["tls.key: missing; expected it beside tls.crt"]);
    }

    #[test]
    fn every_error_is_reported_at_once_and_no_content() {
        let mut files = files(&[
            (USER, ""),
            (PASSWORD, "hunter2"),
            (AUTHORITIES, "hunter2"),
            (INBOX_PREFIX, "hunter2.>"),
        ]);
        files.known.insert(PASSWORD, Err("Permission denied (os error 13)".into()));
        let messages = wrong(&files);
        assert_eq!(
            messages,
            [
                "ca.crt: not in the expected form; expected certificates in PEM",
                "inbox-prefix: not in the expected form; expected a subject without wildcards and blanks, such as _INBOX_orders",
                "password: failed to read: Permission denied (os error 13); expected a text that this program's user may read",
                "username: empty; expected it to hold something, or not to exist",
            ]
        );
        assert!(!messages.join("").contains("hunter2"));
    }

    #[test]
    fn invalid_keys_are_errors_that_do_not_show_them() {
        let public = KeyPair::new_user().public_key();
        for (name, content) in
            [(KEY, public.as_str()), (CREDENTIALS, "no JWT"), (CREDENTIALS, &credentials("e30", &public))]
        {
            let messages = wrong(&files(&[(name, content)]));
            assert_eq!(messages.len(), 1, "{messages:?}");
            assert!(
                messages[0].starts_with(&format!("{name}: not in the expected form"))
                    && !messages[0].contains(content),
                "{messages:?}"
            );
        }
    }

    #[test]
    fn an_authentication_method_shows_no_secret() {
        let method = AuthMethod::Password { user: "u".into(), password: "hunter2".into() };
        assert_eq!(format!("{method:?}"), "username and password");
    }
}
