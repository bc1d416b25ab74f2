//! Processes and operators: starting, stopping, and what goes wrong with them and their servers.

use super::*;

impl World {
    pub(super) fn step(&mut self, index: usize) {
        let now = self.now;
        let Some(process) = &mut self.processes[index] else { return };
        if process.frozen_until.is_some() {
            return;
        }
        process.step(now);
        self.apply(index);
    }

    pub(super) fn apply(&mut self, index: usize) {
        let Some(process) = &mut self.processes[index] else { return };
        let node = Node::Process(index, process.incarnation);
        for effect in std::mem::take(&mut process.effects) {
            match effect {
                Effect::Bucket(action) => self.request(node, action),
                Effect::Begin { partition, key, sequence, loop_id } => {
                    self.begin(node, partition, key, sequence, loop_id);
                }
                Effect::End { key, loop_id } => self.end(key, loop_id),
                Effect::Served { partition, epoch } => self.served(node, partition, epoch),
                Effect::Note(text) => self.note(text),
                Effect::Exit => {
                    self.note(format!("process {index} exits"));
                    let restart_after = self.rng_within(100, 1_000);
                    self.remove(index, restart_after);
                    return;
                }
                effect => {
                    let earliest = self.last_departure.get(&node).copied().unwrap_or(0);
                    let at = (self.now + self.rng_within(1, 60)).max(earliest);
                    self.last_departure.insert(node, at);
                    self.schedule(at, Event::ToServer(node, Request::Effect(effect)));
                }
            }
        }
    }

    pub(super) fn rng_within(&mut self, low: u64, high: u64) -> u64 {
        self.rng.within(low, high)
    }

    pub(super) fn step_operator(&mut self, index: usize) {
        let Some(operator) = self.operators[index].as_mut().filter(|operator| !operator.is_frozen) else {
            return;
        };
        let node = Node::Operator(index, operator.incarnation);
        for action in operator.coordinator.poll(clocks(self.now, operator.rate)) {
            self.request(node, action);
        }
    }

    pub fn start(&mut self, index: usize) {
        if self.processes[index].is_some() {
            return;
        }
        self.incarnations += 1;
        let rate = self.rng.within(985, 1_016);
        let process = Process::new(
            (index, self.incarnations, self.template),
            (consumer(), PARTITIONS),
            rate,
            self.now,
            self.base,
        );
        self.note(format!("process {index} starts, template {}", self.template));
        self.processes[index] = Some(process);
        self.declare();
        self.watch(Node::Process(index, self.incarnations));
        self.disturb(self.now + 1_000, "a process starts");
    }

    pub fn start_operator(&mut self, index: usize) {
        self.incarnations += 1;
        let rate = self.rng.within(985, 1_016);
        self.operators[index] = Some(Operator {
            coordinator: Coordinator::new(format!("operator-{index}"), "east", clocks(self.now, rate)),
            incarnation: self.incarnations,
            is_frozen: false,
            deferred: Vec::new(),
            rate,
        });
        self.note(format!("operator {index} leads"));
        self.declare();
        self.watch(Node::Operator(index, self.incarnations));
    }

    pub fn stop_operator(&mut self, index: usize) {
        self.note(format!("operator {index} ends"));
        self.operators[index] = None;
    }

    /// As SIGSTOP. It goes on as if it led still.
    pub fn freeze_operator(&mut self, index: usize, duration: u64) {
        let Some(operator) = self.operators[index].as_mut().filter(|operator| !operator.is_frozen) else {
            return;
        };
        operator.is_frozen = true;
        let incarnation = operator.incarnation;
        self.note(format!("operator {index} is frozen"));
        self.schedule(self.now + duration, Event::ResumeOperator(index, incarnation));
    }

