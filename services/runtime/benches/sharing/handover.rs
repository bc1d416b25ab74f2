//! How long a hand-over takes, from the new map to the first event that the next owner begins.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use jetwright_nats::WatchEvent;
use jetwright_partitions::{
    coordinator::{Declared, PodRole, Pods},
    keys::Key,
    records::{MapRecord, Record},
};
use jetwright_process::health::Health;
use jetwright_runtime::{Handler, HandlerError, HandlerOptions, Metadata, Pod, Service};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    sharing::{Operator, consumer_id, publish_values, sharing},
    support::{Bench, Number},
};

const PARTITIONS: u32 = 16;
/// Times that one of the two has to give up all it has, and gets half of all again.
const ROUNDS: usize = 12;
const LONG: Duration = Duration::from_mins(1);

/// When an event of a partition began first under each epoch.
type Begun = Arc<Mutex<HashMap<(u32, u64), Instant>>>;

struct Noting(Begun);

impl Handler for Noting {
    type Event = Number;

    async fn handle(&self, _: Number, metadata: &Metadata) -> Result<(), HandlerError> {
        let partition = metadata.partition.unwrap_or_default();
        self.0.lock().entry((partition, metadata.source.epoch)).or_insert_with(Instant::now);
        Ok(())
    }
}

pub async fn measure() {
    let bench = sharing(PARTITIONS).await;
    let operator = Operator::start(bench.nats.url(), PARTITIONS).await;
    let begun = Begun::default();
    let mut running = JoinSet::new();
    for uid in ["a", "b"] {
        running.spawn(run(&bench, uid, Arc::clone(&begun)).await);
    }
    declare(&operator, PodRole::Current);
    operator.await_shared(PARTITIONS, 2).await;
    let jetstream = bench.jetstream.clone();
    running.spawn(async move {
        for round in 0.. {
            publish_values(&jetstream, round * 80..(round + 1) * 80).await;
            sleep(Duration::from_millis(20)).await;
        }
    });
    let mut watch = operator.bucket.watch(&[Key::Map(consumer_id()).to_string()]);
    let (mut owners, mut times) = (BTreeMap::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (map, told) = timeout(LONG, next_map(&mut watch)).await.unwrap();
        let to: BTreeMap<_, _> =
            map.partitions.iter().map(|(number, entry)| (*number, entry.to.clone())).collect();
        let moved: Vec<_> =
            to.iter().filter(|(number, to)| owners.get(*number).is_some_and(|owner| owner != *to)).collect();
        for (number, _) in &moved {
            let first = loop {
                let after =
                    |((of, _), at): (&(u32, u64), &Instant)| (of == *number && *at > told).then_some(*at);
                let epochs: Vec<_> = {
                    let begun = begun.lock();
                    let newest = begun.keys().filter(|(of, _)| of == *number).map(|(_, epoch)| *epoch).max();
                    begun.iter().filter(|((_, epoch), _)| Some(*epoch) == newest).filter_map(after).collect()
                };
                match epochs.first() {
                    Some(first) => break *first,
                    None => sleep(Duration::from_millis(5)).await,
                }
            };
            times.push(first.duration_since(told));
        }
        owners = to;
        sleep(Duration::from_millis(500)).await;
        declare(&operator, if round % 2 == 0 { PodRole::Retiring } else { PodRole::Current });
    }
    // What is measured next has the machine for itself.
    running.shutdown().await;
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!(
        "hand-over, {} partitions under 4,000/s: median {:?}, 99th {:?}, longest {:?}",
        times.len(),
        at(50),
        at(99),
        at(100)
    );
}

/// The map that is written next, and when it was told.
async fn next_map(watch: &mut jetwright_nats::Watch) -> (MapRecord, Instant) {
    loop {
        if let WatchEvent::Value { value, .. } = watch.next().await {
            return (MapRecord::read(&Key::Map(consumer_id()), &value).unwrap(), Instant::now());
        }
    }
}

fn declare(operator: &Operator, of_first: PodRole) {
    let roles = [("a".to_owned(), of_first), ("b".to_owned(), PodRole::Current)].into();
    let pods = Some(Pods { namespace: "shop".to_owned(), roles });
    let declared = Declared { count: PARTITIONS, drain: LONG, pods };
    operator.tell(|coordinator| coordinator.declare(consumer_id(), declared));
}

async fn run(bench: &Bench, uid: &str, begun: Begun) -> impl Future<Output = ()> + use<> {
    let mut environment = bench.environment();
    let (namespace, uid) = ("shop".to_owned(), uid.to_owned());
    environment.pod = Some(Pod { namespace, name: format!("pod-{uid}"), uid });
    let mut service = Service::connect(environment, &Health::new(), &mut Registry::default()).await.unwrap();
    service.handle_with("numbers", Noting(begun), HandlerOptions::default()).unwrap();
    async move { service.run(CancellationToken::new()).await.unwrap() }
}
