//! `up` and `down`: what `make demo` and `make clean-demo` call.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use crate::{
    account, machine,
    serve::{self, ADMINISTRATOR, PASSWORD},
    state::{Home, Identity, Parts},
};

/// The servers usually take some seconds; a machine that builds something meanwhile takes longer.
const START: Duration = Duration::from_mins(3);
/// How long the processes may take to end when they are told to.
const STOP: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);
/// Lines of the log that are shown after a failure.
const LAST_LINES: usize = 20;

/// A demo that this process has started. It ends when its standard input closes, unless it is told to stay.
struct Started {
    child: Child,
    stdin: ChildStdin,
}

/// Starts a demo, or finds the one that runs, and tells what happens in it.
///
/// # Errors
///
/// When it cannot be started, or something in it does not happen as it should.
pub async fn up(follow: bool) -> Result<()> {
    let began = Instant::now();
    let home = Home::open()?;
    let lock = home.lock()?;
    let (mut started, parts) = if let (Some(_), Some(parts)) = (home.running(), home.parts()) {
        eprintln!("demo: found the servers that run (make clean-demo ends them)");
        (None, parts)
    } else {
        let started = start(&home).await;
        if started.is_err() {
            home.remove()?;
        }
        let (started, parts) = started?;
        eprintln!("demo: they run after {} seconds", began.elapsed().as_secs());
        (Some(started), parts)
    };
    let told = account::tell(&home, &parts, began).await;
    if let Err(error) = told {
        if started.take().is_some() {
            eprintln!("{}", last_lines(&home));
            end(&home).await?;
        }
        return Err(error);
    }
    eprintln!("demo: took {} seconds in all", began.elapsed().as_secs());
    if follow {
        eprintln!("demo: Ctrl-C ends all of it");
        until_told(&home).await?;
        end(&home).await?;
    } else if let Some(started) = &mut started {
        writeln!(started.stdin, "{}", serve::STAY)?;
    }
    drop(lock);
    Ok(())
}

/// Waits for Ctrl-C or SIGTERM.
async fn until_told(home: &Home) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let ended = async {
        while home.running().is_some() {
            sleep(POLL).await;
        }
    };
    tokio::select! {
        told = tokio::signal::ctrl_c() => Ok(told?),
        _ = terminate.recv() => Ok(()),
        () = ended => bail!("the servers ended:\n{}", last_lines(home)),
    }
}

async fn start(home: &Home) -> Result<(Started, Parts)> {
    // What a demo has left that was killed.
    end(home).await?;
    let home = &Home::open()?;
    machine::check(&[home.as_ref(), &std::env::temp_dir()])?;
    eprintln!(
        "demo: starting etcd, kube-apiserver, kube-controller-manager, three nats-servers and the operator"
    );
    let log = File::create(home.path("demo.log")).context("no log")?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("serve")
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C is for this process alone, which then ends that one.
        .process_group(0)
        .spawn()
        .context("could not start the demo's process")?;
    let stdin = child.stdin.take().context("no standard input")?;
    let mut started = Started { child, stdin };
    let end_of_patience = Instant::now() + START;
    loop {
        if let Some(parts) = home.parts() {
            return Ok((started, parts));
        }
        if let Some(status) = started.child.try_wait()? {
            let said = last_lines(home);
            home.remove()?;
            bail!("it could not be started ({status}):\n{said}");
        }
        if Instant::now() > end_of_patience {
            let said = last_lines(home);
            end(home).await?;
            bail!("it did not start within {START:?}:\n{said}");
        }
        sleep(POLL).await;
    }
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
    if !wait_until_gone(&process, STOP).await {
        // Its guard ends the others.
        process.signal(Signal::KILL);
        if !wait_until_gone(&process, STOP).await {
            bail!("process {} does not end", process.pid);
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
    // One that is on PATH needs no help.
    if !parts.kubectl.ends_with("kubectl") {
        println!("kubectl() {{ '{}' \"$@\"; }}", parts.kubectl.display());
    }
    Ok(())
}
