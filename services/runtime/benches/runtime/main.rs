//! Figures of the runtime beside a bare async-nats loop in the same run, against a real nats-server on this machine: consuming and
//! publishing with tracing off, sampled at 1 % and at 100 %, with exemplars alone, ordered lanes, requests, latency, and memory. Run by
//! `make bench-runtime`.
//!
//! Each side is a process of its own, and the two take turns. Both see the same bytes: 256 bytes of protobuf, with the headers that
//! the runtime's publisher writes. The bare side decodes the payload and counts it, as the handler does; it has no deadline, no
//! retries, no dead letters, no metrics and no traces. Requests have no headers; ours go over the request mux, and the bare ones as
//! async-nats sends them. Words on the command line choose measurements whose names have all of them.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a figure that cannot be had ends the program"
)]

mod bare;
mod count;
mod event;
mod job;
mod ours;
mod party;
mod requests;
mod setting;
mod tell;
mod world;

use std::env;

use job::{Acknowledge, Job, Kind};
use setting::Tracing;
use tell::{Turns, grouped, rate, tell_latency, tell_memory};
use world::World;

/// Events of one turn.
const EVENTS: u64 = 200_000;
/// Turns of each side for one figure, which is their median.
const TURNS: usize = 5;
/// Events that one side may hold at once, unacknowledged or unconfirmed: maxAckPending, the handler's concurrency, publishes in
/// flight.
const IN_FLIGHT: u32 = 1024;
/// Keys of ordered lanes.
const KEYS: u64 = 1000;
/// Seconds for which latency is measured on each side.
const STEADY: u64 = 10;
/// More events a second than anything here can do.
const FASTEST: u64 = 1_000_000;
/// Events that fail at every attempt, and are published at once while latency is measured.
const BURST: u64 = 5000;
/// Events that wait when memory is measured.
const WAITING: u64 = 1_000_000;

/// Names, callers, and requests of one turn.
const REQUESTS: [(&str, u32, u64); 2] =
    [("requests, mux, 1 caller", 1, 20_000), ("requests, mux, 256 callers", 256, EVENTS)];

const TRACINGS: [Tracing; 3] = [Tracing::Off, Tracing::OnePercent, Tracing::Everything];
const MEASUREMENTS: [(&str, Kind); 4] = [
    ("consume, acks sent", Kind::Consume { acknowledge: Acknowledge::Sent, ordered: false }),
    ("consume, acks confirmed", Kind::Consume { acknowledge: Acknowledge::Confirmed, ordered: false }),
    ("consume in ordered lanes", Kind::Consume { acknowledge: Acknowledge::Confirmed, ordered: true }),
    ("publish", Kind::Publish),
];

/// What is measured with which tracing: everything with each, and the metrics with exemplars once.
fn measurements() -> impl Iterator<Item = (String, Kind, Tracing)> {
    let all = TRACINGS.into_iter().flat_map(|tracing| MEASUREMENTS.map(|(name, kind)| (name, kind, tracing)));
    let (name, kind) = MEASUREMENTS[1];
    all.chain([(name, kind, Tracing::Exemplars)])
        .map(|(name, kind, tracing)| (format!("{name}, {tracing}"), kind, tracing))
}

#[tokio::main]
async fn main() {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--side", side] => party::run(side).await,
        // `cargo test --all-targets` runs it too, which is no time to measure.
        words if words.contains(&"--bench") => measure(words).await,
        _ => {}
    }
}

