//! A program that takes part: it does what the protocol says, and handles nothing.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_nats::jetstream::kv;
use jetwright_nats::{Bucket, Connection, ConnectionConfig, Found, WatchEvent, Written, parse_addresses};
use jetwright_partitions::{
    actions::{Action, Value},
    keys::{ConsumerId, Key, MemberId},
    lease::Clocks,
    owner::OwnerState,
    participant::Participant,
    write::Answer,
};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::world::World;

/// A member of the consumer `fulfilment` of the stream `orders`, which has four partitions.
pub struct Member {
    /// `<namespace>.<process id>`.
    pub id: String,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Shared {
    held: parking_lot::Mutex<BTreeSet<u32>>,
    leaves: AtomicBool,
}

impl Member {
    /// Joins; `pod` is the name and UID of its pod.
    pub async fn join(world: &World, namespace: &str, pod: Option<(&str, &str)>) -> Self {
        let addresses: Result<Vec<_>, _> = parse_addresses(world.nats.url()).collect();
        let connection = Connection::open(ConnectionConfig {
            name: "member".into(),
            servers: addresses.unwrap(),
            credentials: None,
            credentials_setting: "",
            domain: None,
        })
        .await
        .unwrap();
        let id = MemberId::new(namespace, &uuid::Uuid::new_v4().simple().to_string()).unwrap();
        let shared = Arc::new(Shared::default());
        let pod = pod.map(|(name, uid)| (name.to_owned(), uid.to_owned()));
        let task = tokio::spawn(run(connection, id.clone(), pod, shared.clone()));
        let member = Self { id: id.to_string(), shared, _task: AbortOnDropHandle::new(task) };
        let store: kv::Store = super::bucket(world).await;
        let key = format!("member.{id}");
        super::await_value("the member", async || store.get(&key).await.ok().flatten()).await;
        member
    }

    /// The partitions that it has taken.
    pub fn held(&self) -> BTreeSet<u32> {
        self.shared.held.lock().clone()
    }

    /// Finishes what it has begun, and takes nothing more.
    pub fn leave(&self) {
        self.shared.leaves.store(true, Ordering::Relaxed);
    }
}

async fn run(connection: Connection, id: MemberId, pod: Option<(String, String)>, shared: Arc<Shared>) {
    let bucket = Bucket::new(&connection, "jetwright");
    let consumer = ConsumerId { stream: "orders".into(), consumer: "fulfilment".into() };
    let begun = Instant::now();
    let clocks =
        || Clocks { boot: begun.elapsed(), wall: SystemTime::now().duration_since(UNIX_EPOCH).unwrap() };
    let mut participant = Participant::new(id, pod, [(consumer, 4)], clocks());
    let mut watch = bucket.watch(&["operator", "member.>", "map.>", "held.>"].map(str::to_owned));
    let mut actions = VecDeque::new();
    loop {
        let event = tokio::time::timeout(Duration::from_millis(50), watch.next()).await;
        match event {
            Ok(WatchEvent::Value { key, revision, value }) => {
                observe(&mut participant, &key, Value::Bytes(revision, &value), clocks());
            }
            Ok(WatchEvent::Deleted { key, revision }) => {
                observe(&mut participant, &key, Value::Absent(revision), clocks());
            }
            _ => {}
        }
        if shared.leaves.load(Ordering::Relaxed) {
            participant.leave();
        }
        actions.extend(participant.poll(clocks()));
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Write { key, value, expected } => {
                    let written = bucket.write(&key.to_string(), value, expected).await;
                    participant.answered(&key, answer(&written), clocks());
                }
                Action::Put { .. } => unreachable!("only operators do"),
                Action::Read(key) => {
                    let found = bucket.read(&key.to_string()).await;
                    let value = match &found {
                        Found::Value { revision, value } => Value::Bytes(*revision, value),
                        Found::Deleted { revision } => Value::Absent(*revision),
                        Found::Absent => Value::Absent(0),
                        Found::Unknown(_) => Value::Unavailable,
                    };
                    let _ = participant.read(&key, value, clocks());
                }
                Action::ReadBucket => {
                    participant.bucket_age(bucket.age().await.ok(), clocks());
                }
                Action::Serve { partition, .. } => participant.recovered(&partition),
                Action::Drain { partition, .. } => participant.drained(&partition),
                Action::Suspend(_) | Action::Stop(_) => {}
                Action::Lost => return,
            }
        }
        let states = participant.states(clocks());
        let held = states.filter(|(_, state, _)| !matches!(state, OwnerState::Idle | OwnerState::Waiting));
        *shared.held.lock() = held.map(|(partition, ..)| partition.partition).collect();
    }
}

fn observe(participant: &mut Participant, key: &str, value: Value<'_>, now: Clocks) {
    if let Ok(key) = key.parse::<Key>() {
        let _ = participant.observed(&key, value, now);
    }
}

fn answer(written: &Written) -> Answer {
    match written {
        Written::Stored(revision) => Answer::Stored(*revision),
        Written::Refused(_) | Written::Unknown(_) => Answer::Unsure,
    }
}
