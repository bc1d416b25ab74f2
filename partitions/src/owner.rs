//! One partition, as one process sees it: whether the process takes it, handles it, or gives it up. Pure.
//!
//! In: what the partition's key says, answers to writes, what the process is to do, and how far a drain is. Out: one action at a time.
//!
//! ```text
//! Idle -> Taking -> Taken -> Serving -> Draining -> Drained -> Idle
//!                              |  ^
//!                              v  |
//!                           Suspended
//! ```
//!
//! All that is not served, too, is drained before it is free.
//!
//! Nothing depends on the order or the arrival of messages: each action follows from the state and the newest revision that is known.
//! A write whose answer was lost may arrive much later; it is then found in the key like any other.

use crate::{
    keys::MemberId,
    lease::{Clocks, PATIENCE},
    observer::Verdict,
    records::{HeldRecord, HeldState},
    write::{Answer, Reading},
};

/// What the process is to do with the partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Take it when it is free.
    Have,
    /// Neither take it nor give it up.
    Keep,
    /// Finish what has begun and give it up: it is meant for another member, or the process stops.
    HandOver,
}

/// What surrounds the partition at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'c> {
    /// This process.
    pub me: &'c MemberId,
    /// What it is to do.
    pub wish: Wish,
    /// Whether its lease holds.
    pub lease_holds: bool,
    /// When its newest confirmed renewal was sent.
    pub renewed: Option<Clocks>,
    /// Whether the bucket is so old that a process which it does not name can hold nothing.
    pub bucket_is_settled: bool,
    /// What is known of the member that the key names.
    pub holder: Verdict,
    /// Now.
    pub now: Clocks,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnerAction {
    /// Write the key, expecting this revision. The answer follows by [`Owner::answered`].
    Write(HeldRecord, u64),
    /// Read the key. The answer follows by [`Owner::read`].
    Read,
    /// The key names a member of which nothing is known.
    ReadHolder,
    /// The key names a member that has to be declared dead first.
    DeclareDead,
    /// Recover the order and handle the partition's events, with this epoch.
    Serve(u64),
    /// The lease is over: begin nothing, pull nothing, interrupt what runs. The partition may go on with the same epoch.
    Suspend,
    /// Begin nothing more, finish what has begun, give the rest back. The end follows by [`Owner::drained`].
    Drain,
    /// Another member has it: abandon everything.
    Stop,
}

/// How far it is, for status and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerState {
    /// The process has nothing to do with it.
    Idle,
    /// The process waits until it is free, or writes that it takes it.
    Waiting,
    /// It is taken, and the order is not recovered yet.
    Recovering,
    /// Its events are handled.
    Serving,
    /// The lease is over.
    Suspended,
    /// What has begun is finished.
    Draining,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Taking { expected: u64 },
    Holding { revision: u64, epoch: u64, phase: Phase },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Since this moment, and not served yet: a renewal that is sent later proves that the bucket is the one that was joined.
    Taken {
        since: Clocks,
    },
    Serving {
        is_recovered: bool,
    },
    Suspended,
    Draining {
        is_written: bool,
        is_suspended: bool,
    },
    Drained,
}

/// One partition, as one process sees it.
#[derive(Debug)]
pub struct Owner {
    held: Reading<HeldRecord>,
    /// When the present value was first seen.
    seen: Clocks,
    state: State,
    is_waiting: bool,
    has_to_read: bool,
    /// A write without an answer may still arrive.
    is_doubtful: bool,
}

impl Default for Owner {
    fn default() -> Self {
        Self {
            held: Reading::Unavailable,
            seen: Clocks::default(),
            state: State::Idle,
            is_waiting: false,
            has_to_read: false,
            is_doubtful: false,
        }
    }
}

impl Owner {
    /// The member that the key names, unless it is free.
    #[must_use]
    pub fn holder(&self) -> Option<&MemberId> {
        match &self.held {
            Reading::Present(_, record) if record.state != HeldState::Free => Some(&record.member),
            _ => None,
        }
    }