async fn measure(words: &[&str]) {
    let wanted = |name: &str| words.iter().all(|word| *word == "--bench" || name.contains(word));
    let names: Vec<_> = measurements()
        .map(|(name, ..)| name)
        .chain(REQUESTS.map(|(name, ..)| name.to_owned()))
        .chain(["latency", "memory"].map(str::to_owned))
        .collect();
    if !names.iter().any(|name| wanted(name)) {
        eprintln!("no measurement has all of these words in its name; there are\n{}", names.join("\n"));
        std::process::exit(2);
    }
    println!("{EVENTS} events a turn, {TURNS} turns of each side, {IN_FLIGHT} events in flight; medians");
    let mut world = World::start().await;
    for (name, kind, tracing) in measurements() {
        if wanted(&name) {
            compare(&mut world, &name, kind, tracing).await;
        }
    }
    for (name, in_flight, events) in REQUESTS {
        if wanted(name) {
            let (tracing, stream) = (Tracing::Off, "requested".to_owned());
            take_turns(&mut world, name, Job { kind: Kind::Request, tracing, stream, events, in_flight })
                .await;
        }
    }
    if wanted("latency") {
        latency(&mut world).await;
    }
    if wanted("memory") {
        memory(&mut world).await;
    }
}

/// Prepares a job, and lets both sides do it.
async fn compare(world: &mut World, name: &str, kind: Kind, tracing: Tracing) {
    let job =
        Job { kind, tracing, stream: tracing.stream().to_owned(), events: EVENTS, in_flight: IN_FLIGHT };
    let job = match kind {
        Kind::Publish => Job { stream: "published".to_owned(), ..job },
        _ => job,
    };
    if !job.is_publishing() {
        world.fill(&job).await;
    }
    take_turns(world, name, job).await;
}

/// Lets both sides do a job in turn, and says how fast they were.
async fn take_turns(world: &mut World, name: &str, job: Job) {
    let (mut ours, mut bare) = (world.ours(&job), world.bare());
    let mut turns = Turns::default();
    for turn in 1..=TURNS {
        eprintln!("{name}: turn {turn}");
        turns.ours.push(world.turn(&mut ours, &job).await);
        turns.bare.push(world.turn(&mut bare, &job).await);
    }
    turns.tell(name, &job);
}

/// How long an event takes from its publisher to its handler, at half of what can be published and handled at once.
async fn latency(world: &mut World) {
    let rate = whole_rate(world).await / 2;
    let job = Job {
        kind: Kind::Both { rate, burst: 0 },
        tracing: Tracing::OnePercent,
        stream: "steady".to_owned(),
        events: rate * STEADY,
        in_flight: IN_FLIGHT,
    };
    let ours = world.turn(&mut world.ours(&job), &job).await;
    let bare = world.turn(&mut world.bare(), &job).await;
    let name = format!("latency at {rate}/s published and handled");
    tell_latency(&name, &ours, "bare", &bare);
    // What waits for its next attempt is not acknowledged either.
    let job =
        Job { kind: Kind::Both { rate, burst: BURST }, in_flight: 2 * u32::try_from(BURST).unwrap(), ..job };
    let beside = world.turn(&mut world.ours(&job), &job).await;
    let name = format!("{name}, beside {BURST} at once that fail at every attempt");
    tell_latency(&name, &beside, "without them", &ours);
}

/// How many events a second the runtime publishes and handles when it does both as fast as it can.
async fn whole_rate(world: &World) -> u64 {
    let job = Job {
        kind: Kind::Both { rate: FASTEST, burst: 0 },
        tracing: Tracing::OnePercent,
        stream: "fast".to_owned(),
        events: EVENTS,
        in_flight: IN_FLIGHT,
    };
    let rate = rate(&job, &world.turn(&mut world.ours(&job), &job).await);
    println!("published and handled at once, as fast as it goes: {}/s", grouped(rate));
    // Whole, and far below 2^53.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rate = rate as u64;
    rate
}

/// How much memory it takes to consume from a stream in which much more waits than can be held.
async fn memory(world: &mut World) {
    let (_, kind) = MEASUREMENTS[1];
    let (tracing, stream) = (Tracing::OnePercent, "many".to_owned());
    let job = Job { kind, tracing, stream, events: WAITING, in_flight: IN_FLIGHT };
    world.fill(&job).await;
    let ours = world.turn(&mut world.ours(&job), &job).await;
    let bare = world.turn(&mut world.bare(), &job).await;
    tell_memory(&format!("memory while {WAITING} waiting events are consumed"), &ours, &bare);
}
