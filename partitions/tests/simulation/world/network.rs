//! Requests and messages, and what servers and nodes make of them.

use super::*;

impl World {
    pub(super) fn request(&mut self, node: Node, action: Action) {
        self.number += 1;
        let id = self.number;
        self.requests.insert(id, (node, action.clone()));
        let (lost, late) = (self.is_lossy && self.rng.permille(30), self.is_lossy && self.rng.permille(30));
        let delay = if late { self.rng.within(1_000, 45_000) } else { self.rng.within(1, 60) };
        let delay = self.delay_of_join(node, &action).unwrap_or(delay);
        self.schedule(self.now + REQUEST_TIMEOUT, Event::ToNode(node, Message::TimedOut(id)));
        if let Action::Write { key, value, expected } = &action {
            self.note(format!(
                "{node:?} writes {key} = {value} at {expected}{}",
                if late {
                    " (late)"
                } else if lost {
                    " (lost)"
                } else {
                    ""
                }
            ));
        }
        if !lost {
            self.schedule(self.now + delay, Event::ToServer(node, Request::Bucket(id, action)));
        }
    }

    /// How long the write takes that is the late one.
    fn delay_of_join(&mut self, node: Node, action: &Action) -> Option<u64> {
        let is_join = matches!(action, Action::Write { key: Key::Member(_), expected: 0, .. });
        let (_, at) = self.late_join.take_if(|(index, _)| is_join && is_of(node, *index))?;
        Some(at - self.now)
    }

    /// To a node, in the order of sending.
    pub(super) fn send(&mut self, node: Node, message: Message, most: u64) {
        let earliest = self.last_arrival.get(&node).copied().unwrap_or(0);
        let at = (self.now + self.rng.within(1, most)).max(earliest);
        self.last_arrival.insert(node, at);
        self.schedule(at, Event::ToNode(node, message));
    }

    pub(super) fn serve(&mut self, from: Node, request: Request) {
        // What a process had sent arrives also when it is gone.
        if !self.is_reachable(from) {
            return;
        }
        match request {
            Request::Bucket(id, action) => self.serve_bucket(from, id, action),
            Request::Effect(effect) => self.serve_effect(from, &effect),
        }
    }

    pub(super) fn serve_bucket(&mut self, from: Node, id: u64, action: Action) {
        let reply = match action {
            Action::Write { key, value, expected } => {
                Reply::Written(self.write(&key, &value, Some(expected)))
            }
            Action::Put { key, value } => Reply::Written(self.write(&key, &value, None)),
            Action::Read(key) => Reply::Value(self.bucket.values.get(&key).cloned()),
            _ => Reply::Age(self.now - self.bucket.created),
        };
        let is_lost = self.is_lossy && self.rng.permille(30);
        if !is_lost {
            self.send(from, Message::Reply(id, reply), 60);
        }
    }

    pub(super) fn write(&mut self, key: &Key, value: &str, expected: Option<u64>) -> Answer {
        let answer = self.bucket.write(key, value.to_owned(), expected);
        if let Answer::Stored(revision) = answer {
            for node in self.nodes() {
                if self.sees(node) {
                    self.send(node, Message::Watched(key.clone(), revision, value.to_owned()), 100);
                }
            }
        }
        answer
    }

    pub(super) fn sees(&self, node: Node) -> bool {
        let until = match node {
            Node::Process(index, _) => self.blind.get(&index),
            Node::Operator(index, _) => self.blind_operators.get(&index),
        };
        let is_blind = until.is_some_and(|until| *until > self.now);
        self.is_reachable(node) && !is_blind
    }

    /// Everything that there is, and then everything that comes.
    pub(super) fn watch(&mut self, node: Node) {
        if !self.sees(node) {
            return;
        }
        for (key, (revision, value)) in self.bucket.values.clone() {
            self.send(node, Message::Watched(key, revision, value), 20);
        }
        self.send(node, Message::Synced, 20);
    }

