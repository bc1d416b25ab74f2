//! Writes the CustomResourceDefinitions into the folders that are named: `make manifests`.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let folders: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    if folders.is_empty() {
        return Err("name the folders to write to".into());
    }
    for folder in folders {
        fs::create_dir_all(&folder)?;
        for (name, text) in jetwright_crds::manifests::files()? {
            fs::write(folder.join(name), text)?;
        }
    }
    Ok(())
}
