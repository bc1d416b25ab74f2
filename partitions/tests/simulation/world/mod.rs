//! Everything in one virtual time: the bucket, the JetStream consumers, processes, operators, the network between them, and what must
//! always be true.

mod checks;
mod division;
mod network;
mod nodes;
mod removal;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    time::{Duration, Instant},
};

use jetwright_partitions::{
    actions::{Action, Value},
    coordinator::{Coordinator, Declared, PodRole, Pods},
    keys::{ConsumerId, Key},
    lease::Clocks,
    recovery::{ConsumerState, Leadership},
    sentinel::{OrderSentinel, OrderViolation},
    write::Answer,
};

use self::division::Division;
use crate::{
    bucket::Bucket,
    jetstream::{ACK_WAIT, Consumer, Delivery, Pull, Sent},
    process::{Effect, Process},
    rng::Rng,
};

pub const PARTITIONS: u32 = 5;
const KEYS: u32 = 4;
pub const TICK: u64 = 100;
const REQUEST_TIMEOUT: u64 = 5_000;
const REWATCH: u64 = 60_000;
const GRACE_PERIOD: u64 = 40_000;
/// How long a partition may be nobody's after the last thing went wrong: the lease and the skew, a hand-over, the requests between.
const UNOWNED_BOUND: u64 = 75_000;
/// How long nothing may begin then: until everything unacknowledged was delivered again, too.
const STALLED_BOUND: u64 = UNOWNED_BOUND + ACK_WAIT + 5_000;

/// Who sends a request; one that was started again is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    Process(usize, u64),
    Operator(usize, u64),
}

#[derive(Debug)]
enum Request {
    Bucket(u64, Action),
    Effect(Effect),
}

#[derive(Clone, Debug)]
enum Reply {
    Written(Answer),
    Value(Option<(u64, String)>),
    Age(u64),
}

#[derive(Clone, Debug)]
enum Message {
    Reply(u64, Reply),
    Watched(Key, u64, String),
    Synced,
    Delivery {
        partition: u32,
        delivery: Delivery,
    },
    Confirmed {
        partition: u32,
        sequence: u64,
    },
    Info {
        partition: u32,
        state: ConsumerState,
        leadership: Leadership,
        asked: u64,
    },
    Unsubscribed {
        partition: u32,
    },
    Handled {
        partition: u32,
        sequence: u64,
        loop_id: u64,
    },
    TimedOut(u64),
    /// UID of the pod, and when, in seconds since 1970.
    ContainerEnded(String, u64),
}

#[derive(Debug)]
enum Event {
    Tick,
    Publish,
    ToServer(Node, Request),
    ToNode(Node, Message),
    Resume(usize, u64),
    ResumeOperator(usize, u64),
    Start(usize),
    Terminate(usize, u64),
    Kill(usize, u64),
    NatsUp,
    EndCut(usize),
    OtherLeader(u32),
}

