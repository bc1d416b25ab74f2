//! How many bytes of events a process may have in memory, over all of its consumers. Pure.
//!
//! Half of the budget is divided: each consumer has its share whatever the others use. The other half is first come, first
//! served. What a consumer has requested counts as used, since it may arrive at any time. So all of them together never use more, and
//! none can starve another: the other half is granted in parts.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use parking_lot::{Mutex, MutexGuard};
use prometheus_client::metrics::gauge::Gauge;

/// The budget of one process. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ByteBudget {
    shared: Arc<Mutex<Shared>>,
    /// What all consumers hold, for the metrics.
    held: Gauge,
}

#[derive(Debug, Default)]
struct Shared {
    /// Bytes of the largest limit among the consumers.
    limit: usize,
    consumers: usize,
    /// Bytes that consumers use or requested beyond their own shares.
    borrowed: usize,
}

/// The part of the budget that one consumer uses.
#[derive(Debug)]
pub(crate) struct ByteShare {
    budget: ByteBudget,
    /// Maximum bytes of this consumer.
    limit: usize,
    held: AtomicUsize,
    /// Bytes that were requested and have not arrived.
    owed: AtomicUsize,
    /// Changed only under the lock.
    borrowed: AtomicUsize,
}

impl Shared {
    /// The share that each consumer may use whatever the others do.
    fn own_part(&self) -> usize {
        self.limit / 2 / self.consumers.max(1)
    }

    fn free(&self) -> usize {
        (self.limit - self.own_part() * self.consumers).saturating_sub(self.borrowed)
    }
}

impl ByteBudget {
    /// A budget whose use this gauge shows.
    pub(crate) fn shown_by(held: Gauge) -> Self {
        Self { held, ..Self::default() }
    }

    /// Adds a consumer with this maximum. The process' maximum is the largest of its consumers'.
    pub(crate) fn share(&self, limit: usize) -> ByteShare {
        let mut shared = self.lock();
        shared.limit = shared.limit.max(limit);
        shared.consumers += 1;
        let (held, owed, borrowed) = Default::default();
        ByteShare { budget: self.clone(), limit, held, owed, borrowed }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock()
    }
}

impl ByteShare {
    /// Marks as owed, beside what is owed already, as many bytes as may be requested, and returns them.
    pub(crate) fn reserve(&self, owed: usize) -> usize {
        let mut shared = self.budget.lock();
        self.owed.store(owed, Ordering::Relaxed);
        self.settle_borrowed(&mut shared);
        let taken = self.held.load(Ordering::Relaxed).saturating_add(owed);
        // A consumer that is alone has all of it.
        let granted = shared.free() / shared.consumers.max(1);
        let available = shared.own_part().saturating_sub(taken) + granted;
        let available = available.min(self.limit.saturating_sub(taken));
        self.owed.store(owed.saturating_add(available), Ordering::Relaxed);
        self.settle_borrowed(&mut shared);
        available
    }

    /// So many bytes may still arrive.
    pub(crate) fn owe(&self, bytes: usize) {
        self.owed.store(bytes, Ordering::Relaxed);
        self.settle_borrowed(&mut self.budget.lock());
    }

    /// So many bytes arrived. They count even if they exceed the room.
    pub(crate) fn take(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.budget.held.inc_by(as_signed(bytes));
        self.settle_borrowed(&mut self.budget.lock());
    }

    /// So many bytes are released.
    pub(crate) fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.held.dec_by(as_signed(bytes));
        // If nothing is borrowed, nothing returns to others.
        if self.borrowed.load(Ordering::Relaxed) > 0 {
            self.settle_borrowed(&mut self.budget.lock());
        }
    }

    /// Updates the borrowed bytes to what is used and owed.
    fn settle_borrowed(&self, shared: &mut Shared) {
        let taken = self.held.load(Ordering::Relaxed).saturating_add(self.owed.load(Ordering::Relaxed));
        let borrowed = taken.saturating_sub(shared.own_part());
        let before = self.borrowed.swap(borrowed, Ordering::Relaxed);
        shared.borrowed = (shared.borrowed + borrowed).saturating_sub(before);
    }
}

impl Drop for ByteShare {
    /// What it still holds counts no more, and the others' shares grow.
    fn drop(&mut self) {
        self.budget.held.dec_by(as_signed(self.held.load(Ordering::Relaxed)));
        let mut shared = self.budget.lock();
        shared.consumers = shared.consumers.saturating_sub(1);
        shared.borrowed = shared.borrowed.saturating_sub(self.borrowed.load(Ordering::Relaxed));
    }
}

fn as_signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that may be requested now; none is requested by this.
    fn available(share: &ByteShare) -> usize {
        let available = share.reserve(0);
        share.owe(0);
        available
    }

    #[test]
    fn what_all_consumers_hold_is_shown() {
        let held = Gauge::default();
        let budget = ByteBudget::shown_by(held.clone());
        let (one, other) = (budget.share(1000), budget.share(1000));
        one.take(900);
        other.take(20);
        one.give_back(400);
        assert_eq!(held.get(), 520);
    }

    #[test]
    fn one_consumer_has_all_of_it() {
        let budget = ByteBudget::default();
        let share = budget.share(1000);
        assert_eq!(available(&share), 1000);
        share.take(900);
        assert_eq!(available(&share), 100);
        share.take(200);
        assert_eq!(available(&share), 0);
        share.give_back(1100);
        assert_eq!(available(&share), 1000);
    }

    #[test]
    fn each_of_several_has_its_part_and_may_have_of_the_rest() {
        let budget = ByteBudget::default();
        let [greedy, other, small] = [1000, 1000, 100].map(|limit| budget.share(limit));
        // 166 each, and a third of the other 502.
        assert_eq!([&greedy, &other, &small].map(available), [333, 333, 100]);
        greedy.take(668);
        assert_eq!([&greedy, &other, &small].map(available), [0, 166, 100]);
        greedy.give_back(600);
        assert_eq!([&greedy, &other, &small].map(available), [265, 333, 100]);
    }

    #[test]
    fn what_several_ask_for_at_once_is_no_more_than_there_is() {
        let budget = ByteBudget::default();
        let shares = [(); 4].map(|()| budget.share(1000));
        let mut owed = [0; 4];
        for _ in 0..100 {
            for (share, owed) in shares.iter().zip(&mut owed) {
                *owed += share.reserve(*owed);
                share.owe(*owed);
            }
        }
        let all: usize = owed.iter().sum();
        assert!((900..=1000).contains(&all), "{owed:?}");
        // What arrived is not counted twice, and what did not arrive is free again.
        shares[0].take(owed[0]);
        for share in &shares {
            share.owe(0);
        }
        assert!(available(&shares[1]) > 125);
        shares[0].give_back(owed[0]);
        assert_eq!(available(&shares[0]), 250);
    }
}