    /// Whether the key was read, or seen by a watch.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.held != Reading::Unavailable
    }

    /// Whether this process holds it, or writes that it does.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.state != State::Idle
    }

    /// The epoch of this process, while it holds the partition.
    #[must_use]
    pub fn epoch(&self) -> Option<u64> {
        match self.state {
            State::Holding { epoch, .. } => Some(epoch),
            _ => None,
        }
    }

    /// How far it is.
    #[must_use]
    pub fn state(&self, wish: Wish) -> OwnerState {
        match self.state {
            State::Idle if wish != Wish::Have => OwnerState::Idle,
            State::Idle | State::Taking { .. } => OwnerState::Waiting,
            State::Holding { phase, .. } => match phase {
                Phase::Taken { .. } | Phase::Serving { is_recovered: false } => OwnerState::Recovering,
                Phase::Serving { .. } => OwnerState::Serving,
                Phase::Suspended => OwnerState::Suspended,
                Phase::Draining { .. } | Phase::Drained => OwnerState::Draining,
            },
        }
    }

    /// Whether a write has no answer and may still arrive.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        self.is_doubtful
    }

    /// Whether it is taken and waits for a renewal of the membership that is sent after this.
    #[must_use]
    pub fn needs_renewal(&self, renewed: Option<Clocks>) -> bool {
        match self.state {
            State::Holding { phase: Phase::Taken { since }, .. } => !is_after(renewed, since),
            _ => false,
        }
    }

    /// A watch brought the key's value.
    pub fn observed(&mut self, reading: Reading<HeldRecord>, now: Clocks) {
        let before = self.held.revision();
        self.held.update(reading);
        if self.held.revision() != before {
            self.seen = now;
        }
    }

    /// The key was read from the leader of the bucket's stream.
    pub fn read(&mut self, reading: Reading<HeldRecord>, now: Clocks) {
        self.is_waiting = false;
        match reading {
            Reading::Unavailable => return,
            // Removed from the stream, so no later revision will show it.
            Reading::Absent(0) => self.held = Reading::Absent(0),
            reading => self.observed(reading, now),
        }
        self.has_to_read = false;
    }

    /// The write was answered, or was not in time.
    pub fn answered(&mut self, answer: Answer, written: &HeldRecord, now: Clocks) {
        self.is_waiting = false;
        self.is_doubtful = answer == Answer::Unsure;
        match answer {
            Answer::Stored(revision) => self.observed(Reading::Present(revision, written.clone()), now),
            Answer::Unsure => self.has_to_read = true,
        }
    }

    /// The key has to be read again, since a watch may miss changes.
    pub fn refresh(&mut self) {
        self.has_to_read = true;
    }

    /// The order is recovered.
    pub fn recovered(&mut self) {
        if let State::Holding { phase: Phase::Serving { is_recovered }, .. } = &mut self.state {
            *is_recovered = true;
        }
    }

    /// Nothing runs any more, and what had not begun is given back.
    pub fn drained(&mut self) {
        if let State::Holding { phase: phase @ Phase::Draining { .. }, .. } = &mut self.state {
            *phase = Phase::Drained;
        }
    }

    /// The next action, until there is none.
    pub fn next(&mut self, circumstances: &Circumstances) -> Option<OwnerAction> {
        if self.is_waiting {
            return self.urgent(circumstances);
        }
        if self.has_to_read {
            return self.urgent(circumstances).or_else(|| Some(self.request(OwnerAction::Read)));
        }
        if self.believe_the_key(circumstances) {
            return Some(OwnerAction::Stop);
        }
        match self.state {
            State::Idle | State::Taking { .. } => self.next_of_idle(circumstances),
            State::Holding { .. } => {
                self.urgent(circumstances).or_else(|| self.next_of_holder(circumstances))
            }
        }
    }

    /// What waits for no answer: nothing runs beyond the lease, and what is handed over begins nothing more.
    fn urgent(&mut self, circumstances: &Circumstances) -> Option<OwnerAction> {
        self.suspend(circumstances).or_else(|| self.drain(circumstances))
    }

    fn drain(&mut self, circumstances: &Circumstances) -> Option<OwnerAction> {
        // Also of what is taken and not served: this process may have had it under another id, and something of that may run still.
        let State::Holding {
            phase: phase @ (Phase::Taken { .. } | Phase::Serving { .. } | Phase::Suspended),
            ..
        } = &mut self.state
        else {
            return None;
        };
        if circumstances.wish != Wish::HandOver {
            return None;
        }
        *phase = Phase::Draining { is_written: false, is_suspended: !circumstances.lease_holds };
        Some(OwnerAction::Drain)
    }

    fn suspend(&mut self, circumstances: &Circumstances) -> Option<OwnerAction> {
        let State::Holding { phase, .. } = &mut self.state else { return None };
        if circumstances.lease_holds {
            return None;
        }
        match phase {
            Phase::Serving { .. } => *phase = Phase::Suspended,
            Phase::Draining { is_suspended, .. } if !*is_suspended => *is_suspended = true,
            _ => return None,
        }
        Some(OwnerAction::Suspend)
    }

    /// What the key says is true, also if it is an own write whose answer was lost. Returns whether the partition is lost.
    fn believe_the_key(&mut self, circumstances: &Circumstances) -> bool {
        let own = match &self.held {
            Reading::Present(revision, record) if record.member == *circumstances.me => {
                Some((*revision, record.state))
            }
            _ => None,
        };
        match (self.state, own) {
            (State::Taking { expected }, Some((revision, HeldState::Held))) if revision > expected => {
                let phase = Phase::Taken { since: circumstances.now };
                self.state = State::Holding { revision, epoch: revision, phase };
            }
            (State::Taking { .. }, _) | (State::Holding { .. }, Some((_, HeldState::Free))) => {
                self.state = State::Idle;
            }
            (State::Holding { revision, epoch, phase }, Some((newest, state))) if newest != revision => {
                let phase = match phase {
                    Phase::Draining { is_suspended, .. } if state == HeldState::Draining => {
                        Phase::Draining { is_written: true, is_suspended }
                    }
                    phase => phase,
                };
                self.state = State::Holding { revision: newest, epoch, phase };
            }
            (State::Holding { .. }, None) => {
                self.state = State::Idle;
                return true;
            }
            _ => {}
        }
        false
    }

    fn next_of_idle(&mut self, circumstances: &Circumstances) -> Option<OwnerAction> {
        let Circumstances { me, wish, lease_holds, holder, now, .. } = circumstances;
        let wants = *wish == Wish::Have && *lease_holds;
        let is_old = now.since(self.seen) >= PATIENCE;
        let expected = self.held.revision().unwrap_or(0);
        match &self.held {
            // An own write arrived after this process had given up waiting for it.
            Reading::Present(revision, record)
                if record.member == **me && record.state != HeldState::Free =>
            {
                if !wants {
                    let is_written = record.state == HeldState::Draining;
                    let (revision, epoch) = (*revision, record.epoch.unwrap_or(*revision));
                    let phase = Phase::Draining { is_written, is_suspended: !lease_holds };
                    self.state = State::Holding { revision, epoch, phase };
                    return Some(OwnerAction::Drain);
                }
            }
            _ if !wants => return None,
            Reading::Unavailable => return Some(self.request(OwnerAction::Read)),
            Reading::Absent(_) => {}
            Reading::Unreadable(_) if is_old => {}
            Reading::Unreadable(_) => return None,
            Reading::Present(_, record) if record.state == HeldState::Free => {}
            Reading::Present(..) => match holder {
                Verdict::Dead => {}
                Verdict::Unknown => return Some(OwnerAction::ReadHolder),
                Verdict::Suspect { .. } => return Some(OwnerAction::DeclareDead),
                Verdict::Alive => return None,
            },
        }
        self.state = State::Taking { expected };
        Some(self.write(me, HeldState::Held, None, expected))
    }

    fn next_of_holder(&mut self, circumstances: &Circumstances) -> Option<OwnerAction> {
        let Circumstances { me, lease_holds, renewed, bucket_is_settled, .. } = *circumstances;
        let State::Holding { revision, epoch, phase } = &mut self.state else { return None };
        let (expected, epoch) = (*revision, *epoch);
        match phase {
            Phase::Taken { since } if lease_holds && bucket_is_settled && is_after(renewed, *since) => {
                *phase = Phase::Serving { is_recovered: false };
                return Some(OwnerAction::Serve(epoch));
            }
            Phase::Suspended if lease_holds => {
                *phase = Phase::Serving { is_recovered: false };
                return Some(OwnerAction::Serve(epoch));
            }
            Phase::Draining { is_written, .. } if !*is_written => {
                return Some(self.write(me, HeldState::Draining, Some(epoch), expected));
            }
            Phase::Drained => {}
            Phase::Taken { .. } | Phase::Serving { .. } | Phase::Suspended | Phase::Draining { .. } => {
                return None;
            }
        }
        Some(self.write(me, HeldState::Free, Some(epoch), expected))
    }

    fn write(&mut self, me: &MemberId, state: HeldState, epoch: Option<u64>, expected: u64) -> OwnerAction {
        self.request(OwnerAction::Write(HeldRecord { member: me.clone(), state, epoch }, expected))
    }

    fn request(&mut self, action: OwnerAction) -> OwnerAction {
        self.is_waiting = true;
        action
    }
}

fn is_after(renewed: Option<Clocks>, moment: Clocks) -> bool {
    renewed.is_some_and(|renewed| renewed.boot >= moment.boot)
}

#[cfg(test)]
mod tests;
