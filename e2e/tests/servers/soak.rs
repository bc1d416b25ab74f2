//! Order per key on three real servers, under load, while processes come and go, are killed and frozen, while servers are killed, and while
//! the operator is another one. `make soak-order` does the same for longer.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::Arc,
    time::Duration,
};

use jetwright_crds::{
    Duration as Text,
    environment::{
        Binding, Bindings, HANDLER_DEADLINE, JETWRIGHT_ADMIN_ADDRESS, JETWRIGHT_BINDINGS, JETWRIGHT_POD_NAME,
        JETWRIGHT_POD_NAMESPACE, JETWRIGHT_POD_UID, NATS_URL, Ordering, Retry, StreamPartitions,
    },
};
use jetwright_e2e::order::{
    check::{Report, check},
    coordination::Coordination,
    history::{History, Interruption},
    load::{Load, Pace, monotonic},
};
use jetwright_partitions::{
    coordinator::{Declared, PodRole, Pods},
    keys::{BUCKET_STREAM, Key, PartitionId},
    records::{HeldRecord, HeldState, MemberRecord, Record},
};
use jetwright_testing::{Folder, NatsCluster, Process, ProcessBuilder, await_until, binary, free_port};
use tokio::sync::watch;

const PARTITIONS: u32 = 8;
const KEYS: u32 = 1_000;
/// How many processes there are, one step after another.
const STEPS: [usize; 5] = [1, 8, 3, 0, 5];
/// As many events wait at most, so that there is always work, and an end.
const BACKLOG: u64 = 20_000;
/// A process that dies without a word is found after 32 s, and its successor waits for ackWait.
const SETTLED: Duration = Duration::from_secs(90);

