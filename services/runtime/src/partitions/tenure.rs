//! The right of this process to handle one partition, as the loop that handles it sees it: what it is told, and whether the lease holds.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use jetwright_partitions::{
    lease::{Clocks, Lease},
    records::Figures,
};
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};

use super::clock::clocks;

/// How often a handler that runs is compared with the lease: the clocks of a lease may jump.
const LEASE_INTERVAL: Duration = Duration::from_secs(1);

/// The lease of a membership, for all the partitions that are held under it.
#[derive(Debug, Default)]
pub(crate) struct SharedLease(RwLock<Lease>);

impl SharedLease {
    /// Sets what the membership knows of it.
    pub(crate) fn set(&self, lease: Lease) {
        *self.0.write() = lease;
    }

    fn holds(&self, now: Clocks) -> bool {
        self.0.read().holds(now)
    }

    fn left(&self, now: Clocks) -> Duration {
        self.0.read().left(now)
    }
}

/// What the loop of a partition is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instruction {
    /// Recover the order, and handle events.
    Serve,
    /// The lease is over: begin nothing, pull nothing, say nothing. What runs is interrupted ([`Tenure::over`]).
    Suspend,
    /// Begin nothing more, finish what has begun, give back the rest.
    Drain,
    /// Another process has it: begin nothing, and forget what has not begun.
    Abandon,
}

/// What the loop of a partition has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Looked {
    /// The lowest stream sequence of its events.
    pub(crate) oldest: Option<u64>,
    pub(crate) in_flight: u64,
    pub(crate) running: u64,
    /// Those that could begin, and have no room.
    pub(crate) queued: u64,
}

/// The right to one partition, which begins when it is taken, and ends for good. Shared by the driver and the partition's loop.
#[derive(Debug)]
pub(crate) struct Tenure {
    lease: Arc<SharedLease>,
    instruction: watch::Sender<Instruction>,
    drain_until: OnceLock<Instant>,
    figures: Mutex<Figures>,
    is_recovered: AtomicBool,
    /// Notified when the order is recovered.
    news: Arc<Notify>,
    /// Number of the partition.
    pub(crate) partition: u32,
    /// Grows with each tenure, over all partitions.
    pub(crate) epoch: u64,
}

impl Tenure {
    /// `news` is notified when the order is recovered.
    pub(crate) fn new(partition: u32, epoch: u64, lease: Arc<SharedLease>, news: Arc<Notify>) -> Self {
        Self {
            lease,
            instruction: watch::Sender::new(Instruction::Serve),
            drain_until: OnceLock::new(),
            figures: Mutex::default(),
            is_recovered: AtomicBool::new(false),
            news,
            partition,
            epoch,
        }
    }

    /// Tells the loop what to do. What ends it ends it for good.
    pub(crate) fn instruct(&self, instruction: Instruction) {
        self.instruction.send_if_modified(|before| {
            let is_over = match *before {
                Instruction::Abandon => true,
                Instruction::Drain => instruction != Instruction::Abandon,
                Instruction::Serve | Instruction::Suspend => false,
            };
            let is_new = !is_over && *before != instruction;
            if is_new {
                *before = instruction;
            }
            is_new
        });
    }

    /// Has the loop finish, by then where that is known.
    pub(crate) fn drain(&self, until: Option<Instant>) {
        if let Some(until) = until {
            // The first drain is the only one.
            let _ = self.drain_until.set(until);
        }
        self.instruct(Instruction::Drain);
    }

    /// Until when a drain should last.
    pub(crate) fn drain_until(&self) -> Option<Instant> {
        self.drain_until.get().copied()
    }

    pub(crate) fn instruction(&self) -> Instruction {
        *self.instruction.borrow()
    }

    /// What the loop is told, to wait for changes of.
    pub(crate) fn instructions(&self) -> watch::Receiver<Instruction> {
        self.instruction.subscribe()
    }

    /// Whether a handler may begin now. Looked at right before each.
    pub(crate) fn may_begin(&self) -> bool {
        self.instruction() == Instruction::Serve && self.lease.holds(clocks())
    }

    /// Whether what runs has to end, since another process has the partition, or will have it: the lease is over.
    pub(crate) fn is_over(&self) -> bool {
        self.instruction() == Instruction::Abandon || !self.lease.holds(clocks())
    }

    /// Waits until what runs has to end. Each poll looks at the clocks: timers stand still while the machine is suspended, and a wall clock
    /// that is set moves none.
    pub(crate) async fn over(&self) {
        let mut waiting = pin!(self.wait_until_over());
        poll_fn(|context| if self.is_over() { Poll::Ready(()) } else { waiting.as_mut().poll(context) })
            .await;
    }

    async fn wait_until_over(&self) {
        let mut instructions = self.instructions();
        loop {
            instructions.mark_unchanged();
            if self.is_over() {
                return;
            }
            tokio::select! {
                () = sleep(self.lease.left(clocks()).min(LEASE_INTERVAL)) => {}
                // This is the sender, so it is there.
                _ = instructions.changed() => {}
            }
        }
    }

