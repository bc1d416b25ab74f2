//! The worked example in Python takes part in the protocol: its processes share partitions, and give them up when they are ended,
//! killed or frozen.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use jetwright_crds::{EventConsumer, EventStream};
use jetwright_e2e::{
    Operator, control_plane,
    objects::declare,
    order::{
        check::{Report, check},
        coordination::Coordination,
        history::{History, Interruption, Step},
        load::{Load, Pace, monotonic},
    },
    path,
};
use jetwright_partitions::coordinator::Declared;
use jetwright_testing::{Folder, NatsServer, Process, await_until};
use serde_json::json;
use tokio::sync::watch;

use crate::soak::worker::{uid, worker};

/// A process that is silent is found dead after 32 s, and its successor waits for ackWait.
const TAKEN_OVER: Duration = Duration::from_secs(70);
const PARTITIONS: u32 = 4;
const KEYS: u32 = 40;
/// A process in Python keeps up with the load of all others, and is busy for a fifth of the time.
const PACE: Pace = Pace::Every(Duration::from_millis(500));

/// Python with what the example needs. Without one the test is skipped, unless it is required.
fn python() -> Option<PathBuf> {
    let script = path("../testing/programs/python");
    let output = Command::new(script).arg(path("../docs/examples/python/requirements.txt")).output().unwrap();
    if output.status.success() {
        return Some(String::from_utf8(output.stdout).unwrap().trim().into());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let is_allowed = std::env::var("JETWRIGHT_PYTHON_TESTS").is_ok_and(|value| value == "if-possible");
    assert!(is_allowed && output.status.code() == Some(3), "the tests in Python are required, and: {why}");
    // Not by println, which the test runner shows of failed tests alone.
    let line = format!("skipped: a test of the example in Python, since none can be had here: {why}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
    None
}

/// The processes of a test, and what was done to them.
struct Group {
    python: PathBuf,
    url: String,
    processes: Vec<Process>,
    interruptions: Vec<(usize, Duration, Interruption)>,
}

impl Group {
    fn new(python: PathBuf, nats: &NatsServer) -> Self {
        Self { python, url: nats.url().to_owned(), processes: Vec::new(), interruptions: Vec::new() }
    }

    fn start(&mut self) -> usize {
        let index = self.processes.len();
        let process = Process::builder(self.python.clone())
            .name(&format!("consumer-{index}"))
            .arg(path("../docs/examples/python/consumer.py"))
            .env("NATS_URL", &self.url)
            .env("STREAM", "orders")
            .env("CONSUMER", "fulfilment")
            .env("PARTITIONS", PARTITIONS.to_string())
            .env("HANDLER_SECONDS", "0.01")
            .env("JETWRIGHT_POD_NAMESPACE", "shop")
            .env("JETWRIGHT_POD_NAME", format!("consumer-{index}"))
            .env("JETWRIGHT_POD_UID", uid(index))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .start();
        self.processes.push(process);
        index
    }

    fn start_worker(&mut self) -> usize {
        let index = self.processes.len();
        self.processes.push(worker(&Folder::new("worker"), &self.url, index, PARTITIONS).start());
        index
    }

    /// Freezes a process that has begun an event and not ended it. Gives a time at which it stands still.
    async fn freeze_in_the_middle(&self, index: usize) -> Duration {
        await_until(
            "a process to stand still in the middle of an event",
            Duration::from_secs(20),
            async || {
                self.processes[index].freeze().await;
                if self.is_in_the_middle(index) {
                    return Ok(monotonic());
                }
                self.processes[index].signal("CONT");
                Err("it was between two events")
            },
        )
        .await
    }

    fn is_in_the_middle(&self, index: usize) -> bool {
        let entries = self.history().entries.into_iter().filter(|entry| entry.process == index);
        let newest: BTreeMap<_, _> = entries.map(|entry| (entry.partition, entry.step)).collect();
        newest.values().any(|step| *step == Step::Begin)
    }

    async fn kill(&mut self, index: usize) {
        self.freeze_in_the_middle(index).await;
        self.processes[index].kill();
        self.interruptions.push((index, monotonic(), Interruption::Killed));
    }

    fn history(&self) -> History {
        let logs: Vec<_> = self.processes.iter().map(Process::log).collect();
        History::read(logs.iter().map(String::as_str), self.interruptions.clone()).unwrap()
    }

    /// The process that began the newest event of each partition since this time.
    fn owners(&self, since: Duration) -> BTreeMap<u32, usize> {
        let entries = self.history().entries.into_iter().filter(|entry| entry.at > since);
        entries.map(|entry| (entry.partition, entry.process)).collect()
    }

    /// Waits until these processes, each with a partition at least, handle all partitions.
    async fn await_owners(&self, since: Duration, expected: &[usize]) -> BTreeMap<u32, usize> {
        await_until(&format!("the processes {expected:?} to handle everything"), TAKEN_OVER, async || {
            let owners = self.owners(since);
            let of: BTreeSet<_> = owners.values().copied().collect();
            let is_so = owners.len() == PARTITIONS as usize && of.into_iter().eq(expected.iter().copied());
            if is_so { Ok(owners) } else { Err(format!("{owners:?}")) }
        })
        .await
    }

    fn assert_in_order(&self, load: &Load) -> Report {
        let report = check(&self.history(), &load.published).unwrap();
        assert_eq!(report.handled, load.published.values().sum::<u64>(), "{report:?}");
        report
    }

    async fn end(&self, index: usize) {
        self.processes[index].signal("TERM");
        let status = self.processes[index].wait_exit(Duration::from_secs(30)).await;
        assert!(status.success(), "{}", self.processes[index].last_lines());
    }
}

#[tokio::test]
async fn processes_in_python_share_partitions_without_an_operator_whatever_happens_to_them() {
    let Some(python) = python() else { return };
    let nats = NatsServer::start().await;
    let load = Load::prepare(nats.jetstream().await, 1, PARTITIONS, KEYS).await;
    let publishing = load.publish_all_the_time(PACE);
    let mut group = Group::new(python, &nats);
    let (first, second) = (group.start(), group.start());
    group.await_owners(Duration::ZERO, &[first, second]).await;
    let third = group.start();
    group.processes[third].await_log("joins as", Duration::from_secs(20)).await;

    group.kill(first).await;
    let frozen = group.freeze_in_the_middle(second).await;
    group.interruptions.push((second, frozen, Interruption::Frozen(Duration::MAX)));
    group.await_owners(frozen, &[third]).await;
    // Read before: it may begin an event before the sender of the signal goes on.
    let woken = monotonic();
    group.processes[second].signal("CONT");
    group.interruptions[1].2 = Interruption::Frozen(woken);
    group.processes[second].await_log(" is over: ", Duration::from_secs(20)).await;

    let load = publishing.stop().await;
    load.await_drained(TAKEN_OVER).await;
    let report = group.assert_in_order(&load);
    assert!(report.repeated > 0, "nothing was under way when processes were interrupted: {report:?}");
}

#[tokio::test]
async fn processes_in_python_hand_partitions_over_as_the_map_says() {
    let Some(python) = python() else { return };
    let nats = NatsServer::start().await;
    let load = Load::prepare(nats.jetstream().await, 1, PARTITIONS, KEYS).await;
    let publishing = load.publish_all_the_time(PACE);
    let declared = Declared { count: PARTITIONS, drain: Duration::from_secs(10), pods: None };
    let (_declare, declared) = watch::channel(declared);
    let coordination = Coordination::lead(nats.client().await, Load::consumer(), declared);
    let mut group = Group::new(python, &nats);
    let first = group.start();
    group.await_owners(Duration::ZERO, &[first]).await;
    let second = group.start();
    let started = monotonic();
    await_until("each to handle half of the partitions", TAKEN_OVER, async || {
        let owners = group.owners(started);
        let share = |of: usize| owners.values().filter(|owner| **owner == of).count();
        if (share(first), share(second)) == (2, 2) { Ok(()) } else { Err(format!("{owners:?}")) }
    })
    .await;

    group.kill(second).await;
    coordination.container_ended(&uid(second));
    group.await_owners(monotonic(), &[first]).await;
    let third = group.start();
    group.await_owners(monotonic(), &[first, third]).await;
    group.end(first).await;
    group.await_owners(monotonic(), &[third]).await;

    let load = publishing.stop().await;
    load.await_drained(TAKEN_OVER).await;
    group.end(third).await;
    let report = group.assert_in_order(&load);
    println!("{report:?}");
    // Hand-overs repeat nothing.
    assert_eq!(report.unfenced, 0, "{report:?}");
}

#[tokio::test]
async fn a_program_in_python_and_one_on_the_runtime_share_partitions_as_the_operator_says() {
    let Some(python) = python() else { return };
    let control_plane = control_plane().await;
    let namespace = control_plane.namespace("shared").await;
    let nats = NatsServer::start().await;
    let _operator = Operator::start(control_plane, &nats, namespace.name());
    let partitions = json!({"count": PARTITIONS, "keyTokens": [2]});
    let stream = json!({"subjects": ["orders.*.*"], "partitions": partitions});
    declare(&namespace.api::<EventStream>(), "orders", &stream).await;
    let consumer = json!({"streamRef": {"name": "orders"}, "ordering": "PerKey"});
    declare(&namespace.api::<EventConsumer>(), "fulfilment", &consumer).await;
    let load = Load::new(nats.jetstream().await, 1, PARTITIONS, KEYS);
    await_until("the consumers", TAKEN_OVER, async || load.consumers().await).await;

    let publishing = load.publish_all_the_time(PACE);
    let mut group = Group::new(python, &nats);
    let (on_the_runtime, in_python) = (group.start_worker(), group.start());
    group.await_owners(Duration::ZERO, &[on_the_runtime, in_python]).await;
    group.end(in_python).await;
    group.await_owners(monotonic(), &[on_the_runtime]).await;
    let in_python = group.start();
    group.await_owners(monotonic(), &[on_the_runtime, in_python]).await;
    group.end(on_the_runtime).await;
    group.await_owners(monotonic(), &[in_python]).await;

    let load = publishing.stop().await;
    load.await_drained(TAKEN_OVER).await;
    group.end(in_python).await;
    let report = group.assert_in_order(&load);
    assert_eq!((report.repeated, report.unfenced), (0, 0), "{report:?}");
}
