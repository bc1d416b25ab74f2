//! `up` and `down`: what `make demo` and `make clean-demo` call.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use jetwright_testing::end_left_in;
use rustix::process::Signal;
use tokio::{runtime::Handle, task::spawn_blocking, time::sleep};

use crate::{
    OBSERVE, account,
    interruption::{Interrupted, Interruption},
    machine,
    serve::{self, ADMINISTRATOR, PASSWORD},
    state::{Home, Identity, Parts},
};

/// The servers usually take some seconds; a machine that builds something meanwhile takes longer.
const START: Duration = Duration::from_mins(3);
/// How long the processes may take to end when they are told to.
const STOP: Duration = Duration::from_secs(20);
/// How long what a process has left takes to end when the process was killed.
const GUARD: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);
/// Lines of the log that are shown after a failure.
const LAST_LINES: usize = 20;

/// A demo that this process has started. It ends when its standard input closes, unless it is told to stay.
struct Started {
    child: Child,
    stdin: ChildStdin,
}

/// Starts a demo, with Prometheus and Jaeger where `observe` is set, or finds the one that runs, and shows what happens in it.
///
/// # Errors
///
/// When it cannot be started, or something in it does not happen as it should, or it is interrupted. What it has started has ended by then.
pub async fn up(follow: bool, observe: bool) -> Result<()> {
    let began = Instant::now();
    let mut interruption = Interruption::listen()?;
    let home = Home::open()?;
    let lock = home.lock()?;
    let (mut started, parts) = if let (Some(_), Some(parts)) = (home.running(), home.parts()) {
        ensure!(
            parts.observers.is_some() || !observe,
            "the demo that runs has no Prometheus and no Jaeger: make clean-demo ends it, then make demo OBSERVE=1 starts one that has"
        );
        eprintln!("demo: found the servers that run (make clean-demo ends them)");
        (None, parts)
    } else {
        let (started, parts) = start(&home, observe, &mut interruption).await?;
        eprintln!("demo: they run after {} seconds", began.elapsed().as_secs());
        (Some(started), parts)
    };
    if let Err(error) = tell(&home, &parts, began, &mut interruption).await {
        // Once let go, it ends by itself, and may have removed the record of its folder before this looks for it.
        if let Some(_held) = started.take() {
            if !error.is::<Interrupted>() {
                eprintln!("{}", last_lines(&home));
            }
            end(&home).await?;
        }
        return Err(error);
    }
    if follow {
        eprintln!("demo: took {} seconds in all; Ctrl-C ends all of it", began.elapsed().as_secs());
        tokio::select! {
            () = interruption.happens() => {}
            () = ended(&home) => bail!("the servers ended:\n{}", last_lines(&home)),
        }
        end(&home).await?;
        eprintln!("demo: ended");
    } else {
        if let Some(started) = &mut started {
            writeln!(started.stdin, "{}", serve::STAY)?;
        }
        println!("\nThe servers go on running. To end them, and remove all but caches: make clean-demo");
        eprintln!("demo: took {} seconds in all", began.elapsed().as_secs());
    }
    drop(lock);
    Ok(())
}

/// The account, until it is told or interrupted. It has a thread of its own, since it waits for kubectl in between.
async fn tell(home: &Home, parts: &Parts, began: Instant, interruption: &mut Interruption) -> Result<()> {
    let (home, parts) = (home.clone(), parts.clone());
    let runtime = Handle::current();
    let account = spawn_blocking(move || runtime.block_on(account::tell(&home, &parts, began)));
    let told = tokio::select! {
        told = account => told?,
        () = interruption.happens() => return Err(Interrupted.into()),
    };
    // Ctrl-C ends a kubectl that runs as well, and may do so first.
    if told.is_err() && interruption.has_happened().await { Err(Interrupted.into()) } else { told }
}

async fn ended(home: &Home) {
    while home.running().is_some() {
        sleep(POLL).await;
    }
}

/// Starts a demo, and leaves nothing of one that does not start.
async fn start(home: &Home, observe: bool, interruption: &mut Interruption) -> Result<(Started, Parts)> {
    // What a demo has left that was killed.
    end(home).await?;
    let home = &Home::open()?;
    let mut started = spawn(home, observe).or_else(|error| home.remove().and(Err(error)))?;
    let parts = tokio::select! {
        parts = parts_of(home, &mut started) => parts,
        () = interruption.happens() => Err(Interrupted.into()),
    };
    match parts {
        Ok(parts) => Ok((started, parts)),
        Err(error) => {
            give_up(home, started).await?;
            Err(error)
        }
    }
}