    pub(super) fn resume_operator(&mut self, index: usize, incarnation: u64) {
        let is_it = |operator: &&mut Operator| operator.incarnation == incarnation;
        let Some(operator) = self.operators[index].as_mut().filter(is_it) else { return };
        operator.is_frozen = false;
        let deferred = std::mem::take(&mut operator.deferred);
        self.note(format!("operator {index} goes on"));
        // Before it reads what arrived meanwhile, it acts on what it knew.
        self.step_operator(index);
        for message in deferred {
            self.hear_operator(index, message);
        }
        self.step_operator(index);
    }

    pub fn blind_operator(&mut self, index: usize, duration: u64) {
        self.blind_operators.insert(index, self.now + duration);
        self.disturb(self.now + duration, format!("the watch of operator {index} brings nothing"));
    }

    /// What Kubernetes says of the pods.
    pub(super) fn declare(&mut self) {
        let role = |process: &Process| {
            let role = if process.template == self.template { PodRole::Current } else { PodRole::Earlier };
            (process.uid.clone(), role)
        };
        let roles = self.processes.iter().flatten().map(role).collect();
        let pods = Some(Pods { namespace: "shop".to_owned(), roles });
        let declared = Declared { count: self.shared, drain: Duration::from_secs(20), pods };
        for operator in self.operators.iter_mut().flatten() {
            operator.coordinator.declare(consumer(), declared.clone());
        }
    }

    /// Ends it as SIGKILL does, and starts another one later.
    pub fn kill(&mut self, index: usize, restart_after: u64, is_reported: bool) {
        let Some(process) = &mut self.processes[index] else { return };
        process.kill();
        let ended = Message::ContainerEnded(process.uid.clone(), process.clocks(self.now).wall.as_secs());
        self.apply(index);
        self.disturb(self.now + restart_after, format!("process {index} is killed"));
        self.remove(index, restart_after);
        if is_reported {
            for node in self.nodes() {
                if matches!(node, Node::Operator(..)) {
                    self.send(node, ended.clone(), 1_500);
                }
            }
        }
    }

    pub(super) fn kill_incarnation(&mut self, index: usize, incarnation: u64) {
        if self.is_there(Node::Process(index, incarnation)) {
            self.kill(index, 1_000, true);
        }
    }

    pub(super) fn remove(&mut self, index: usize, restart_after: u64) {
        for consumer in &mut self.consumers {
            consumer.pulls.retain(|pull| pull.process != index);
        }
        self.processes[index] = None;
        self.deferred.remove(&index);
        self.declare();
        let at = self.now + restart_after;
        self.disturb(at, format!("process {index} is gone"));
        self.schedule(at, Event::Start(index));
    }

    pub fn terminate_now(&mut self, index: usize) {
        let Some(process) = &self.processes[index] else { return };
        let incarnation = process.incarnation;
        self.terminate(index, incarnation);
    }

    pub(super) fn terminate(&mut self, index: usize, incarnation: u64) {
        let Some(process) =
            self.processes[index].as_mut().filter(|process| process.incarnation == incarnation)
        else {
            return;
        };
        process.is_leaving = true;
        process.participant.leave();
        self.disturb(self.now + GRACE_PERIOD, format!("process {index} is to stop"));
        self.schedule(self.now + GRACE_PERIOD, Event::Kill(index, incarnation));
    }

    /// As SIGSTOP, or a machine that is suspended.
    pub fn freeze(&mut self, index: usize, duration: u64) {
        let now = self.now;
        let Some(process) = self.processes[index].as_mut().filter(|process| process.frozen_until.is_none())
        else {
            return;
        };
        process.frozen_until = Some(now + duration);
        let incarnation = process.incarnation;
        self.disturb(now + duration, format!("process {index} is frozen"));
        self.schedule(now + duration, Event::Resume(index, incarnation));
    }

