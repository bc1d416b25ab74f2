//! Reads the files of a folder. Does I/O and decides nothing.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

/// A user's JWT and the seed of its key, as `nsc generate creds` writes them.
pub(super) const CREDENTIALS: &str = "user.creds";
/// Name of a user that has a [`PASSWORD`].
pub(super) const USER: &str = "username";
/// Password of the [`USER`].
pub(super) const PASSWORD: &str = "password";
/// A token in place of a user.
pub(super) const TOKEN: &str = "token";
/// Seed of a user's key.
pub(super) const KEY: &str = "nkey";
/// CA certificates for the servers' certificates, in PEM.
pub(super) const AUTHORITIES: &str = "ca.crt";
/// The program's own certificate, in PEM.
pub(super) const CERTIFICATE: &str = "tls.crt";
/// Key of the [`CERTIFICATE`], in PEM.
pub(super) const CERTIFICATE_KEY: &str = "tls.key";
/// Prefix of the subjects on which the program receives replies.
pub(super) const INBOX_PREFIX: &str = "inbox-prefix";

/// All files with a meaning.
const NAMES: [&str; 9] =
    [CREDENTIALS, USER, PASSWORD, TOKEN, KEY, AUTHORITIES, CERTIFICATE, CERTIFICATE_KEY, INBOX_PREFIX];
/// kubelet's symbolic link in a mounted Secret; it points to all files of one version of the Secret.
const DATA_LINK: &str = "..data";
/// Maximum size of a file: a Secret holds no more.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The files of a folder. No `Debug`, since they hold secrets.
#[derive(Default)]
pub(super) struct Files {
    /// Contents by name, without trailing line ends, or why a file cannot be read; missing files have no entry.
    pub(super) known: BTreeMap<&'static str, Result<String, String>>,
    /// Names of the other files.
    pub(super) others: Vec<String>,
}

impl Files {
    /// Reads the folder.
    pub(super) fn read(folder: &Path) -> io::Result<Self> {
        // One version for all files: kubelet may swap the link while they are read.
        let folder = fs::canonicalize(folder.join(DATA_LINK)).unwrap_or_else(|_| folder.to_owned());
        let mut files = Self::default();
        for entry in fs::read_dir(&folder)? {
            let name = entry?.file_name();
            match NAMES.into_iter().find(|known| name == *known) {
                Some(known) => {
                    files
                        .known
                        .insert(known, content(&folder.join(known)).map_err(|error| error.to_string()));
                }
                None => files.others.push(name.to_string_lossy().into_owned()),
            }
        }
        files.others.sort();
        Ok(files)
    }
}

fn content(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    Ok(text)
}
