//! Who a program is to NATS: a folder of files, as Kubernetes mounts a Secret, and nothing in the environment. Reads files.
//!
//! The files are read at start and again at every connect, so that a changed Secret is used without a restart. An established
//! connection keeps its credentials.

mod check;
mod files;

use std::{
    io,
    path::{Path, PathBuf},
};

use async_nats::{Auth, AuthError};
use jetwright_process::configuration::{Problem, Problems};
use nkeys::KeyPair;

use self::{
    check::{AuthMethod, CredentialError, Found, check},
    files::{AUTHORITIES, CERTIFICATE, CERTIFICATE_KEY, Files},
};

/// A folder with what identifies the program to NATS, which was valid when the program started.
///
/// Whether there are certificates, and the inbox prefix, stay as they were at the start; all else may change.
#[derive(Clone, Debug)]
pub struct Credentials {
    folder: PathBuf,
    /// The flag or variable that names the folder.
    setting: &'static str,
    found: Found,
}

impl Credentials {
    /// Reads the folder that this flag or variable names.
    ///
    /// # Errors
    ///
    /// Every error in its files, each with the name of the file and what belongs there, and never with its content.
    pub fn open(setting: &'static str, folder: impl Into<PathBuf>) -> Result<Self, Problems> {
        let folder = folder.into();
        let found = read(setting, &folder)?;
        Ok(Self { folder, setting, found })
    }

    /// The prefix of the subjects on which replies are received, if not `_INBOX`.
    #[must_use]
    pub fn inbox_prefix(&self) -> Option<&str> {
        self.found.inbox_prefix.as_deref()
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The CA certificates for the servers' certificates.
    pub(crate) fn authorities(&self) -> Option<PathBuf> {
        self.found.authorities.then(|| self.folder.join(AUTHORITIES))
    }

    /// The client certificate and its key.
    pub(crate) fn certificate(&self) -> Option<(PathBuf, PathBuf)> {
        self.found.certificate.then(|| (self.folder.join(CERTIFICATE), self.folder.join(CERTIFICATE_KEY)))
    }

    /// What is wrong with the files now, if anything: certificates that existed at the start are still required.
    pub(crate) async fn unusable(&self) -> Option<String> {
        let found = match self.reread().await {
            Ok(found) => found,
            Err(why) => return Some(why),
        };
        let wanted = [
            (AUTHORITIES, self.found.authorities && !found.authorities),
            (CERTIFICATE, self.found.certificate && !found.certificate),
        ];
        let (file, _) = wanted.into_iter().find(|(_, missing)| *missing)?;
        let expected = "expected it, since it was there when this program started".to_owned();
        let error = CredentialError { file: Some(file), found: "missing".to_owned(), expected };
        Some(problem(self.setting, &self.folder, error).to_string())
    }

    /// Answers the server from the current files, and returns which files it used. The nonce is signed if there is a key.
    pub(crate) async fn authenticate(&self, nonce: Vec<u8>) -> Result<(Auth, &'static str), String> {
        let method = self.reread().await?.method;
        let files = method.as_str();
        auth(method, &nonce).map(|auth| (auth, files)).map_err(|error| error.to_string())
    }

    async fn reread(&self) -> Result<Found, String> {
        let (setting, folder) = (self.setting, self.folder.clone());
        let read = tokio::task::spawn_blocking(move || read(setting, &folder)).await;
        read.map_err(|error| error.to_string())?.map_err(|problems| one_line(&problems))
    }
}

fn read(setting: &'static str, folder: &Path) -> Result<Found, Problems> {
    let problem = |error| problem(setting, folder, error);
    let files = Files::read(folder).map_err(|cause: io::Error| {
        let expected = "expected a folder of files, as Kubernetes mounts a Secret".to_owned();
        problem(CredentialError { file: None, found: format!("failed to read: {cause}"), expected })
    })?;
    check(&files).map_err(|errors| errors.into_iter().map(problem).collect())
}

fn problem(setting: &str, folder: &Path, error: CredentialError) -> Problem {
    let CredentialError { file, found, expected } = error;
    let path = file.map_or_else(|| folder.to_owned(), |file| folder.join(file)).display().to_string();
    Problem { path, variable: Some(setting.to_owned()), found, expected }
}

fn one_line(problems: &Problems) -> String {
    problems.as_slice().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn auth(method: AuthMethod, nonce: &[u8]) -> Result<Auth, AuthError> {
    let sign = |seed: &str| {
        let key = KeyPair::from_seed(seed).map_err(AuthError::new)?;
        let signature = key.sign(nonce).map_err(AuthError::new)?;
        Ok::<_, AuthError>((key.public_key(), signature))
    };
    let mut auth = Auth::new();
    match method {
        AuthMethod::Jwt { jwt, seed } => {
            auth.signature = Some(sign(&seed)?.1);
            auth.jwt = Some(jwt);
        }
        AuthMethod::Key(seed) => {
            let (public, signature) = sign(&seed)?;
            (auth.nkey, auth.signature) = (Some(public), Some(signature));
        }
        AuthMethod::Password { user, password } => {
            (auth.username, auth.password) = (Some(user), Some(password));
        }
        AuthMethod::Token(token) => auth.token = Some(token),
        AuthMethod::Certificate => {}
    }
    Ok(auth)
}