#[derive(Debug)]
struct Scheduled {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

pub struct Operator {
    coordinator: Coordinator,
    incarnation: u64,
    is_frozen: bool,
    /// What arrived meanwhile.
    deferred: Vec<Message>,
    /// Its clock runs so many thousandths of the true time.
    rate: u64,
}

/// A handler that runs.
#[derive(Clone, Copy, Debug)]
struct Handling {
    node: Node,
    loop_id: u64,
    sequence: u64,
}

pub struct World {
    pub now: u64,
    pub rng: Rng,
    /// Requests may be lost or late.
    pub is_lossy: bool,
    pub processes: Vec<Option<Process>>,
    pub operators: Vec<Option<Operator>>,
    pub bucket: Bucket,
    pub consumers: Vec<Consumer>,
    /// Partitions that are shared out.
    pub shared: u32,
    division: Option<Division>,
    pub template: u32,
    pub publish_every: u64,
    /// Milliseconds that handlers take at least and at most.
    pub handler: (u64, u64),
    nats_up: bool,
    /// Processes that reach no server.
    cut: BTreeSet<usize>,
    /// Watches of processes and of operators that bring nothing until then.
    blind: BTreeMap<usize, u64>,
    blind_operators: BTreeMap<usize, u64>,
    events: BinaryHeap<Reverse<Scheduled>>,
    number: u64,
    incarnations: u64,
    requests: BTreeMap<u64, (Node, Action)>,
    deferred: BTreeMap<usize, Vec<(Node, Message)>>,
    last_arrival: BTreeMap<Node, u64>,
    /// The next acknowledgement to the consumer of this partition is lost.
    pub lost_ack: Option<u32>,
    /// The next write of this process by which it joins arrives at this time.
    pub late_join: Option<(usize, u64)>,
    /// What a process sends without waiting arrives in its order.
    last_departure: BTreeMap<Node, u64>,
    stream: Vec<(u32, u32)>,
    /// Events that are in it still, by key.
    left: BTreeMap<u32, BTreeSet<u64>>,
    /// Events that were removed before a process had handled them.
    pub removed_early: u64,
    /// It keeps so many events of a key.
    kept: Option<usize>,
    base: Instant,
    sentinel: OrderSentinel,
    running: BTreeMap<u32, Handling>,
    handled: BTreeSet<u64>,
    acked: BTreeSet<u64>,
    pub epochs: BTreeMap<u32, (u64, Node)>,
    /// Until when what went wrong lasts.
    calm_at: u64,
    unowned: BTreeMap<u32, u64>,
    /// When events of each partition could begin last.
    recovered: BTreeMap<u32, u64>,
    /// The longest time without an owner, by partition, since it was last cleared.
    pub gaps: BTreeMap<u32, u64>,
    /// Handlers of processes that were frozen past their lease, when the next owner began.
    pub unfenced: u64,
    clock_set_at: Option<u64>,
    /// Events that were begun again after they were acknowledged: by such a process while its successor had them, or where the process learnt
    /// that a killed server forgot the delivery, and the acknowledgement was under way.
    pub settled_late: u64,
    /// Events of whose acknowledgement a process was told.
    confirmed: BTreeSet<u64>,
    settled_by: BTreeMap<u64, Node>,
    newest: BTreeMap<u32, u64>,
    pub serves: u64,
    /// Events that a draining owner gave back.
    pub given_back: u64,
    pub trace: VecDeque<String>,
}

pub fn consumer() -> ConsumerId {
    "orders.fulfilment".parse().unwrap()
}

impl World {
    pub fn new(seed: u64, processes: usize) -> Self {
        let mut world = Self {
            now: 0,
            rng: Rng::new(seed),
            is_lossy: false,
            processes: (0..processes).map(|_| None).collect(),
            operators: vec![None, None],
            bucket: Bucket::old(),
            consumers: (0..PARTITIONS).map(|_| Consumer::default()).collect(),
            shared: PARTITIONS,
            division: None,
            template: 1,
            publish_every: 120,
            handler: (5, 400),
            nats_up: true,
            cut: BTreeSet::new(),
            blind: BTreeMap::new(),
            blind_operators: BTreeMap::new(),
            events: BinaryHeap::new(),
            number: 0,
            incarnations: 0,
            requests: BTreeMap::new(),
            deferred: BTreeMap::new(),
            last_arrival: BTreeMap::new(),
            lost_ack: None,
            late_join: None,
            last_departure: BTreeMap::new(),
            stream: Vec::new(),
            left: BTreeMap::new(),
            removed_early: 0,
            kept: None,
            base: Instant::now(),
            sentinel: OrderSentinel::default(),
            running: BTreeMap::new(),
            handled: BTreeSet::new(),
            acked: BTreeSet::new(),
            epochs: BTreeMap::new(),
            calm_at: 0,
            unowned: BTreeMap::new(),
            gaps: BTreeMap::new(),
            recovered: BTreeMap::new(),
            unfenced: 0,
            clock_set_at: None,
            settled_late: 0,
            confirmed: BTreeSet::new(),
            settled_by: BTreeMap::new(),
            newest: BTreeMap::new(),
            serves: 0,
            given_back: 0,
            trace: VecDeque::new(),
        };
        // The bucket is older than any lease.
        world.now = 100_000;
        world.calm_at = world.now;
        world.schedule(world.now, Event::Tick);
        world.schedule(world.now, Event::Publish);
        world
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.number += 1;
        self.events.push(Reverse(Scheduled { at, number: self.number, event }));
    }

