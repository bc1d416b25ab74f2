//! A process that takes part: the real state machine, and around it as little of a service as keeps order: one lane per key, in-progress
//! acknowledgements, acknowledgements until they are confirmed, and recovery.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use jetwright_partitions::{
    actions::Action,
    keys::{ConsumerId, MemberId, PartitionId},
    lease::Clocks,
    participant::Participant,
    recovery::{Arrival, ConsumerState, Leadership, Progress, Recovery, RecoveryCause, Response},
};

use crate::jetstream::{ACK_WAIT, Delivery, MAX_ACK_PENDING};

const ROOM: usize = 12;
const ACK_REPEAT: u64 = 2_000;

/// What a process does to the world.
#[derive(Debug)]
pub enum Effect {
    /// A request of the state machine to the bucket.
    Bucket(Action),
    Pull {
        partition: u32,
        expiry: u64,
        batch: usize,
    },
    Ack {
        partition: u32,
        sequence: u64,
    },
    Nak {
        partition: u32,
        sequence: u64,
    },
    InProgress {
        partition: u32,
        sequence: u64,
    },
    Info {
        partition: u32,
        asked: u64,
    },
    /// Ends the pull request, and asks whether everything before has arrived.
    Unsubscribe {
        partition: u32,
    },
    /// A handler begins.
    Begin {
        partition: u32,
        key: u32,
        sequence: u64,
        loop_id: u64,
    },
    /// A handler ended or was abandoned.
    End {
        key: u32,
        loop_id: u64,
    },
    /// It serves with this epoch.
    Served {
        partition: u32,
        epoch: u64,
    },
    /// It stopped by itself.
    Exit,
    Note(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    Done { sent: u64 },
}

#[derive(Debug)]
struct Held {
    key: u32,
    state: State,
    progress: u64,
    arrived: u64,
}

/// The events of one partition that are here.
#[derive(Debug)]
pub struct Loop {
    id: u64,
    recovery: Recovery,
    held: BTreeMap<u64, Held>,
    settled: BTreeSet<u64>,
    is_draining: bool,
    pull: Option<(u64, usize)>,
}

#[derive(Debug)]
pub struct Process {
    pub index: usize,
    pub incarnation: u64,
    pub uid: String,
    pub template: u32,
    pub participant: Participant,
    pub loops: BTreeMap<u32, Loop>,
    pub frozen_until: Option<u64>,
    /// It asks for no events before, as after a failure.
    pub asks_nothing_until: u64,
    pub is_leaving: bool,
    /// Its clock runs so many thousandths of the true time, from this offset.
    pub rate: u64,
    pub wall_offset: u64,
    pub effects: Vec<Effect>,
    joins: u64,
    next_loop: u64,
    consumer: ConsumerId,
    partitions: u32,
    base: Instant,
}

impl Process {
    pub fn new(
        (index, incarnation, template): (usize, u64, u32),
        (consumer, partitions): (ConsumerId, u32),
        rate: u64,
        now: u64,
        base: Instant,
    ) -> Self {
        // A container that ended starts again in the same pod.
        let uid = format!("uid-{index}");
        let mut process = Self {
            participant: Participant::new(
                MemberId::new("shop", "none").unwrap(),
                None,
                [],
                Clocks::default(),
            ),
            index,
            incarnation,
            uid,
            template,
            loops: BTreeMap::new(),
            frozen_until: None,
            asks_nothing_until: 0,
            is_leaving: false,
            rate,
            wall_offset: 1_700_000_000_000,
            effects: Vec::new(),
            joins: 0,
            next_loop: 0,
            consumer,
            partitions,
            base,
        };
        process.join(now);
        process
    }

    fn join(&mut self, now: u64) {
        self.joins += 1;
        let id =
            MemberId::new("shop", &format!("p{}-{}-{}", self.index, self.incarnation, self.joins)).unwrap();
        let pod = (format!("pod-{}", self.index), self.uid.clone());
        let consumers = [(self.consumer.clone(), self.partitions)];
        self.participant = Participant::new(id, Some(pod), consumers, self.clocks(now));
    }

