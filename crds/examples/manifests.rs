//! Writes the CustomResourceDefinitions into the folder that is named: `make manifests`.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let folder: PathBuf = env::args_os().nth(1).ok_or("name the folder to write to")?.into();
    fs::create_dir_all(&folder)?;
    for (name, text) in jetwright_crds::manifests::files()? {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}
