//! `testing/programs/provide`, with a `go` that only pretends to build.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// Tells what it was asked to do, takes a moment, and makes the programs, each under the name that Go would give it.
const GO: &str = r#"#!/bin/sh
while [ "$1" != -o ]; do shift; done
folder=$2; shift 2
echo "$@" >> "$JETWRIGHT_CACHE/builds"
for package in "$@"; do
    program=$folder$(basename "${package%/v[0-9]}")
    printf half > "$program"; sleep 0.3
    printf '#!/bin/sh\necho made by go\n' > "$program"; chmod +x "$program"
done
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
        self.provide_all(&[program])
    }

    fn provide_all(&self, arguments: &[&str]) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/provide");
        let mut command = Command::new(script);
        command
            .args(arguments)
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
fn programs_of_one_module_are_built_together_and_told_in_the_order_asked_for() {
    let machine = Machine::new().with("go", GO);
    let (paths, _) = said(&machine.provide_all(&["kubelet", "nats-server", "etcd"]).output().unwrap());
    let names: Vec<_> = paths.lines().map(|path| path.rsplit('/').next().unwrap()).collect();
    assert!(
        matches!(*names, [one, two, three]
            if one.starts_with("kubelet-v1.") && two.starts_with("nats-server-v2.") && three.starts_with("etcd-v3.")),
        "{paths}"
    );
    assert_eq!(machine.builds(), 2);
    assert!(paths.lines().all(|path| fs::read_to_string(path).unwrap().contains("made by go")));
}

#[test]
fn what_is_there_already_is_not_built_again_with_the_rest() {
    let machine = Machine::new().with("go", GO);
    machine.provide("kubelet").output().unwrap();
    machine.provide_all(&["kubelet", "kubeadm"]).output().unwrap();
    let builds = fs::read_to_string(machine.0.path().join("cache/builds")).unwrap();
    assert_eq!(builds, "k8s.io/kubernetes/cmd/kubelet\nk8s.io/kubernetes/cmd/kubeadm\n");
}

#[test]
fn a_pinned_program_is_not_taken_from_path() {
    let machine = Machine::new().with("go", GO).with("helm", "#!/bin/sh\necho v99.0.0\n");
    let path = |arguments: &[&str]| said(&machine.provide_all(arguments).output().unwrap()).0;
    assert!(path(&["helm"]).ends_with("/path/helm"));
    assert!(path(&["--pinned", "helm"]).contains("/cache/bin/helm-v4."));
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
        left.map(|entry| entry.unwrap().file_name()).filter(|name| name != ".lock-kubernetes").collect();
    assert_eq!(left, [Path::new(&path).file_name().unwrap()]);
}

#[test]
fn promtool_is_taken_out_of_debians_package_once_if_that_is_new_enough() {
    let download = "#!/bin/sh\necho \"$@\" >> \"$JETWRIGHT_CACHE/builds\"\ntouch prometheus_1_amd64.deb\n";
    let machine_with = |version: &str| {
        let extract = format!(
            "#!/bin/sh\nmkdir -p usr/bin\nprintf '#!/bin/sh\\necho promtool, version {version}+ds >&2\\n' > usr/bin/promtool\n\
             chmod +x usr/bin/promtool\n"
        );
        Machine::new().with("apt-get", download).with("dpkg-deb", &extract)
    };
    let machine = machine_with("2.42.0");
    let (path, _) = said(&machine.provide("promtool").output().unwrap());
    assert!(path.ends_with("/cache/bin/promtool-debian"), "{path}");
    assert_eq!(said(&machine.provide("promtool").output().unwrap()), (path, String::new()));
    assert_eq!(machine.builds(), 1);

    let (path, told) = said(&machine_with("2.24.1").provide("promtool").output().unwrap());
    assert_eq!(path, "");
    assert!(
        told.contains("is older than 2.42.0: use a newer one, or put promtool of at least 2.42.0 on PATH"),
        "{told}"
    );
}

#[test]
fn the_pages_of_prometheus_are_kept_beside_it_also_where_what_they_are_made_of_cannot_be_had() {
    let download = "#!/bin/sh\ncase $* in *libjs*) echo no such package >&2; exit 1 ;; esac\n\
                    echo \"$@\" >> \"$JETWRIGHT_CACHE/builds\"\ntouch prometheus_1_amd64.deb\n";
    let extract = "#!/bin/sh\nmkdir -p usr/bin usr/share/prometheus/web\necho page > usr/share/prometheus/web/alerts.html\n\
                   printf '#!/bin/sh\necho prometheus, version 2.42.0+ds >&2\n' > usr/bin/prometheus\nchmod +x usr/bin/prometheus\n";
    let machine = Machine::new().with("apt-get", download).with("dpkg-deb", extract);
    let (path, told) = said(&machine.provide("prometheus").output().unwrap());
    assert!(path.ends_with("/cache/bin/prometheus-debian"), "{path}{told}");
    assert!(told.contains("no such package") && told.contains("the pages will have no style"), "{told}");
    let page = Path::new(&path).with_file_name("prometheus-pages").join("alerts.html");
    assert_eq!(fs::read_to_string(page).unwrap(), "page\n");
    assert_eq!(said(&machine.provide("prometheus").output().unwrap()), (path, String::new()));
    assert_eq!(machine.builds(), 1);
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