    pub fn clocks(&self, now: u64) -> Clocks {
        let boot = Duration::from_millis(now * self.rate / 1_000 + 5_000_000);
        Clocks { boot, wall: Duration::from_millis(now + self.wall_offset) }
    }

    pub fn lease_holds(&self, now: u64) -> bool {
        self.participant.lease().holds(self.clocks(now))
    }

    /// Whether it may begin handlers of a partition.
    pub fn serves(&self, partition: u32) -> bool {
        self.loops.contains_key(&partition)
    }

    pub fn is_recovered(&self, partition: u32) -> bool {
        self.loops.get(&partition).is_some_and(|events| !events.recovery.is_active() && !events.is_draining)
    }

    fn instant(&self, now: u64) -> Instant {
        self.base + Duration::from_millis(now)
    }

    fn id_of(&self, partition: u32) -> PartitionId {
        PartitionId { consumer: self.consumer.clone(), partition }
    }

    /// Carries out what the state machine wants, and then does what is due.
    pub fn step(&mut self, now: u64) {
        for action in self.participant.poll(self.clocks(now)) {
            match action {
                Action::Serve { partition, epoch } => self.serve(partition.partition, epoch, now),
                Action::Suspend(partition) | Action::Stop(partition) => self.abandon(&partition),
                Action::Drain { partition, .. } => self.drain(&partition),
                Action::Lost => self.lost(now),
                action => self.effects.push(Effect::Bucket(action)),
            }
        }
        if !self.lease_holds(now) {
            return;
        }
        for partition in self.loops.keys().copied().collect::<Vec<_>>() {
            self.work(partition, now);
        }
    }

    fn lost(&mut self, now: u64) {
        for partition in self.loops.keys().copied().collect::<Vec<_>>() {
            self.abandon(&self.id_of(partition));
        }
        self.effects.push(Effect::Note(format!("{} lost its membership", self.participant.id())));
        if self.is_leaving {
            self.effects.push(Effect::Exit);
        } else {
            self.join(now);
        }
    }

    fn serve(&mut self, partition: u32, epoch: u64, now: u64) {
        self.next_loop += 1;
        let events = Loop {
            id: self.next_loop + 1_000 * self.incarnation + 1_000_000 * self.index as u64,
            recovery: Recovery::new(self.instant(now)),
            held: BTreeMap::new(),
            settled: BTreeSet::new(),
            is_draining: false,
            pull: None,
        };
        self.effects
            .push(Effect::Note(format!("{} serves {partition}, epoch {epoch}", self.participant.id())));
        self.effects.push(Effect::Served { partition, epoch });
        self.loops.insert(partition, events);
    }

    fn drain(&mut self, partition: &PartitionId) {
        self.effects.push(Effect::Note(format!("{} drains {}", self.participant.id(), partition.partition)));
        match self.loops.get_mut(&partition.partition) {
            Some(events) => {
                events.is_draining = true;
                self.effects.push(Effect::Unsubscribe { partition: partition.partition });
            }
            None => self.participant.drained(partition),
        }
    }

    /// Ends what runs, and forgets the rest.
    fn abandon(&mut self, partition: &PartitionId) {
        if let Some(events) = self.loops.remove(&partition.partition) {
            self.effects.push(Effect::Note(format!(
                "{} abandons {}",
                self.participant.id(),
                partition.partition
            )));
            self.effects.push(Effect::Unsubscribe { partition: partition.partition });
            let running = events.held.values().filter(|held| held.state == State::Running);
            self.effects.extend(running.map(|held| Effect::End { key: held.key, loop_id: events.id }));
        }
        self.participant.drained(partition);
    }

