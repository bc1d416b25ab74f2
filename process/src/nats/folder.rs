//! The folder, read at start and again at every connect.

use std::{
    io,
    path::{Path, PathBuf},
};

use async_nats::{Auth, AuthError};
use nkeys::KeyPair;

use super::{
    check::{Found, Mistake, Way, check},
    files::{AUTHORITIES, CERTIFICATE, CERTIFICATE_KEY, Files},
};
use crate::configuration::{Problem, Problems};

/// A folder with what identifies the program to NATS, which was whole when the program started.
///
/// Whether there are certificates, and the prefix of inboxes, are what they were at the start; all else may change.
#[derive(Clone, Debug)]
pub struct Credentials {
    folder: PathBuf,
    /// The flag or variable that names the folder.
    setting: &'static str,
    found: Found,
}

impl Credentials {
    /// Looks into the folder that this flag or variable names.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with its files, each with its name and what belongs there, and never with its content.
    pub fn open(setting: &'static str, folder: impl Into<PathBuf>) -> Result<Self, Problems> {
        let folder = folder.into();
        let found = look(setting, &folder)?;
        Ok(Self { folder, setting, found })
    }

    /// What the subjects begin with on which answers are awaited, if not with `_INBOX`.
    #[must_use]
    pub fn inbox_prefix(&self) -> Option<&str> {
        self.found.inbox_prefix.as_deref()
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The authorities that the servers' certificates come from.
    pub(super) fn authorities(&self) -> Option<PathBuf> {
        self.found.authorities.then(|| self.folder.join(AUTHORITIES))
    }

    /// The client certificate and its key.
    pub(super) fn certificate(&self) -> Option<(PathBuf, PathBuf)> {
        self.found.certificate.then(|| (self.folder.join(CERTIFICATE), self.folder.join(CERTIFICATE_KEY)))
    }

    /// What is wrong with the files now, if something is: certificates that were there at the start are still wanted.
    pub(super) async fn unusable(&self) -> Option<String> {
        let found = match self.look_again().await {
            Ok(found) => found,
            Err(why) => return Some(why),
        };
        let wanted = [
            (AUTHORITIES, self.found.authorities && !found.authorities),
            (CERTIFICATE, self.found.certificate && !found.certificate),
        ];
        let (file, _) = wanted.into_iter().find(|(_, missing)| *missing)?;
        let expected = "expected it, since it was there when this program started".to_owned();
        let mistake = Mistake { file: Some(file), found: "missing".to_owned(), expected };
        Some(problem(self.setting, &self.folder, mistake).to_string())
    }

    /// What the files say now, as the server is told: its nonce is signed where there is a key.
    pub(super) async fn authenticate(&self, nonce: Vec<u8>) -> Result<(Auth, &'static str), String> {
        let way = self.look_again().await?.way;
        let files = way.as_str();
        auth(way, &nonce).map(|auth| (auth, files)).map_err(|error| error.to_string())
    }

    async fn look_again(&self) -> Result<Found, String> {
        let (setting, folder) = (self.setting, self.folder.clone());
        let looked = tokio::task::spawn_blocking(move || look(setting, &folder)).await;
        looked.map_err(|error| error.to_string())?.map_err(|problems| one_line(&problems))
    }
}

fn look(setting: &'static str, folder: &Path) -> Result<Found, Problems> {
    let problem = |mistake| problem(setting, folder, mistake);
    let files = Files::read(folder).map_err(|error: io::Error| {
        let expected = "expected a folder of files, as Kubernetes mounts a Secret".to_owned();
        problem(Mistake { file: None, found: format!("cannot be read: {error}"), expected })
    })?;
    check(&files).map_err(|mistakes| mistakes.into_iter().map(problem).collect())
}

fn problem(setting: &str, folder: &Path, mistake: Mistake) -> Problem {
    let Mistake { file, found, expected } = mistake;
    let path = file.map_or_else(|| folder.to_owned(), |file| folder.join(file)).display().to_string();
    Problem { path, variable: Some(setting.to_owned()), found, expected }
}

fn one_line(problems: &Problems) -> String {
    problems.as_slice().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn auth(way: Way, nonce: &[u8]) -> Result<Auth, AuthError> {
    let sign = |seed: &str| {
        let key = KeyPair::from_seed(seed).map_err(AuthError::new)?;
        let signature = key.sign(nonce).map_err(AuthError::new)?;
        Ok::<_, AuthError>((key.public_key(), signature))
    };
    let mut auth = Auth::new();
    match way {
        Way::Jwt { jwt, seed } => {
            auth.signature = Some(sign(&seed)?.1);
            auth.jwt = Some(jwt);
        }
        Way::Key(seed) => {
            let (public, signature) = sign(&seed)?;
            (auth.nkey, auth.signature) = (Some(public), Some(signature));
        }
        Way::Password { user, password } => {
            (auth.username, auth.password) = (Some(user), Some(password));
        }
        Way::Token(token) => auth.token = Some(token),
        Way::Certificate => {}
    }
    Ok(auth)
}
