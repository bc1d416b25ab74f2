//! Takes part for all handlers of a service: brings the participant what the bucket says and how far partitions are, and carries out what it
//! says. After a lost membership it joins again under another id.

use std::{collections::BTreeSet, str::FromStr, sync::Arc, time::Duration};

use jetwright_nats::{Bucket, Connection, Watch, WatchEvent};
use jetwright_partitions::{
    actions::{Action, Value},
    keys::{BUCKET, Key, KeyError, MemberId, PartitionId},
    owner::OwnerState,
    participant::Participant,
};
use jetwright_process::health::{Gate, Health};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

use super::{
    PartitionedHandler,
    clock::clocks,
    held::{HeldPartitions, LoopEnd},
    requests::Requests,
    tenure::{Instruction, SharedLease},
};

/// Maximum time between two looks at what is due.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How often the figures of partitions are brought up to date: twice in the time between two renewals.
const REPORT_INTERVAL: Duration = Duration::from_millis(2_500);
/// How long a process may be no member before it is not ready.
const UNREADY_AFTER: Duration = Duration::from_secs(10);
/// The states of partitions that are counted.
const STATES: [(OwnerState, &str); 5] = [
    (OwnerState::Waiting, "waiting"),
    (OwnerState::Recovering, "recovering"),
    (OwnerState::Serving, "serving"),
    (OwnerState::Suspended, "suspended"),
    (OwnerState::Draining, "draining"),
];
/// What is missing before the first answer.
const NOT_JOINED: &str = "waiting to join those that share the partitions";
/// What is missing, and who makes it.
const NO_BUCKET: &str = "the key-value bucket jetwright does not exist: the operator makes it with the first EventConsumer of the \
                         connection that has ordering PerKey";

/// Who this process is.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// Namespace of the pod, or `default` outside Kubernetes.
    pub(crate) namespace: String,
    /// Name and UID of the pod, if there is one.
    pub(crate) pod: Option<(String, String)>,
}

impl Member {
    /// An id that was never used.
    fn new_id(&self) -> Result<MemberId, KeyError> {
        MemberId::new(&self.namespace, &format!("{:032x}", rand::random::<u128>()))
    }
}

/// The part of this process in the sharing of partitions.
pub(crate) struct Sharing {
    member: Member,
    bucket: Bucket,
    gate: Gate,
    held: HeldPartitions,
    metrics: Metrics,
    /// When it joined first, by the wall clock.
    joined: Duration,
}

/// Why a process cannot take part.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SharingError {
    /// It has no id.
    #[error("JETWRIGHT_POD_NAMESPACE must be the name of a namespace")]
    Namespace(#[from] KeyError),
    /// Loops ended in the middle of something.
    #[error("partitions were not given up, since something of them may still run: {}; others take them when this process is gone", list(.0))]
    Unfinished(BTreeSet<PartitionId>),
}

