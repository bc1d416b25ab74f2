//! `make demo`: what it tells, and that it leaves nothing behind.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{ConnectOptions, jetstream};
use jetwright_e2e::path;
use jetwright_testing::{Folder, binary, start_time};
use serde_json::Value;

use crate::chart::helm;

/// How long a demo may take to start, and to end, while other tests run.
const BOUND: Duration = Duration::from_mins(3);

/// A demo with a folder of its own, which ends with the test.
pub struct Demo {
    pub home: PathBuf,
    _folder: Arc<Folder>,
}

impl Demo {
    pub fn new() -> Self {
        let folder = Folder::new("demo-test");
        Self { home: folder.path().join("home"), _folder: folder }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("jetwright-demo"));
        command.args(args).env("JETWRIGHT_DEMO_FOLDER", &self.home).stdin(Stdio::null());
        command
    }

    /// Runs it, and returns what it printed: the account, and beside it.
    pub fn run(&self, args: &[&str]) -> (String, String) {
        let Output { status, stdout, stderr } = self.command(args).output().unwrap();
        let (account, said) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        assert!(status.success(), "{account}{said}");
        (account, said)
    }

    /// A line as a user copies it from the account, who has done what it says before.
    fn line(&self, line: &str) -> String {
        let shell = format!("set -e; eval \"$('{}' env)\"; {line}", binary("jetwright-demo").display());
        let mut command = Command::new("bash");
        let output = command.args(["-c", &shell]).env("JETWRIGHT_DEMO_FOLDER", &self.home).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Where its parts are.
    pub fn parts(&self) -> Value {
        serde_json::from_slice(&fs::read(self.home.join("demo.json")).unwrap()).unwrap()
    }

    /// All processes of the demo, by id and start time, and the folder that they are in.
    pub fn processes(&self) -> (Vec<(u32, String)>, PathBuf) {
        let known: Value =
            serde_json::from_slice(&fs::read(self.home.join("process.json")).unwrap()).unwrap();
        let folder = PathBuf::from(known["folder"].as_str().unwrap());
        let started = fs::read_dir(folder.join("processes")).unwrap().filter_map(|note| {
            let note = note.unwrap().path();
            let pid = note.file_name().unwrap().to_str().unwrap().parse().unwrap();
            // That of a process that ends meanwhile is struck out.
            Some((pid, fs::read_to_string(note).ok()?))
        });
        let own = (
            known["pid"].as_u64().unwrap().try_into().unwrap(),
            known["start_time"].as_str().unwrap().to_owned(),
        );
        (started.chain([own]).collect(), folder)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.command(&["down"]).output();
    }
}

/// The variables for the command-line tool `nats` lead to every server of the demo's NATS, by a password that it asks for.
#[tokio::main(flavor = "current_thread")]
async fn assert_nats_variables_work(demo: &Demo) {
    let exported = demo.line("printenv NATS_URL NATS_USER NATS_PASSWORD");
    let [urls, user, password]: [&str; 3] = exported.lines().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(urls.split(',').count(), 3, "{urls}");
    for url in urls.split(',') {
        let connect = async |password: &str| {
            let options = ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned());
            options.connect(url).await
        };
        let client = connect(password).await.unwrap();
        let orders = jetstream::new(client).get_stream("orders").await.unwrap();
        assert!(orders.cached_info().state.messages > 0, "{url} has another stream of orders");
        assert!(connect("another").await.is_err(), "{url} takes any password");
    }
}

fn await_true(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + BOUND;
    while !is_so() {
        assert!(Instant::now() < end, "{what} not within {BOUND:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn runs((pid, begun): &(u32, String)) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let is_zombie = stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'));
    !is_zombie && start_time(*pid).is_ok_and(|found| found == *begun)
}

fn kill(signal: &str, pid: u32) {
    let script = format!("kill -{signal} {pid}");
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success(), "{script}");
}

/// The process that ends what is noted in a folder.
fn guard_of(folder: &Path) -> u32 {
    let end = format!("jetwright-test-guard\0{}\0", folder.display());
    let mut processes = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok()?.parse().ok());
    let is_guard =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(&end));
    processes.find(is_guard).unwrap()
}