    /// Whether JetStream may be told that events are still being handled.
    pub(crate) fn may_hold(&self) -> bool {
        matches!(self.instruction(), Instruction::Serve | Instruction::Drain) && self.lease.holds(clocks())
    }

    /// How long a pull request may last that is sent now; `None` if none may be sent.
    pub(crate) fn pull_expiry(&self) -> Option<Duration> {
        let lease = *self.lease.0.read();
        if self.instruction() == Instruction::Serve { lease.pull_expiry(clocks()) } else { None }
    }

    /// The order is recovered.
    pub(crate) fn recovered(&self) {
        self.is_recovered.store(true, Ordering::Release);
        self.news.notify_one();
    }

    /// Whether the order was recovered since this was last asked.
    pub(crate) fn take_recovered(&self) -> bool {
        self.is_recovered.swap(false, Ordering::Acquire)
    }

    /// Takes what is reported of the partition. One with events begins the next interval as busy, and one look at less work clears that; an empty one
    /// is not looked at, so it is not busy.
    pub(crate) fn take_figures(&self) -> Figures {
        let mut figures = self.figures.lock();
        let next = Figures { busy: Some(figures.ack_pending > 0), ..*figures };
        std::mem::replace(&mut *figures, next)
    }

    /// Takes over what its loop sees.
    pub(crate) fn look(&self, looked: Looked) {
        let Looked { oldest, in_flight, running, queued } = looked;
        self.report(|figures| {
            figures.ack_pending = in_flight;
            (figures.running, figures.queued) = (Some(running), Some(queued));
            let floor = oldest.map_or(figures.delivered, |oldest| oldest.saturating_sub(1));
            figures.ack_floor = figures.ack_floor.max(floor.min(figures.delivered));
            figures.busy = Some(figures.busy == Some(true) && queued > 0);
        });
    }

    /// Changes what is reported.
    pub(crate) fn report(&self, change: impl FnOnce(&mut Figures)) {
        change(&mut self.figures.lock());
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::time::timeout;

    use super::*;

    fn tenure(is_held: bool) -> Tenure {
        let lease = SharedLease::default();
        if is_held {
            let mut held = Lease::default();
            held.confirm(clocks());
            lease.set(held);
        }
        Tenure::new(3, 7, Arc::new(lease), Arc::default())
    }

    #[tokio::test]
    async fn what_runs_ends_when_another_process_has_the_partition_and_without_a_lease() {
        let never = Duration::from_millis(10);
        tenure(false).over().await;
        let tenure = tenure(true);
        tenure.drain(None);
        assert!(timeout(never, tenure.over()).await.is_err(), "a drain finishes what runs");
        tenure.instruct(Instruction::Abandon);
        tenure.over().await;
    }

    /// As where the machine was suspended meanwhile: no timer has noticed yet.
    #[tokio::test(start_paused = true)]
    async fn what_wakes_up_after_the_lease_ends_before_any_timer() {
        let tenure = tenure(true);
        let mut over = pin!(tenure.over());
        assert!(over.as_mut().now_or_never().is_none());
        tenure.lease.set(Lease::default());
        assert!(over.now_or_never().is_some());
    }

    #[test]
    fn a_partition_is_busy_where_each_look_since_the_last_report_found_something_without_room() {
        let tenure = tenure(true);
        let look = |in_flight, queued| tenure.look(Looked { oldest: None, in_flight, running: 2, queued });
        assert_eq!(tenure.take_figures().busy, None, "nobody looked yet");
        look(9, 4);
        tenure.take_figures();
        look(9, 4);
        let figures = tenure.take_figures();
        assert_eq!((figures.busy, figures.ack_pending), (Some(true), 9));
        assert_eq!((figures.running, figures.queued), (Some(2), Some(4)));
        look(9, 4);
        look(9, 0);
        look(9, 4);
        assert_eq!(tenure.take_figures().busy, Some(false));
        look(0, 0);
        tenure.take_figures();
        assert_eq!(tenure.take_figures().busy, Some(false), "it is empty, and nobody looks");
    }

    #[test]
    fn nothing_is_allowed_without_a_lease() {
        let tenure = tenure(false);
        assert!(!tenure.may_begin() && !tenure.may_hold() && tenure.pull_expiry().is_none());
    }

    #[test]
    fn what_is_allowed_follows_from_what_the_loop_is_told_and_an_end_is_final() {
        let tenure = tenure(true);
        let allowed = |instruction| {
            tenure.instruct(instruction);
            (tenure.may_begin(), tenure.may_hold(), tenure.pull_expiry().is_some())
        };
        assert_eq!(allowed(Instruction::Serve), (true, true, true));
        assert_eq!(allowed(Instruction::Suspend), (false, false, false));
        assert_eq!(allowed(Instruction::Serve), (true, true, true));
        assert_eq!(allowed(Instruction::Drain), (false, true, false));
        assert_eq!(allowed(Instruction::Serve), (false, true, false));
        assert_eq!(allowed(Instruction::Abandon), (false, false, false));
        assert_eq!(allowed(Instruction::Drain), (false, false, false));
    }
}