    pub fn note(&mut self, text: impl Into<String>) {
        if self.trace.len() > 2_000 {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{:>8} {}", self.now, text.into()));
    }

    fn assert(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            let trace: Vec<_> = self.trace.iter().map(String::as_str).collect();
            panic!("{}\n{}", what(), trace.join("\n"));
        }
    }

    /// Something goes wrong until then.
    fn disturb(&mut self, until: u64, what: impl Into<String>) {
        let what = what.into();
        self.note(format!("!! {what} until {until}"));
        self.calm_at = self.calm_at.max(until);
    }

    pub fn run_until(&mut self, time: u64) {
        while let Some(Reverse(next)) = self.events.peek()
            && next.at <= time
        {
            let Some(Reverse(Scheduled { at, event, .. })) = self.events.pop() else { break };
            self.now = at;
            self.happen(event);
        }
        self.now = time;
    }

    /// Until what went wrong is over, and for as long as a partition may stand still after it.
    pub fn run_calm(&mut self) {
        // A request may still be under way.
        self.calm_at = self.calm_at.max(self.now + 45_000);
        self.run_until(self.calm_at + STALLED_BOUND + 5_000);
    }

    pub fn run_for(&mut self, duration: u64) {
        self.run_until(self.now + duration);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick => self.tick(),
            Event::Publish => self.publish(),
            Event::ToServer(from, request) => self.serve(from, request),
            Event::ToNode(to, message) => self.arrive(to, message),
            Event::Resume(index, incarnation) => self.resume(index, incarnation),
            Event::ResumeOperator(index, incarnation) => self.resume_operator(index, incarnation),
            Event::Start(index) => self.start(index),
            Event::Terminate(index, incarnation) => self.terminate(index, incarnation),
            Event::Kill(index, incarnation) => self.kill_incarnation(index, incarnation),
            Event::NatsUp => self.nats_is_up(),
            Event::EndCut(index) => self.end_cut(index),
            Event::OtherLeader(partition) => self.change_leader(partition, 0),
        }
    }

    fn tick(&mut self) {
        self.schedule(self.now + TICK, Event::Tick);
        for index in 0..self.processes.len() {
            self.step(index);
        }
        for index in 0..self.operators.len() {
            self.step_operator(index);
        }
        self.divide();
        for partition in 0..u32::try_from(self.consumers.len()).unwrap() {
            self.deliver(partition);
        }
        if self.now % REWATCH < TICK {
            for node in self.nodes() {
                self.watch(node);
            }
        }
        self.check();
    }

    fn nodes(&self) -> Vec<Node> {
        let processes =
            self.processes.iter().flatten().map(|process| Node::Process(process.index, process.incarnation));
        let operators = self.operators.iter().enumerate();
        let operators = operators.filter_map(|(index, operator)| {
            operator.as_ref().map(|operator| Node::Operator(index, operator.incarnation))
        });
        processes.chain(operators).collect()
    }

    fn is_there(&self, node: Node) -> bool {
        match node {
            Node::Process(index, incarnation) => {
                self.processes[index].as_ref().is_some_and(|process| process.incarnation == incarnation)
            }
            Node::Operator(index, incarnation) => {
                self.operators[index].as_ref().is_some_and(|operator| operator.incarnation == incarnation)
            }
        }
    }

    fn is_reachable(&self, node: Node) -> bool {
        self.nats_up && !matches!(node, Node::Process(index, _) if self.cut.contains(&index))
    }
}

/// Of an operator.
fn clocks(now: u64, rate: u64) -> Clocks {
    let boot = Duration::from_millis(now * rate / 1_000);
    Clocks { boot, wall: Duration::from_millis(now + 1_700_000_000_000) }
}

fn value_of(value: Option<&(u64, String)>) -> Value<'_> {
    value.map_or(Value::Absent(0), |(revision, value)| Value::Bytes(*revision, value.as_bytes()))
}