/// How often the steps are gone through; once where nothing is said.
fn rounds() -> usize {
    std::env::var("JETWRIGHT_SOAK_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1)
}

/// The processes of a workload, and what stands in for its operator.
struct Fleet {
    nats: NatsCluster,
    load: Load,
    folder: Arc<Folder>,
    processes: Vec<Process>,
    /// Where each serves its metrics.
    ports: Vec<u16>,
    /// Attempts that the sentinels of processes in running order checked, and violations that they found.
    sentinel: (u64, u64),
    /// How often processes were ended in order, with work under way.
    scale_downs: usize,
    /// Those that were not ended.
    running: BTreeSet<usize>,
    interruptions: Vec<(usize, Duration, Interruption)>,
    declared: watch::Sender<Declared>,
    coordination: Coordination,
}

/// A service on the runtime, as the pod of this number.
pub fn worker(folder: &Arc<Folder>, url: &str, index: usize, partitions: u32) -> ProcessBuilder {
    // Of its own: the one before may still be reading, and would find an empty file.
    let file = folder.path().join(format!("bindings-{index}.yaml"));
    fs::write(&file, serde_saphyr::to_string(&bindings(partitions)).unwrap()).unwrap();
    let name = format!("worker-{index}");
    Process::builder(binary("jetwright-soak-worker"))
        .name(&name)
        .folder(folder)
        .env(NATS_URL, url)
        .env(JETWRIGHT_BINDINGS, &file)
        .env(JETWRIGHT_ADMIN_ADDRESS, "127.0.0.1:0")
        .env(JETWRIGHT_POD_NAMESPACE, "shop")
        .env(JETWRIGHT_POD_NAME, &name)
        .env(JETWRIGHT_POD_UID, uid(index))
}

pub fn uid(index: usize) -> String {
    format!("uid-{index}")
}

impl Fleet {
    async fn start(nats: NatsCluster, load: Load) -> Self {
        let pods = Pods { namespace: "shop".to_owned(), roles: BTreeMap::new() };
        let declared = Declared { count: PARTITIONS, drain: Duration::from_secs(30), pods: Some(pods) };
        let (declared, _) = watch::channel(declared);
        let coordination = Coordination::lead(nats.client().await, Load::consumer(), declared.subscribe());
        let folder = Folder::new("soak");
        Self {
            nats,
            load,
            folder,
            processes: Vec::new(),
            ports: Vec::new(),
            sentinel: (0, 0),
            scale_downs: 0,
            running: BTreeSet::new(),
            interruptions: Vec::new(),
            declared,
            coordination,
        }
    }

    fn start_process(&mut self) {
        let index = self.processes.len();
        let port = free_port();
        let process = worker(&self.folder, self.nats.url(), index, PARTITIONS)
            .env(JETWRIGHT_ADMIN_ADDRESS, format!("127.0.0.1:{port}"))
            .start();
        self.processes.push(process);
        self.ports.push(port);
        self.running.insert(index);
        self.set_role(index, Some(PodRole::Current));
    }

    fn set_role(&self, index: usize, role: Option<PodRole>) {
        self.declared.send_modify(|declared| {
            let roles = &mut declared.pods.as_mut().unwrap().roles;
            match role {
                Some(role) => roles.insert(uid(index), role),
                None => roles.remove(&uid(index)),
            };
        });
    }

    /// Starts processes, or ends some in order: the operator empties them first, or they are just ended.
    async fn scale(&mut self, to: usize, is_emptied: bool) {
        while self.running.len() < to {
            self.start_process();
        }
        let ending: Vec<_> = self.running.iter().copied().take(self.running.len() - to).collect();
        self.running = self.running.split_off(&ending.last().map_or(0, |last| last + 1));
        if is_emptied && to > 0 {
            for index in &ending {
                self.set_role(*index, Some(PodRole::Retiring));
            }
            self.await_owned().await;
        }
        self.scale_downs += usize::from(!ending.is_empty());
        for index in &ending {
            self.ask_the_sentinel(*index).await;
            self.processes[*index].signal("TERM");
        }
        for index in ending {
            let status = self.processes[index].wait_exit(Duration::from_mins(1)).await;
            assert!(status.success(), "{}", self.processes[index].last_lines());
            self.set_role(index, None);
        }
        self.await_progress().await;
    }

    async fn ask_the_sentinel(&mut self, index: usize) {
        let url = format!("http://127.0.0.1:{}/metrics", self.ports[index]);
        let metrics = reqwest::get(url).await.unwrap().text().await.unwrap();
        let sum = |name: &str| {
            let values = metrics.lines().filter(|line| line.starts_with(name));
            values.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
        };
        self.sentinel.0 += sum("jetwright_order_checked_total");
        self.sentinel.1 += sum("jetwright_order_violations_total");
    }

    /// Waits until the running processes hold all partitions, each as many as another within one.
    async fn await_owned(&self) {
        if self.running.is_empty() {
            return;
        }
        let expected: BTreeSet<_> = self.running.iter().map(|index| uid(*index)).collect();
        let jetstream = self.nats.jetstream().await;
        await_until("the running processes to hold all partitions", SETTLED, async || {
            let bucket = jetstream.get_stream_no_info(BUCKET_STREAM).await?;
            let mut counts: BTreeMap<String, u32> = BTreeMap::new();
            for partition in 0..PARTITIONS {
                let key = Key::Held(PartitionId { consumer: Load::consumer(), partition });
                let message = bucket.get_last_raw_message_by_subject(&key.subject()).await?;
                let held = HeldRecord::read(&key, &message.payload)?;
                anyhow::ensure!(held.state == HeldState::Held, "partition {partition}: {held:?}");
                let key = Key::Member(held.member);
                let message = bucket.get_last_raw_message_by_subject(&key.subject()).await?;
                let member = MemberRecord::read(&key, &message.payload)?;
                anyhow::ensure!(member.dead.is_none(), "partition {partition}: {member:?}");
                *counts.entry(member.uid.unwrap_or_default()).or_default() += 1;
            }
            let is_of_the_expected = counts.keys().all(|uid| expected.contains(uid));
            let share = PARTITIONS.div_ceil(u32::try_from(expected.len())?);
            let is_even = counts.values().all(|count| *count <= share);
            anyhow::ensure!(is_of_the_expected && is_even, "{counts:?} of {expected:?}");
            anyhow::Ok(())
        })
        .await;
    }

    /// Waits until the running processes hold all partitions, and have settled events of each since.
    async fn await_progress(&self) {
        if self.running.is_empty() {
            return;
        }
        self.await_owned().await;
        let floors = async || {
            let infos = self.load.consumers().await?;
            anyhow::Ok(infos.iter().map(|info| info.ack_floor.stream_sequence).collect::<Vec<_>>())
        };
        let before = await_until("the consumers", SETTLED, floors).await;
        await_until("events of each partition to be handled", SETTLED, async || {
            let now = floors().await?;
            let has_moved = now.iter().zip(&before).all(|(now, before)| now > before);
            anyhow::ensure!(has_moved, "acknowledged up to {now:?}, from {before:?}");
            anyhow::Ok(())
        })
        .await;
    }

    /// Waits until the last that a process wrote is that it begins an event.
    async fn await_begun(&self, index: usize) {
        await_until("a process to begin an event", SETTLED, async || {
            let log = self.processes[index].log();
            let last = log.lines().last().unwrap_or_default();
            if last.contains(" begin ") { Ok(()) } else { Err(last.to_owned()) }
        })
        .await;
    }

    /// Kills one process with work under way, whose container Kubernetes starts again.
    async fn kill_one(&mut self) {
        let Some(index) = self.running.pop_first() else { return };
        self.await_begun(index).await;
        self.processes[index].kill();
        self.interruptions.push((index, monotonic(), Interruption::Killed));
        self.coordination.container_ended(&uid(index));
        self.set_role(index, None);
        self.start_process();
    }

    /// Freezes one process until its partitions are with others, and wakes it.
    async fn freeze_one(&mut self) {
        let Some(index) = self.running.pop_first() else { return };
        self.await_begun(index).await;
        self.processes[index].signal("STOP");
        let frozen = monotonic();
        self.interruptions.push((index, frozen, Interruption::Frozen(Duration::MAX)));
        self.await_progress().await;
        self.processes[index].signal("CONT");
        self.interruptions.pop();
        self.interruptions.push((index, frozen, Interruption::Frozen(monotonic())));
        self.running.insert(index);
    }

    /// Kills the server that leads the stream, and starts it again.
    async fn kill_a_server(&self) {
        let server = &self.nats.servers()[self.nats.stream_leader("orders").await];
        server.kill();
        server.start_again().await;
    }

    /// Another operator leads.
    async fn replace_the_operator(&mut self) {
        let client = self.nats.client().await;
        self.coordination = Coordination::lead(client, Load::consumer(), self.declared.subscribe());
    }

    fn report(&self, load: &Load) -> Report {
        let logs: Vec<_> = self.processes.iter().map(Process::log).collect();
        let history = History::read(logs.iter().map(String::as_str), self.interruptions.clone()).unwrap();
        let report = check(&history, &load.published).unwrap();
        assert_eq!(report.handled, load.published.values().sum::<u64>(), "{report:?}");
        let (checked, violations) = self.sentinel;
        assert!(checked > 0 && violations == 0, "{violations} of {checked} attempts violate the order");
        report
    }
}

fn bindings(count: u32) -> Bindings {
    let binding = Binding {
        stream: "orders".to_owned(),
        consumer: "fulfilment".to_owned(),
        ack_wait: Text::from_secs(10),
        max_ack_pending: 256,
        retry: Retry::default(),
        handler_deadline: HANDLER_DEADLINE,
        partitions: Some(StreamPartitions { subject: "orders.*.*".to_owned(), key_tokens: vec![2], count }),
        ordering: Some(Ordering { key_tokens: vec![2] }),
        dead_letters: None,
    };
    Bindings { bindings: [("fulfilment".to_owned(), binding)].into() }
}

#[tokio::test]
async fn events_of_a_key_stay_in_order_while_processes_servers_and_operators_come_and_go() {
    let nats = NatsCluster::start(3).await;
    let load = Load::prepare(nats.jetstream().await, 3, PARTITIONS, KEYS).await;
    let mut fleet = Fleet::start(nats, load.clone()).await;
    let publishing = load.publish_all_the_time(Pace::Within(BACKLOG));
    for round in 0..rounds() {
        for (step, processes) in STEPS.into_iter().enumerate() {
            fleet.scale(processes, (round + step) % 2 == 0).await;
            match step {
                1 => fleet.kill_one().await,
                2 => fleet.kill_a_server().await,
                4 if round % 3 == 1 => fleet.freeze_one().await,
                _ => fleet.replace_the_operator().await,
            }
            fleet.await_progress().await;
        }
    }
    let load = publishing.stop().await;
    load.await_drained(SETTLED).await;
    fleet.scale(0, false).await;
    let report = fleet.report(&load);
    println!(
        "{report:?}; {} processes, {} interrupted, {} ended in order {} times, {} attempts checked by sentinels",
        fleet.processes.len(),
        fleet.interruptions.len(),
        fleet.processes.len() - fleet.interruptions.len(),
        fleet.scale_downs,
        fleet.sentinel.0,
    );
    assert!(report.repeated > 0, "no process had begun an event when it was interrupted: {report:?}");
}
