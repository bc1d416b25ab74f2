//! A folder as kubelet mounts a Secret.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::folder::Folder;

/// Link of kubelet's to the folder with all files of one version.
const VERSION: &str = "..data";

/// A Secret that is mounted as files. They change as kubelet changes them: all at once, by a link that is swapped.
#[derive(Debug)]
pub struct MountedSecret {
    folder: Arc<Folder>,
    path: PathBuf,
    versions: AtomicU32,
}

impl MountedSecret {
    /// Mounts a Secret with these keys and values.
    #[must_use]
    pub fn new(files: &[(&str, &str)]) -> Self {
        let folder = Folder::new("secret");
        let path = folder.path().join("mounted");
        let secret = Self { folder, path, versions: AtomicU32::new(1) };
        fs::create_dir(secret.path()).unwrap_or_else(|error| panic!("{}: {error}", secret.path().display()));
        secret.change(files);
        secret
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Changes the Secret to these keys and values.
    pub fn change(&self, files: &[(&str, &str)]) {
        self.try_change(files).unwrap_or_else(|error| panic!("{}: {error}", self.path.display()));
    }

    fn try_change(&self, files: &[(&str, &str)]) -> std::io::Result<()> {
        let link = self.path.join(VERSION);
        let before = fs::read_link(&link).ok();
        let version = format!("..version_{}", self.versions.fetch_add(1, Ordering::Relaxed));
        fs::create_dir(self.path.join(&version))?;
        for (name, content) in files {
            fs::write(self.path.join(&version).join(name), content)?;
        }
        let fresh = self.folder.path().join("data");
        symlink(&version, &fresh)?;
        fs::rename(&fresh, &link)?;
        for (name, _) in files {
            let name = self.path.join(name);
            if name.symlink_metadata().is_err() {
                symlink(Path::new(VERSION).join(name.file_name().unwrap_or_default()), name)?;
            }
        }
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let kept =
                files.iter().any(|(kept, _)| name == *kept) || name.to_string_lossy().starts_with("..");
            if !kept {
                fs::remove_file(self.path.join(name))?;
            }
        }
        before.map_or(Ok(()), |before| fs::remove_dir_all(self.path.join(before)))
    }
}
