//! `testing/programs/provide`, with a `go` that only pretends to build.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// Tells what it was asked to do, takes a moment, and makes the program.
const GO: &str = r#"#!/bin/sh
while [ "$1" != -o ]; do shift; done
echo "$2" >> "$JETWRIGHT_CACHE/builds"
printf half > "$2"; sleep 0.3
printf '#!/bin/sh\necho made by go\n' > "$2"; chmod +x "$2"
"#;

struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        fs::create_dir(machine.0.path().join("path")).unwrap();
        fs::create_dir(machine.0.path().join("cache")).unwrap();
        machine
    }

    /// Puts a program on PATH.
    fn with(self, name: &str, script: &str) -> Self {
        let path = self.0.path().join("path").join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    fn provide(&self, program: &str) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/provide");
        let mut command = Command::new(script);
        command
            .arg(program)
            .env("PATH", format!("{}:/usr/bin:/bin", self.0.path().join("path").display()))
            .env("JETWRIGHT_CACHE", self.0.path().join("cache"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn builds(&self) -> usize {
        fs::read_to_string(self.0.path().join("cache/builds")).unwrap_or_default().lines().count()
    }
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_program_is_built_once_and_a_line_says_how_long_that_takes() {
    let machine = Machine::new().with("go", GO);
    let (path, told) = said(&machine.provide("nats-server").output().unwrap());
    assert!(path.contains("/cache/bin/nats-server-v2."), "{path}");
    assert!(told.contains("from its Go module, once; on two cores this usually takes"), "{told}");
    let again = said(&machine.provide("nats-server").output().unwrap());
    assert_eq!((again, machine.builds()), ((path, String::new()), 1));
}

#[test]
fn two_at_once_build_once() {
    let machine = Machine::new().with("go", GO);
    let both = [(); 2].map(|()| machine.provide("etcd").spawn().unwrap());
    let [one, other] = both.map(|provide| said(&provide.wait_with_output().unwrap()));
    assert_eq!((&one.0, machine.builds()), (&other.0, 1));
    assert!(fs::read_to_string(one.0).unwrap().contains("made by go"));
}

#[test]
fn a_killed_build_leaves_no_program_and_the_next_one_succeeds() {
    let machine = Machine::new().with("go", &GO.replace("sleep 0.3", "sleep 1; exit 1"));
    let mut killed = machine.provide("etcd").spawn().unwrap();
    while machine.builds() == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();

    let machine = machine.with("go", GO);
    let (path, _) = said(&machine.provide("etcd").output().unwrap());
    assert!(fs::read_to_string(&path).unwrap().contains("made by go"));
    let left = fs::read_dir(Path::new(&path).parent().unwrap()).unwrap();
    let left: Vec<_> =
        left.map(|entry| entry.unwrap().file_name()).filter(|name| name != ".lock-etcd").collect();
    assert_eq!(left, [Path::new(&path).file_name().unwrap()]);
}

#[test]
fn a_program_on_path_is_taken_if_it_is_new_enough() {
    let said_by = |version: &str| {
        let machine = Machine::new().with("go", GO);
        let machine = machine.with("nats-server", &format!("#!/bin/sh\necho nats-server: v{version}\n"));
        said(&machine.provide("nats-server").output().unwrap()).0
    };
    assert!(said_by("2.12.0").ends_with("/path/nats-server"));
    assert!(said_by("2.100.1").ends_with("/path/nats-server"));
    assert!(said_by("2.11.9").contains("/cache/bin/nats-server-v2."));
}

#[test]
fn where_go_is_missing_the_remedy_is_told() {
    let output = Machine::new().provide("kube-apiserver").output().unwrap();
    let (_, told) = said(&output);
    assert!(!output.status.success());
    assert!(told.contains("there is no 'go' on PATH: install Go 1."), "{told}");
    assert!(told.contains("or put a kube-apiserver of at least 1.33.0 on PATH"), "{told}");
}

#[test]
fn a_build_that_fails_says_so() {
    let machine = Machine::new().with("go", "#!/bin/sh\necho the module is not there; exit 1\n");
    let output = machine.provide("etcd").output().unwrap();
    let (_, told) = said(&output);
    assert!(!output.status.success() && told.contains("the module is not there"), "{told}");
    assert!(told.contains("could not build etcd"), "{told}");
}