pub fn assert_nothing_left(demo: &Demo, processes: &[(u32, String)], folder: &Path) {
    let left: Vec<_> = processes.iter().filter(|process| runs(process)).collect();
    assert!(left.is_empty(), "still running: {left:?}");
    assert!(!folder.exists(), "{} is still there", folder.display());
    assert!(!demo.home.exists(), "{} is still there", demo.home.display());
}

#[test]
fn the_demo_tells_its_story_prints_lines_that_work_is_found_again_and_leaves_nothing() {
    let demo = Demo::new();
    let (account, _) = demo.run(&["up"]);
    for part in [
        "a listen address 0.0.0.0 is the pod's own, 127.77.0.N",
        "eventstream.jetwright.dev/orders-dlq ",
        "deployment.apps/order-fulfilment   2/2 ",
        "Her order of two mugs is confirmed: ",
        "handled by user-directory",
        "handled by order-users",
        "handled by order-fulfilment",
        "Her order of a raffle ticket is rejected: ",
        ", by payment_authorization: the card's issuer declined",
        "handled by order-compensation",
        "PARTITION  TWO PODS ",
        " attempts: 0 violations",
        "  autoscaling only looks on here, and would have ",
        "20 of 20 are confirmed; 20 were confirmed once, 20 were paid once",
        "DriftRepaired: ",
        "Dead-Letter-Reason    undecodable",
    ] {
        assert!(account.contains(part), "nothing of {part:?} in\n{account}");
    }
    let lines: Vec<_> = account
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| line.starts_with("kubectl ") || line.starts_with("curl "))
        .collect();
    assert!(lines.len() >= 8, "{account}");
    for line in lines {
        demo.line(line);
    }
    assert_nats_variables_work(&demo);
    // What the lines changed is Kubernetes' own work: a rollout to three pods, and pods in the place of those that were deleted.
    demo.line("kubectl rollout status deployment/order-fulfilment --namespace shop --timeout=60s");
    let scaled = demo
        .line("kubectl get deployment order-fulfilment --namespace shop -o jsonpath={.status.readyReplicas}");
    assert_eq!(scaled, "3");

    // The node does with a pod what a kubelet does.
    let simulator =
        "kubectl run --image=jetwright/payment-simulator:1 --env=PAYMENT_SIMULATOR_HTTP_ADDRESS=nowhere";
    let waiting = "--for=jsonpath={.status.containerStatuses[0].state.waiting.reason}";
    for line in [
        &format!("{simulator} once --restart=Never"),
        "kubectl wait pod/once --for=jsonpath={.status.phase}=Failed --timeout=30s",
        &format!("{simulator} again"),
        &format!("kubectl wait pod/again {waiting}=CrashLoopBackOff --timeout=30s"),
        "kubectl run unknown --image=example/unknown:1",
        &format!("kubectl wait pod/unknown {waiting}=ErrImagePull --timeout=30s"),
    ] {
        demo.line(line);
    }

    let before = demo.processes().0.last().cloned();
    let (account, said) = demo.run(&["up"]);
    assert!(said.contains("found the servers that run"), "{said}");
    assert!(account.contains("20 of 20 are confirmed"), "{account}");
    let (processes, folder) = demo.processes();
    assert_eq!(processes.last().cloned(), before, "another process runs it");
    // Pods come and go meanwhile; the servers, the operator and four pods stay.
    assert!(processes.iter().filter(|process| runs(process)).count() >= 11, "{processes:?}");

    let (_, said) = demo.run(&["down"]);
    assert!(said.contains("ended"), "{said}");
    assert_nothing_left(&demo, &processes, &folder);
    let (_, said) = demo.run(&["down"]);
    assert!(said.contains("nothing runs"), "{said}");
}