    pub(super) fn serve_effect(&mut self, from: Node, effect: &Effect) {
        let Node::Process(process, incarnation) = from else { return };
        let now = self.now;
        match *effect {
            Effect::Pull { partition, expiry, batch } => {
                // The requests of a connection that is closed are over.
                if !self.is_there(from) {
                    return;
                }
                let pull = Pull { process, incarnation, expires: now + expiry, batch };
                self.consumers[partition as usize].pulls.push_back(pull);
                self.deliver(partition);
            }
            Effect::Ack { partition, sequence } => {
                // As where its leader is another one soon.
                let is_lost = self.lost_ack.take_if(|lost| *lost == partition).is_some();
                if is_lost || (self.is_lossy && self.rng.permille(10)) {
                    return;
                }
                let (_, key) = self.stream[usize::try_from(sequence).unwrap() - 1];
                self.note(format!("JetStream has the acknowledgement of {sequence} by {from:?}"));
                if !self.consumers[partition as usize].ack(sequence) {
                    return;
                }
                self.assert(self.handled.contains(&sequence), || {
                    "an event is acknowledged that no handler finished".to_owned()
                });
                self.acked.insert(sequence);
                self.sentinel.settle(key.into(), sequence);
                self.settled_by.insert(sequence, from);
                if !(self.is_lossy && self.rng.permille(10)) {
                    self.send(from, Message::Confirmed { partition, sequence }, 60);
                }
            }
            Effect::Nak { partition, sequence } => {
                self.given_back += 1;
                self.consumers[partition as usize].nak(sequence);
                self.deliver(partition);
            }
            Effect::InProgress { partition, sequence } => {
                self.consumers[partition as usize].in_progress(sequence, now);
            }
            Effect::Info { partition, asked } => {
                let consumer = &self.consumers[partition as usize];
                let (state, leadership) = (consumer.info(self.now), consumer.leadership());
                self.send(from, Message::Info { partition, state, leadership, asked }, 60);
            }
            Effect::Unsubscribe { partition } => {
                self.consumers[partition as usize].pulls.retain(|pull| pull.process != process);
                self.send(from, Message::Unsubscribed { partition }, 20);
            }
            _ => {}
        }
    }

    pub(super) fn deliver(&mut self, partition: u32) {
        if !self.nats_up {
            return;
        }
        let (now, published) = (self.now, self.published() as u64);
        let sent = self.consumers[partition as usize].serve(now, published);
        for sequence in std::mem::take(&mut self.consumers[partition as usize].acknowledged) {
            let (_, key) = self.stream[usize::try_from(sequence).unwrap() - 1];
            self.acked.insert(sequence);
            self.sentinel.settle(key.into(), sequence);
        }
        for Sent { process, incarnation, delivery } in sent {
            let node = Node::Process(process, incarnation);
            let Delivery { consumer_sequence, sequence, .. } = delivery;
            let is_lost = self.is_lossy && self.rng.permille(10);
            let lost = if is_lost { " (lost)" } else { "" };
            self.note(format!(
                "delivery {consumer_sequence} of {sequence}, partition {partition}, to {node:?}{lost}"
            ));
            if !is_lost && self.is_reachable(node) {
                self.send(node, Message::Delivery { partition, delivery }, 40);
            }
        }
    }

    pub(super) fn publish(&mut self) {
        self.schedule(self.now + self.publish_every, Event::Publish);
        if !self.nats_up || self.publish_every == u64::MAX / 2 {
            return;
        }
        let partition = u32::try_from(self.rng.index(PARTITIONS as usize)).unwrap();
        let key = partition * KEYS + u32::try_from(self.rng.index(KEYS as usize)).unwrap();
        self.stream.push((partition, key));
        let consumer = self.consumer_of(key);
        let sequence = self.stream.len() as u64;
        self.consumers[consumer as usize].waiting.push_back(sequence);
        self.left.entry(key).or_default().insert(sequence);
        self.keep_the_newest(key);
    }

    pub(super) fn arrive(&mut self, to: Node, message: Message) {
        if !self.is_there(to) {
            return;
        }
        match to {
            Node::Process(index, _) => {
                if self.processes[index].as_ref().is_some_and(|process| process.frozen_until.is_some()) {
                    self.deferred.entry(index).or_default().push((to, message));
                    return;
                }
                if self.hear(index, message) {
                    self.apply(index);
                    self.step(index);
                }
            }
            Node::Operator(index, _) => {
                if let Some(operator) = self.operators[index].as_mut().filter(|operator| operator.is_frozen) {
                    operator.deferred.push(message);
                    return;
                }
                self.hear_operator(index, message);
                self.step_operator(index);
            }
        }
    }

