//! Child processes, and what is left of them.

use jetwright_testing::{ControlPlane, NatsServer, Process, ProcessBuilder, await_until};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ObjectMeta, PostParams};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use std::{env, fs};

const SOON: Duration = Duration::from_secs(20);

fn shell(script: &str) -> ProcessBuilder {
    Process::builder("sh").args(["-c", script])
}

#[tokio::test]
async fn a_process_is_gone_with_what_it_started_and_its_folder_when_dropped() {
    let process = shell("sleep 1000 & echo child $!; wait").start();
    let line = process.await_log("child", SOON).await;
    let child: u32 = line.strip_prefix("child ").unwrap().parse().unwrap();
    assert!(process.memory_bytes() > 100_000);
    let (pid, folder) = (process.pid(), process.folder().to_owned());
    assert!(runs(pid) && runs(child));
    drop(process);
    assert!(!runs(pid) && !folder.exists());
    await_until("its child's end", SOON, async || if runs(child) { Err("it runs") } else { Ok(()) }).await;
}

#[tokio::test]
async fn a_signal_is_delivered_and_the_exit_told() {
    let process = shell("trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done").start();
    process.await_log("ready", SOON).await;
    assert_eq!(process.exited(), None);
    process.signal("TERM");
    assert_eq!(process.wait_exit(SOON).await.code(), Some(7));
    process.signal("TERM");
    process.kill();
}

#[tokio::test]
async fn the_environment_of_the_developer_stays_away() {
    let process = shell("env; echo; echo done").env("GREETING", "ahoy").start();
    process.await_log("done", SOON).await;
    let names: Vec<_> =
        process.log().lines().filter_map(|line| Some(line.split_once('=')?.0.to_owned())).collect();
    assert!(names.contains(&"GREETING".to_owned()) && names.contains(&"PATH".to_owned()), "{names:?}");
    assert!(!names.iter().any(|name| name.starts_with("CARGO")), "{names:?}");
}

#[tokio::test]
#[should_panic(expected = "sh ended (exit status: 3) and had not logged 'ready':\nno sails")]
async fn a_program_that_ends_before_it_is_ready_is_not_waited_for() {
    shell("echo no sails; exit 3").start().await_log("ready", SOON).await;
}

#[test]
#[should_panic(expected = "there is no /nowhere/jetwright-operator")]
fn a_program_that_is_not_there_is_named() {
    let _ = Process::builder("/nowhere/jetwright-operator").start();
}

#[tokio::test]
async fn a_killed_test_process_leaves_no_process_and_no_folder() {
    let mut test = this_test_program("processes::started_by_others::sleeps_beside_servers");
    let test = test.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // killed on every way out of this test
    let mut test = Killed(test);
    let started = tokio::task::spawn_blocking(move || {
        let told = std::io::BufRead::lines(std::io::BufReader::new(test.0.stdout.take().unwrap()));
        let told = told.map(Result::unwrap).find_map(|line| Some(line.split_once("started: ")?.1.to_owned()));
        (test, told.expect("the other test to tell what it started"))
    });
    let (test, started) = started.await.unwrap();
    let (folder, pids) = started.split_once(' ').unwrap();
    let pids: Vec<u32> = pids.split(' ').map(|pid| pid.parse().unwrap()).collect();
    assert!(Path::new(folder).exists() && pids.iter().all(|pid| runs(*pid)), "{started}");

    drop(test);

    await_until("nothing to be left", SOON, async || {
        let left: Vec<_> = pids.iter().filter(|pid| runs(**pid)).collect();
        let folders = Path::new(folder).exists();
        if left.is_empty() && !folders {
            Ok(())
        } else {
            Err(format!("{left:?} run, its folder is there: {folders}"))
        }
    })
    .await;
}

#[test]
fn the_logs_of_a_failed_test_are_kept_with_its_objects() {
    let output = this_test_program("processes::started_by_others::fails_beside_servers").output().unwrap();
    let told = text(&output);
    assert!(!output.status.success() && told.contains("the sails are torn"), "{told}");

    let kept: Vec<_> = told.lines().filter_map(|line| line.strip_prefix("--- logs are kept in ")).collect();
    let [process] = kept[..] else { panic!("one folder kept, not {kept:?}:\n{told}") };
    assert_eq!(fs::read_to_string(Path::new(process).join("sh.log")).unwrap(), "heave\nho\n");

    let objects = told.lines().find_map(|line| line.strip_prefix("--- the objects of namespace "));
    let objects = PathBuf::from(objects.unwrap().split_once(" are kept in ").unwrap().1);
    assert!(fs::read_to_string(&objects).unwrap().contains("level: high"));
    assert!(objects.with_file_name("kube-apiserver.log").exists());
    fs::remove_dir_all(objects.parent().unwrap().parent().unwrap()).unwrap();
}

/// Tests that only the tests above start, in a process of their own.
mod started_by_others {
    use super::*;

    #[tokio::test]
    #[ignore = "started, and killed, by a_killed_test_process_leaves_no_process_and_no_folder"]
    async fn sleeps_beside_servers() {
        let control_plane = ControlPlane::shared().await;
        let nats = NatsServer::start().await.process();
        let nats_again = NatsServer::start().await;
        assert!(nats.exited().is_some());
        let pids = [control_plane.etcd().pid(), control_plane.api_server().pid(), nats_again.process().pid()];
        let pids = pids.map(|pid| pid.to_string()).join(" ");
        println!("started: {} {pids}", nats_again.process().folder().parent().unwrap().display());
        std::future::pending::<()>().await;
    }

    #[tokio::test]
    #[ignore = "started by the_logs_of_a_failed_test_are_kept_with_its_objects"]
    async fn fails_beside_servers() {
        let namespace = ControlPlane::shared().await.namespace("fails").await;
        let metadata = ObjectMeta { name: Some("tide".into()), ..ObjectMeta::default() };
        let data = Some([("level".into(), "high".into())].into());
        let config = ConfigMap { metadata, data, ..ConfigMap::default() };
        namespace.api().create(&PostParams::default(), &config).await.unwrap();
        let process = shell("echo heave; echo ho; sleep 1000").start();
        process.await_log("ho", SOON).await;
        panic!("the sails are torn");
    }
}

struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn this_test_program(test: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env("RUST_BACKTRACE", "0");
    command
}

/// Whether a process runs; one that has ended and waits to be told of does not.
fn runs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