    pub(super) fn resume(&mut self, index: usize, incarnation: u64) {
        let Some(process) =
            self.processes[index].as_mut().filter(|process| process.incarnation == incarnation)
        else {
            return;
        };
        process.frozen_until = None;
        self.note(format!("process {index} goes on"));
        // What arrived meanwhile may be read before anything is checked.
        for (node, message) in self.deferred.remove(&index).unwrap_or_default() {
            self.arrive(node, message);
        }
        self.step(index);
    }

    pub fn cut_off(&mut self, index: usize, duration: u64) {
        self.cut.insert(index);
        self.disturb(self.now + duration, format!("process {index} reaches no server"));
        self.schedule(self.now + duration, Event::EndCut(index));
    }

    pub(super) fn end_cut(&mut self, index: usize) {
        self.cut.remove(&index);
        self.reconnected(index);
    }

    pub(super) fn reconnected(&mut self, index: usize) {
        let now = self.now;
        for consumer in &mut self.consumers {
            consumer.pulls.retain(|pull| pull.process != index);
        }
        let Some(process) = &mut self.processes[index] else { return };
        process.reconnected(now);
        let node = Node::Process(index, process.incarnation);
        self.watch(node);
    }

    pub fn blind(&mut self, index: usize, duration: u64) {
        self.blind.insert(index, self.now + duration);
        self.disturb(self.now + duration, format!("the watch of process {index} brings nothing"));
    }

    /// A process asks for no events.
    pub fn ask_nothing(&mut self, index: usize, duration: u64) {
        for consumer in &mut self.consumers {
            consumer.pulls.retain(|pull| pull.process != index);
        }
        let until = self.now + duration;
        if let Some(process) = &mut self.processes[index] {
            process.ask_nothing_until(until);
            self.disturb(until, format!("process {index} asks for no events"));
        }
    }

    pub fn set_wall_clock(&mut self, index: usize, offset: u64) {
        if let Some(process) = &mut self.processes[index] {
            process.wall_offset = offset;
            self.clock_set_at = Some(self.now);
            self.disturb(self.now, format!("the wall clock of process {index} is set to {offset}"));
        }
    }

    pub fn roll_out(&mut self) {
        self.template += 1;
        self.declare();
        let length = self.processes.len() as u64;
        for index in 0..self.processes.len() {
            let Some(process) = &self.processes[index] else { continue };
            let at = self.now + 3_000 * index as u64;
            let incarnation = process.incarnation;
            self.schedule(at, Event::Terminate(index, incarnation));
        }
        self.disturb(self.now + 3_000 * length, "a rollout");
    }

    pub fn restart_nats(&mut self, duration: u64) {
        self.nats_up = false;
        self.disturb(self.now + duration, "NATS is away");
        self.schedule(self.now + duration, Event::NatsUp);
    }

    pub(super) fn nats_is_up(&mut self) {
        self.nats_up = true;
        for partition in 0..u32::try_from(self.consumers.len()).unwrap() {
            self.change_leader(partition, 0);
        }
        for index in 0..self.processes.len() {
            self.reconnected(index);
        }
        for node in self.nodes() {
            self.watch(node);
        }
    }

    pub fn change_leader(&mut self, partition: u32, steps_back: u64) {
        self.disturb(self.now, format!("partition {partition} has another leader, {steps_back} back"));
        let now = self.now;
        self.consumers[partition as usize].change_leader(now, steps_back);
    }

    pub fn stall(&mut self, partition: u32, duration: u64) {
        let (now, until) = (self.now, self.now + duration);
        self.disturb(until, format!("the leader of partition {partition} has no quorum"));
        let (is_replaced, forgets_deliveries) = (self.rng.permille(500), self.rng.permille(500));
        self.consumers[partition as usize].stall(now, until, forgets_deliveries);
        if is_replaced {
            self.schedule(until - 1, Event::OtherLeader(partition));
        }
    }

    pub fn make_bucket_again(&mut self) {
        self.bucket.make_again(self.now);
        self.disturb(self.now + 32_000, "the bucket is made again");
        for node in self.nodes() {
            self.watch(node);
        }
    }
}