    pub(super) fn hear(&mut self, index: usize, message: Message) -> bool {
        let now = self.now;
        let Some(process) = &mut self.processes[index] else { return false };
        let clocks = process.clocks(now);
        match message {
            Message::Reply(id, reply) => {
                let Some((_, action)) = self.requests.remove(&id) else { return false };
                match (action, reply) {
                    (Action::Write { key, .. }, Reply::Written(answer)) => {
                        process.participant.answered(&key, answer, clocks);
                    }
                    (Action::Read(key), Reply::Value(value)) => {
                        process.participant.read(&key, value_of(value.as_ref()), clocks).unwrap();
                    }
                    (Action::ReadBucket, Reply::Age(age)) => {
                        process.participant.bucket_age(Some(Duration::from_millis(age)), clocks);
                    }
                    (action, reply) => panic!("{reply:?} to {action:?}"),
                }
            }
            Message::TimedOut(id) => {
                let Some((_, action)) = self.requests.remove(&id) else { return false };
                match action {
                    Action::Write { key, .. } => process.participant.answered(&key, Answer::Unsure, clocks),
                    Action::Read(key) => process.participant.read(&key, Value::Unavailable, clocks).unwrap(),
                    _ => process.participant.bucket_age(None, clocks),
                }
            }
            Message::Watched(key, revision, value) => {
                process.participant.observed(&key, Value::Bytes(revision, value.as_bytes()), clocks).unwrap();
            }
            Message::Delivery { partition, delivery } => {
                let (_, key) = self.stream[usize::try_from(delivery.sequence).unwrap() - 1];
                process.delivered(partition, delivery, key, now);
            }
            Message::Confirmed { partition, sequence } => {
                if process.confirmed(partition, sequence) {
                    self.confirmed.insert(sequence);
                }
            }
            Message::Info { partition, state, leadership, asked } => {
                process.informed(partition, state, &leadership, asked, now);
            }
            Message::Unsubscribed { partition } => process.unsubscribed(partition),
            Message::Handled { partition, sequence, loop_id } => {
                // Its effect is done, whatever becomes of the process.
                if process.handled(partition, sequence, loop_id, now) {
                    self.handled.insert(sequence);
                }
            }
            Message::ContainerEnded(uid, at) => process.participant.container_ended(&uid, at),
            Message::Synced => {}
        }
        true
    }

    pub(super) fn hear_operator(&mut self, index: usize, message: Message) {
        let Some(Operator { coordinator, rate, .. }) = &mut self.operators[index] else { return };
        let clocks = clocks(self.now, *rate);
        match message {
            Message::Reply(id, reply) => {
                let Some((_, action)) = self.requests.remove(&id) else { return };
                match (action, reply) {
                    (Action::Write { key, .. } | Action::Put { key, .. }, Reply::Written(answer)) => {
                        coordinator.answered(&key, answer, clocks);
                    }
                    (Action::Read(key), Reply::Value(value)) => {
                        coordinator.read(&key, value_of(value.as_ref()), clocks).unwrap();
                    }
                    (action, reply) => panic!("{reply:?} to {action:?}"),
                }
            }
            Message::TimedOut(id) => {
                let Some((_, action)) = self.requests.remove(&id) else { return };
                match action {
                    Action::Write { key, .. } | Action::Put { key, .. } => {
                        coordinator.answered(&key, Answer::Unsure, clocks);
                    }
                    Action::Read(key) => coordinator.read(&key, Value::Unavailable, clocks).unwrap(),
                    action => panic!("{action:?}"),
                }
            }
            Message::Watched(key, revision, value) => {
                coordinator.observed(&key, Value::Bytes(revision, value.as_bytes()), clocks).unwrap();
            }
            Message::Synced => coordinator.synced(),
            Message::ContainerEnded(uid, at) => coordinator.container_ended(&uid, at),
            message => panic!("{message:?}"),
        }
    }
}

fn is_of(node: Node, index: usize) -> bool {
    matches!(node, Node::Process(of, _) if of == index)
}