    /// Its system ended it.
    pub fn kill(&mut self) {
        for (_, events) in std::mem::take(&mut self.loops) {
            let running = events.held.values().filter(|held| held.state == State::Running);
            self.effects.extend(running.map(|held| Effect::End { key: held.key, loop_id: events.id }));
        }
    }

    pub fn delivered(&mut self, partition: u32, delivery: Delivery, key: u32, now: u64) {
        let instant = self.instant(now);
        let Delivery { consumer_sequence, sequence, is_again } = delivery;
        let Some(events) = self.loops.get_mut(&partition) else { return };
        if let Some((_, left)) = &mut events.pull {
            *left = left.saturating_sub(1);
        }
        let is_here = events.held.contains_key(&sequence) || events.settled.contains(&sequence);
        let arrival = match (is_again, is_here) {
            (false, _) => Arrival::New,
            (true, true) => Arrival::Known,
            (true, false) => Arrival::Owed(sequence),
        };
        if let Some(doubt) = events.recovery.received(consumer_sequence, arrival) {
            events.recovery.doubt(doubt, instant);
        }
        if events.settled.contains(&sequence) {
            self.effects.push(Effect::Ack { partition, sequence });
            return;
        }
        let new = Held { key, state: State::Waiting, progress: now, arrived: now };
        let held = events.held.entry(sequence).or_insert(new);
        (held.progress, held.arrived) = (now, now);
        if let State::Done { sent } = &mut held.state {
            *sent = now;
            self.effects.push(Effect::Ack { partition, sequence });
        }
    }

    pub fn unsubscribed(&mut self, partition: u32) {
        if let Some(events) = self.loops.get_mut(&partition) {
            events.pull = None;
        }
    }

    /// Its open pull requests are gone, and no other follows before then.
    pub fn ask_nothing_until(&mut self, until: u64) {
        self.asks_nothing_until = until;
        self.loops.values_mut().for_each(|events| events.pull = None);
    }

    pub fn reconnected(&mut self, now: u64) {
        let instant = self.instant(now);
        for events in self.loops.values_mut() {
            events.recovery.doubt(RecoveryCause::Reconnect, instant);
            events.pull = None;
        }
    }

    pub fn handled(&mut self, partition: u32, sequence: u64, loop_id: u64, now: u64) -> bool {
        let Some(events) = self.loops.get_mut(&partition).filter(|events| events.id == loop_id) else {
            return false;
        };
        let Some(held) = events.held.get_mut(&sequence) else { return false };
        held.state = State::Done { sent: now };
        self.effects.push(Effect::End { key: held.key, loop_id });
        self.effects.push(Effect::Ack { partition, sequence });
        true
    }

    /// Returns whether the process waited for it.
    pub fn confirmed(&mut self, partition: u32, sequence: u64) -> bool {
        let Some(events) = self.loops.get_mut(&partition) else { return false };
        let is_awaited = matches!(events.held.get(&sequence), Some(Held { state: State::Done { .. }, .. }));
        if is_awaited {
            events.held.remove(&sequence);
            events.settled.insert(sequence);
        }
        is_awaited
    }