fn list(partitions: &BTreeSet<PartitionId>) -> String {
    let names: Vec<_> = partitions.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// One membership.
struct Membership {
    participant: Participant,
    requests: Requests,
    watch: Watch,
    lease: Arc<SharedLease>,
    /// Why the bucket says nothing.
    problem: Option<String>,
    reported: Instant,
}

impl Sharing {
    pub(crate) fn new(
        member: Member,
        connection: &Connection,
        handlers: Vec<PartitionedHandler>,
        health: &Health,
        metrics: &Metrics,
    ) -> Self {
        Self {
            member,
            bucket: Bucket::new(connection, BUCKET),
            gate: health.gate("partitions", NOT_JOINED),
            held: HeldPartitions::new(handlers, health.clone(), metrics.clone()),
            metrics: metrics.clone(),
            joined: clocks().wall,
        }
    }

    /// Handles partitions until `stop`, then finishes what has begun and gives them up, each by itself. A loop that ends in the middle of
    /// something cancels `stop`: only a restart repairs that.
    ///
    /// # Errors
    ///
    /// The namespace is none, or something may still run of partitions, which were not given up.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), SharingError> {
        loop {
            let mut membership = self.join()?;
            self.take_part(&mut membership, &stop).await;
            if stop.is_cancelled() {
                break;
            }
            self.metrics.membership_lost();
            tracing::warn!("lost the membership; joining again");
        }
        while !self.held.is_empty() {
            self.held.ended().await;
        }
        match self.held.unfinished() {
            unfinished if unfinished.is_empty() => Ok(()),
            unfinished => Err(SharingError::Unfinished(unfinished.clone())),
        }
    }

    fn join(&self) -> Result<Membership, KeyError> {
        let handlers = self.held.handlers();
        let consumers = handlers.iter().map(|handler| (handler.consumer.clone(), handler.count));
        let id = self.member.new_id()?;
        tracing::info!(member = %id, "joining those that share the partitions");
        let mut participant = Participant::new(id, self.member.pod.clone(), consumers, clocks());
        participant.joined_first(self.joined);
        let mut filters = ["operator", "operator.*", "member.>"].map(str::to_owned).to_vec();
        for PartitionedHandler { consumer, .. } in handlers {
            filters.push(Key::Map(consumer.clone()).to_string());
            filters.push(format!("held.{consumer}.*"));
        }
        Ok(Membership {
            participant,
            requests: Requests::new(self.bucket.clone()),
            watch: self.bucket.watch(&filters),
            lease: Arc::default(),
            problem: None,
            reported: Instant::now(),
        })
    }

    /// Takes part until the membership is over, or nothing is left to give up.
    async fn take_part(&mut self, membership: &mut Membership, stop: &CancellationToken) {
        let mut tick = interval(POLL_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_leaving = false;
        let news = self.held.news();
        loop {
            tokio::select! {
                event = membership.watch.next() => membership.told(event),
                response = membership.requests.next() => {
                    membership.problem = response.problem().map(ToOwned::to_owned);
                    response.tell(&mut membership.participant, clocks());
                }
                ended = self.held.ended() => match ended {
                    LoopEnd::Drained(partition) => membership.participant.drained(&partition),
                    LoopEnd::Unawaited => {}
                    LoopEnd::Unfinished => stop.cancel(),
                },
                () = news.notified() => {
                    for (partition, tenure) in self.held.tenures() {
                        if tenure.take_recovered() {
                            membership.participant.recovered(partition);
                        }
                    }
                }
                _ = tick.tick() => self.report(membership),
                () = stop.cancelled(), if !is_leaving => {
                    is_leaving = true;
                    membership.participant.leave();
                }
            }
            if self.act(membership) || (is_leaving && self.is_all_given_up(membership)) {
                return;
            }
            self.say_what_is_missing(membership);
        }
    }

    /// Whether all that is held still is what cannot be given up. Without any the membership ends by itself.
    fn is_all_given_up(&self, membership: &Membership) -> bool {
        let unfinished = self.held.unfinished();
        !unfinished.is_empty()
            && self.held.is_empty()
            && membership.participant.held().all(|partition| unfinished.contains(&partition))
    }

    /// Carries out what is to be done; returns whether the membership is over.
    fn act(&mut self, membership: &mut Membership) -> bool {
        let actions = membership.participant.poll(clocks());
        membership.lease.set(*membership.participant.lease());
        for action in actions {
            match action {
                Action::Write { key, value, expected } => membership.requests.write(key, value, expected),
                Action::Put { key, value } => membership.requests.put(key, value),
                Action::Read(key) => membership.requests.read(key),
                Action::ReadBucket => membership.requests.read_age(),
                Action::Serve { partition, epoch } => self.held.serve(partition, epoch, &membership.lease),
                Action::Suspend(partition) => self.held.suspend(&partition),
                Action::Drain { partition, deadline } => {
                    let left = |deadline| Duration::from_secs(deadline).saturating_sub(clocks().wall);
                    let until = deadline.and_then(|deadline| Instant::now().checked_add(left(deadline)));
                    if self.held.drain(&partition, until) {
                        membership.participant.drained(&partition);
                    }
                }
                Action::Stop(partition) => self.held.abandon(&partition),
                Action::Lost => return true,
            }
        }
        false
    }

    fn report(&self, membership: &mut Membership) {
        if membership.reported.elapsed() < REPORT_INTERVAL {
            return;
        }
        membership.reported = Instant::now();
        for (partition, tenure) in self.held.tenures() {
            if tenure.instruction() == Instruction::Abandon {
                continue;
            }
            membership.participant.report(partition, tenure.take_figures());
        }
        self.count(membership);
    }

    /// Counts the partitions by their states.
    fn count(&self, membership: &Membership) {
        let states: Vec<_> = membership.participant.states(clocks()).collect();
        for PartitionedHandler { name, consumer, .. } in self.held.handlers() {
            for (state, word) in STATES {
                let is_counted =
                    |(id, own, _): &&(PartitionId, OwnerState, _)| id.consumer == *consumer && *own == state;
                self.metrics.held_partitions(name, word, states.iter().filter(is_counted).count());
            }
        }
    }

    /// A process without a partition is ready: it waits until it is given one.
    fn say_what_is_missing(&self, membership: &Membership) {
        if membership.participant.is_joined() {
            self.gate.open();
        } else {
            self.gate.close_after(UNREADY_AFTER, membership.problem.as_deref().unwrap_or(NOT_JOINED));
        }
    }
}

impl Membership {
    /// The watch tells something.
    fn told(&mut self, event: WatchEvent) {
        let (key, revision, value) = match event {
            WatchEvent::Value { key, revision, value } => (key, revision, Some(value)),
            WatchEvent::Deleted { key, revision } => (key, revision, None),
            WatchEvent::Synced => return,
            WatchEvent::Missing => {
                self.problem = Some(NO_BUCKET.to_owned());
                return;
            }
            WatchEvent::Lost(why) => {
                tracing::debug!(why, "watching the bucket again");
                return;
            }
        };
        let result = Key::from_str(&key).map_err(|error| error.to_string()).and_then(|key| {
            let value = value.as_ref().map_or(Value::Absent(revision), |value| Value::Bytes(revision, value));
            self.participant.observed(&key, value, clocks()).map_err(|error| error.to_string())
        });
        if let Err(error) = result {
            tracing::warn!(error, "ignored a value of the bucket");
        }
    }
}
