//! A program of this workspace as an image on the nodes, beside those that `images/build` makes: for tests alone.

use std::{
    path::Path,
    process::{Command, Output},
    time::UNIX_EPOCH,
};

use jetwright_testing::{Folder, binary};

use super::{Cluster, checkout};

impl Cluster {
    /// Gives the nodes an image of a program, as Cargo built it for the tests, with the libraries that it loads, and returns the image's name. The program
    /// is `/<program>` in it.
    ///
    /// # Panics
    ///
    /// When it cannot be made or loaded.
    #[must_use]
    pub fn load_program(&self, program: &str) -> String {
        let path = binary(program);
        let built = path.metadata().and_then(|metadata| metadata.modified());
        let built = built.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let built = built.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let image = format!("jetwright/{program}:{built}");
        let folder = Folder::new("image");
        let (files, archive) = (folder.path().join("files"), folder.path().join("image.tar"));
        collect(&path, &files);
        succeed(Command::new("tar").arg("-chf").arg(&archive).arg("-C").arg(&files).arg("."));
        succeed(Command::new("docker").arg("import").arg(&archive).arg(&image));
        let name = std::env::var("JETWRIGHT_CLUSTER").unwrap_or_default();
        succeed(Command::new(checkout("e2e/cluster/cluster")).args(["load", &name, &image]));
        succeed(Command::new("docker").args(["rmi", &image]));
        image
    }
}

/// Puts a program, without what only debuggers need, and its libraries, at the paths where it looks for them, into a folder.
fn collect(program: &Path, into: &Path) {
    succeed(Command::new("mkdir").arg("-p").arg(into));
    let name = program.file_name().unwrap_or_default();
    succeed(Command::new("strip").arg("-o").arg(into.join(name)).arg(program));
    let listed = succeed(Command::new("ldd").arg(program));
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
        succeed(Command::new("cp").args(["--parents", "--dereference", library]).arg(into));
    }
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}