    pub fn informed(
        &mut self,
        partition: u32,
        state: ConsumerState,
        leadership: &Leadership,
        asked: u64,
        now: u64,
    ) {
        let (instant, asked_at, id) = (self.instant(now), self.instant(asked), self.id_of(partition));
        let Some(events) = self.loops.get_mut(&partition) else { return };
        events.recovery.note_leader(leadership, instant);
        // A leader that was killed forgot it, and acknowledgements of it are not confirmed. What came after the question was asked is of
        // its successor, and an acknowledgement that was sent after it may reach that when it has delivered the event again: it would settle
        // what waits here.
        let delivered = state.delivered.stream_sequence;
        let is_waiting = |held: &Held| held.state == State::Waiting;
        if events.recovery.is_active() && state.has_quorum {
            events.held.retain(|sequence, held| {
                let may_count = match held.state {
                    State::Waiting => held.arrived >= asked,
                    State::Running => true,
                    State::Done { sent } => held.arrived >= asked || sent >= asked,
                };
                *sequence <= delivered || may_count
            });
        }
        let newest =
            events.held.iter().rev().find(|(_, held)| is_waiting(held)).map(|(sequence, _)| *sequence);
        let held = &events.held;
        let unsettled = |range: &std::ops::RangeInclusive<u64>| {
            let is_unsettled = |held: &Held| !matches!(held.state, State::Done { .. });
            held.iter().filter(|(sequence, held)| range.contains(sequence) && is_unsettled(held)).count()
                as u64
        };
        let response = Response { state, asked_at, answered_at: instant };
        if events.recovery.observed(response, unsettled, newest) == Progress::Complete {
            let note = format!("{} recovered {partition} at {now}", self.participant.id());
            self.effects.push(Effect::Note(note));
            self.participant.recovered(&id);
        }
    }

    fn work(&mut self, partition: u32, now: u64) {
        let (instant, clocks, id) = (self.instant(now), self.clocks(now), self.id_of(partition));
        let may_ask = now >= self.asks_nothing_until;
        let expiry = self.participant.lease().pull_expiry(clocks).filter(|_| may_ask);
        let Some(events) = self.loops.get_mut(&partition) else { return };
        if events.pull.is_some_and(|(until, left)| now >= until || left == 0) {
            events.pull = None;
        }
        if events.recovery.is_info_due(instant) {
            self.effects.push(Effect::Info { partition, asked: now });
        }
        for (sequence, held) in &mut events.held {
            let sequence = *sequence;
            match &mut held.state {
                State::Done { sent } if now >= *sent + ACK_REPEAT => {
                    *sent = now;
                    self.effects.push(Effect::Ack { partition, sequence });
                    events.recovery.doubt(RecoveryCause::UnansweredAck, instant);
                }
                State::Waiting | State::Running if now >= held.progress + ACK_WAIT / 2 => {
                    held.progress = now;
                    self.effects.push(Effect::InProgress { partition, sequence });
                }
                _ => {}
            }
        }
        if events.is_draining {
            return self.finish_drain(&id);
        }
        // What is owed may come after as much that is new as the consumer lets go unacknowledged, and after what took the place of events that a
        // woken predecessor acknowledged.
        let room =
            if events.recovery.is_active() { MAX_ACK_PENDING.max(events.held.len() + 1) } else { ROOM };
        if let Some(expiry) = expiry
            && events.pull.is_none()
            && events.recovery.may_pull()
            && events.held.len() < room
        {
            let expiry = u64::try_from(expiry.as_millis()).unwrap();
            let batch = room - events.held.len();
            events.pull = Some((now + expiry, batch));
            self.effects.push(Effect::Pull { partition, expiry, batch });
        }
        if !events.recovery.is_active() {
            let has_begun = events.held.values().filter(|held| held.state != State::Waiting);
            let mut busy: BTreeSet<_> = has_begun.map(|held| held.key).collect();
            for (sequence, held) in &mut events.held {
                if held.state == State::Waiting && busy.insert(held.key) {
                    held.state = State::Running;
                    let (key, sequence, loop_id) = (held.key, *sequence, events.id);
                    self.effects.push(Effect::Begin { partition, key, sequence, loop_id });
                }
            }
        }
    }

    fn finish_drain(&mut self, id: &PartitionId) {
        let partition = id.partition;
        let Some(events) = self.loops.get_mut(&partition) else { return };
        if events.pull.is_some() {
            return;
        }
        let effects = &mut self.effects;
        events.held.retain(|sequence, held| {
            let is_given_back = held.state == State::Waiting;
            if is_given_back {
                effects.push(Effect::Nak { partition, sequence: *sequence });
            }
            !is_given_back
        });
        if events.held.is_empty() {
            self.loops.remove(&partition);
            self.participant.drained(id);
        }
    }
}
