//! `make test`: what it says of each tier, and where no cluster can be made.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use jetwright_e2e::path;
use jetwright_testing::Folder;

/// Who may not start a Docker engine, and may read what this test may.
const ORDINARY_USER: [&str; 6] = [
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=+dac_override",
    "--ambient-caps=+dac_override",
    "--",
];
/// Root in a container without privileges.
const CONFINED_ROOT: [&str; 2] = ["--bounding-set=-sys_admin", "--"];

/// The run of the end-to-end tests where no Docker engine answers, as root would by `setpriv` with these arguments; how it ended, and what it
/// printed and complained of.
fn run_tests(who: &[&str], cluster_tests: Option<&str>) -> (Option<i32>, String, String) {
    let cache = Folder::new("cache");
    let script = path("run-tests");
    let mut command = if is_root() { Command::new("setpriv") } else { Command::new(&script) };
    if is_root() {
        command.args(who).arg(&script);
    }
    command
        .env("JETWRIGHT_CACHE", cache.path())
        .env("DOCKER_HOST", "unix:///nowhere/docker.sock")
        .env_remove("DOCKER_CONTEXT")
        .env_remove("JETWRIGHT_CLUSTER_TESTS")
        .envs(cluster_tests.map(|value| ("JETWRIGHT_CLUSTER_TESTS", value)));
    ended(command)
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout == b"0\n"
}

fn ended(mut command: Command) -> (Option<i32>, String, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn tests_of_the_cluster() -> usize {
    let files = fs::read_dir(path("tests/cluster")).unwrap().map(|file| file.unwrap().path());
    let sources = files.filter(|file| file.extension().is_some_and(|extension| extension == "rs"));
    sources.map(|file| fs::read_to_string(file).unwrap().matches("#[tokio::test").count()).sum()
}

#[test]
fn tests_of_the_cluster_are_skipped_and_counted_where_none_can_be_made() {
    let count = tests_of_the_cluster();
    assert!(count > 10);
    for who in [&ORDINARY_USER[..], &CONFINED_ROOT[..]] {
        let (code, said, complaints) = run_tests(who, Some("if-possible"));
        assert_eq!(code, Some(0), "{said}{complaints}");
        assert!(said.starts_with(&format!("skipped: the {count} tests that need a cluster")), "{said}");
        assert!(said.contains("no Docker engine answers, and "), "{said}");
        assert!(said.ends_with(&format!("\n0 passed, 0 failed, {count} skipped\n")), "{said}");
    }
}

#[test]
fn a_cluster_that_is_required_and_cannot_be_made_is_a_failure() {
    for required in [None, Some("required")] {
        let (code, said, complaints) = run_tests(&ORDINARY_USER, required);
        assert_eq!((code, said.as_str()), (Some(1), ""), "{complaints}");
        assert!(complaints.contains("no Docker engine answers, and only root can start one"), "{complaints}");
    }
    let (code, _, complaints) = run_tests(&ORDINARY_USER, Some("sometimes"));
    assert_eq!(code, Some(2), "{complaints}");
    assert!(complaints.contains("it may be required or if-possible"), "{complaints}");
    let ci = fs::read_to_string(path("../.ci/run")).unwrap();
    assert!(ci.contains("export JETWRIGHT_CLUSTER_TESTS=required"), "{ci}");
}

/// A folder with a Makefile, whose targets print what runners of tests do.
fn tiers(folder: &Path, tiers: &[&str]) -> (Option<i32>, String) {
    let makefile = "\
lint:
\t@echo formatted
unit:
\t@echo 'test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 5 filtered out; finished in 0.00s'
\t@echo 'test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s'
broken:
\t@echo 'test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s'; exit 1
cluster:
\t@echo 'skipped: the 22 tests, since there is no moon'
\t@echo '0 passed, 0 failed, 22 skipped'
";
    fs::write(folder.join("Makefile"), makefile).unwrap();
    let mut command = Command::new(path("../testing/run-tiers"));
    // As one that the running make does not know of.
    command.args(tiers).current_dir(folder).env_remove("MAKE").env_remove("MAKEFLAGS");
    let (code, said, _) = ended(command);
    (code, said)
}

#[test]
fn every_tier_is_told_with_its_seconds_and_the_last_line_counts_all_tests() {
    let folder = Folder::new("tiers");
    let (code, said) = tiers(folder.path(), &["lint", "unit", "cluster"]);
    assert_eq!(code, Some(0), "{said}");
    let lines: Vec<_> = said.lines().collect();
    let ends = &lines[lines.len() - 6..];
    let seconds = |line: &str| line.split_whitespace().nth(1).unwrap().parse::<u32>().unwrap();
    assert!(ends[0].starts_with("lint ") && seconds(ends[0]) < 60 && ends[0].ends_with(" s"), "{said}");
    assert!(
        ends[1].starts_with("unit ") && ends[1].ends_with(" s   7 passed, 0 failed, 1 skipped"),
        "{said}"
    );
    assert!(
        ends[2].starts_with("cluster ") && ends[2].ends_with(" s   0 passed, 0 failed, 22 skipped"),
        "{said}"
    );
    assert_eq!(
        ends[3..],
        ["    skipped: the 22 tests, since there is no moon", "", "7 passed, 0 failed, 23 skipped"]
    );
}

#[test]
fn a_tier_that_fails_ends_the_run_and_those_after_it_are_named() {
    let folder = Folder::new("tiers");
    let (code, said) = tiers(folder.path(), &["unit", "broken", "cluster"]);
    assert_eq!(code, Some(1), "{said}");
    let lines: Vec<_> = said.lines().collect();
    let ends = &lines[lines.len() - 5..];
    assert!(
        ends[1].starts_with("broken ") && ends[1].ends_with(" s   2 passed, 1 failed, 0 skipped   FAILED"),
        "{said}"
    );
    assert_eq!(ends[2..], ["cluster          not run", "", "9 passed, 1 failed, 1 skipped"]);
}

/// What `testing/time-make` says of what a target printed.
fn parts(printed: &str) -> String {
    let mut command = Command::new(path("../testing/time-make"));
    let mut child = command.arg("parts").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(printed.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_greatest_parts_of_what_make_took_are_read_from_what_its_steps_printed() {
    let printed = "\
testing/programs: building etcd, kubectl: 20 seconds so far
testing/programs: building etcd, kubectl: 40 seconds so far
testing/programs: built etcd, kubectl in 55 seconds, in /cache/bin
   Compiling serde v1.0.229
    Finished `dev` profile [unoptimized + debuginfo] target(s) in 2m 28s
e2e/cluster: installing docker.io with apt: 20 seconds so far
e2e/cluster: cluster jetwright-demo is up after 31 seconds
demo: they run after 4 seconds
demo: all of it is ready after 230 seconds
test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.41s
test result: ok. 151 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 441.70s
test-servers   1170 s   402 passed, 0 failed, 0 skipped
";
    let lines = [
        "   1170 s  make test-servers",
        "    442 s  running tests, group 2",
        "    230 s  everything, until all of it is ready",
        "    148 s  cargo, profile `dev`",
        "     55 s  building etcd, kubectl",
        "     31 s  making the cluster",
        "     20 s  installing docker.io with apt",
        "",
    ];
    assert_eq!(parts(printed), lines.join("\n"));
}