fn spawn(home: &Home, observe: bool) -> Result<Started> {
    machine::check(&[home.as_ref(), &std::env::temp_dir()], observe)?;
    eprintln!(
        "demo: starting etcd, kube-apiserver, kube-controller-manager, three nats-servers and the operator{}",
        if observe { ", Prometheus and Jaeger" } else { "" }
    );
    let log = File::create(home.path("demo.log")).context("no log")?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("serve")
        .args(observe.then_some(OBSERVE))
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C is for this process alone, which then ends that one.
        .process_group(0)
        .spawn()
        .context("could not start the demo's process")?;
    let stdin = child.stdin.take().context("no standard input")?;
    Ok(Started { child, stdin })
}

async fn parts_of(home: &Home, started: &mut Started) -> Result<Parts> {
    let end_of_patience = Instant::now() + START;
    loop {
        if let Some(parts) = home.parts() {
            return Ok(parts);
        }
        if let Some(status) = started.child.try_wait()? {
            bail!("it could not be started ({status}):\n{}", last_lines(home));
        }
        if Instant::now() > end_of_patience {
            bail!("it did not start within {START:?}:\n{}", last_lines(home));
        }
        sleep(POLL).await;
    }
}

/// Ends a process that is at its start, and may not have said yet who it is: it ends when its standard input closes.
async fn give_up(home: &Home, started: Started) -> Result<()> {
    let Started { mut child, stdin } = started;
    let recorded = home.recorded();
    drop(stdin);
    let bound = Instant::now() + STOP;
    while child.try_wait()?.is_none() && Instant::now() < bound {
        sleep(POLL).await;
    }
    end(home).await?;
    // It may have removed its record before its guard has removed its folder.
    if let Some(process) = recorded {
        wait_until_gone(&process, GUARD).await;
    }
    home.remove()
}

fn last_lines(home: &Home) -> String {
    let log = fs::read_to_string(home.path("demo.log")).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

/// Ends the demo, if there is one.
///
/// # Errors
///
/// When it does not end.
pub async fn down() -> Result<()> {
    let home = Home::open()?;
    let lock = home.lock()?;
    eprintln!("demo: {}", if end(&home).await? { "ended" } else { "nothing runs" });
    drop(lock);
    home.remove()
}

/// Ends the process and what it started, and removes the folder; whether there was one.
async fn end(home: &Home) -> Result<bool> {
    let Some(process) = home.recorded() else { return Ok(false) };
    let ran = process.is_alive();
    process.signal(Signal::TERM);
    if !wait_until_gone(&process, if ran { STOP } else { GUARD }).await {
        // Its guard ends the others.
        process.signal(Signal::KILL);
        if !wait_until_gone(&process, GUARD).await {
            ensure!(!process.is_alive(), "process {} does not end", process.pid);
            // That one was killed, too, or the machine was.
            end_left_in(&process.folder)?;
        }
    }
    home.remove()?;
    Ok(ran)
}

/// Waits for the end of a process, and of all that it started, after which its folder is removed.
async fn wait_until_gone(process: &Identity, bound: Duration) -> bool {
    let end = Instant::now() + bound;
    while process.is_alive() || process.folder.exists() {
        if Instant::now() > end {
            return false;
        }
        sleep(POLL).await;
    }
    true
}

/// Prints what a shell evaluates.
///
/// # Errors
///
/// When no demo runs.
pub fn environment() -> Result<()> {
    let home = Home::open()?;
    let (Some(_), Some(parts)) = (home.running(), home.parts()) else {
        bail!("no demo runs: make demo starts one");
    };
    println!("export KUBECONFIG='{}'", parts.kubeconfig.display());
    // What the `nats` command-line tool reads.
    println!("export NATS_URL='{}' NATS_USER={ADMINISTRATOR} NATS_PASSWORD={PASSWORD}", parts.nats);
    println!("export OPERATOR='{}'", parts.operator);
    for (service, url) in &parts.services {
        println!("export {}='{url}'", service.to_uppercase().replace('-', "_"));
    }
    if let Some(observers) = &parts.observers {
        println!("export PROMETHEUS='{}' JAEGER='{}'", observers.prometheus, observers.jaeger);
    }
    // One that is on PATH needs no help.
    if !parts.kubectl.ends_with("kubectl") {
        println!("kubectl() {{ '{}' \"$@\"; }}", parts.kubectl.display());
    }
    Ok(())
}