#[test]
fn a_demo_ends_with_its_starter_or_when_it_is_killed_and_leaves_no_process() {
    let demo = Demo::new();
    // Its starter is killed before all of it is up.
    let mut starter = demo.command(&["up"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    await_true("the demo started", || demo.home.join("demo.json").exists());
    let (processes, folder) = demo.processes();
    starter.kill().unwrap();
    starter.wait().unwrap();
    await_true("the demo is gone", || !folder.exists() && !demo.home.exists());
    assert_nothing_left(&demo, &processes, &folder);

    // The process that all of it stands on is killed; what it leaves is no hindrance.
    let mut follower =
        demo.command(&["up", "--follow"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    await_true("the demo started", || demo.home.join("demo.json").exists());
    let (processes, folder) = demo.processes();
    kill("KILL", processes.last().unwrap().0);
    await_true("the demo is gone", || !folder.exists());
    assert!(!follower.wait().unwrap().success());
    demo.run(&["down"]);
    assert_nothing_left(&demo, &processes, &folder);
}

#[test]
fn what_is_left_of_a_demo_that_was_killed_with_its_guard_is_ended_by_the_next_call() {
    let demo = Demo::new();
    let mut follower =
        demo.command(&["up", "--follow"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    await_true("the demo started", || demo.home.join("demo.json").exists());
    let (processes, folder) = demo.processes();
    for pid in [guard_of(&folder), processes.last().unwrap().0, follower.id()] {
        kill("KILL", pid);
    }
    follower.wait().unwrap();
    assert!(processes.iter().any(runs), "nothing was left to end");
    demo.run(&["down"]);
    assert_nothing_left(&demo, &processes, &folder);
}

#[test]
fn a_demo_that_is_interrupted_has_ended_all_that_it_started_when_it_ends() {
    let demo = Demo::new();
    for (moment, file) in [("at its start", "process.json"), ("in its account", "demo.json")] {
        let starter = demo.command(&["up"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        await_true("the demo started", || demo.home.join(file).exists());
        let (processes, folder) = demo.processes();
        let pid = starter.id().to_string();
        assert!(
            Command::new("sh").args(["-c", "kill -INT \"$1\"", "kill", &pid]).status().unwrap().success()
        );
        let ended = starter.wait_with_output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(130), "{moment}: {said}");
        assert!(
            said.ends_with("demo: interrupted; what this call had started has ended\n"),
            "{moment}: {said}"
        );
        assert_nothing_left(&demo, &processes, &folder);
    }
}

#[test]
fn a_server_that_cannot_start_ends_the_demo_with_what_it_said() {
    let demo = Demo::new();
    let programs = Folder::new("programs");
    let etcd = programs.path().join("etcd");
    let script = "#!/bin/sh\ncase $1 in --version) echo etcd Version: 3.6.0 ;; *) echo no space left on device; exit 1 ;; esac\n";
    fs::write(&etcd, script).unwrap();
    fs::set_permissions(&etcd, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap());
    let ended = demo.command(&["up"]).env("PATH", path).output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(!ended.status.success(), "{said}");
    assert!(said.contains("etcd ended at its start") && said.contains("no space left on device"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!(!demo.home.exists(), "{} is still there", demo.home.display());
}

#[test]
fn the_manifests_of_the_demo_are_what_helm_makes_of_the_shop() {
    let args = ["template", "shop", "../charts/shop", "--namespace", "shop", "--values", "demo/shop.yaml"];
    let kept = fs::read_to_string(path("demo/shop-manifests.yaml")).unwrap();
    let made = helm(None, &args).unwrap();
    assert!(
        kept == made,
        "the chart has changed: helm template shop charts/shop --namespace shop --values e2e/demo/shop.yaml > e2e/demo/shop-manifests.yaml"
    );
}
