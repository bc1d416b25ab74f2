//! How many bytes a process holds of events, over all of its consumers. Pure.
//!
//! Half of the budget is shared out: each consumer has its part of it whatever the others hold. The other half is for whoever comes
//! first. So all of them together never hold more, and none can starve another.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// The budget of one process. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ByteBudget(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Bytes of the largest limit among the consumers.
    limit: AtomicUsize,
    consumers: AtomicUsize,
    /// Bytes that consumers hold beyond their own parts.
    borrowed: AtomicUsize,
}

/// What one consumer holds of the budget.
#[derive(Debug)]
pub(crate) struct ByteShare {
    budget: ByteBudget,
    /// The most that this consumer may hold.
    limit: usize,
    held: AtomicUsize,
    borrowed: AtomicUsize,
}

impl ByteBudget {
    /// Adds a consumer that may hold so many bytes. The process may hold as many as the consumer that may hold most.
    pub(crate) fn share(&self, limit: usize) -> ByteShare {
        self.0.limit.fetch_max(limit, Ordering::Relaxed);
        self.0.consumers.fetch_add(1, Ordering::Relaxed);
        ByteShare { budget: self.clone(), limit, held: AtomicUsize::new(0), borrowed: AtomicUsize::new(0) }
    }

    fn limit(&self) -> usize {
        self.0.limit.load(Ordering::Relaxed)
    }

    /// What each consumer may hold whatever the others do.
    fn own_part(&self) -> usize {
        self.limit() / 2 / self.0.consumers.load(Ordering::Relaxed).max(1)
    }

    fn free(&self) -> usize {
        let pool = self.limit() - self.own_part() * self.0.consumers.load(Ordering::Relaxed);
        pool.saturating_sub(self.0.borrowed.load(Ordering::Relaxed))
    }
}

impl ByteShare {
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// How many bytes more may be held.
    pub(crate) fn available(&self) -> usize {
        let (held, own_part) = (self.held(), self.budget.own_part());
        let available = own_part.saturating_sub(held) + self.budget.free();
        available.min(self.limit.saturating_sub(held))
    }

    /// So many bytes came. They are held even where they are more than there was room for.
    pub(crate) fn take(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.settle_borrowed();
    }

    /// So many are held no more.
    pub(crate) fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.settle_borrowed();
    }

    /// Brings what counts as borrowed up to what is held. Two threads that do so at once may leave it off by what they moved, until the
    /// next change.
    fn settle_borrowed(&self) {
        let borrowed = self.held().saturating_sub(self.budget.own_part());
        let before = self.borrowed.swap(borrowed, Ordering::Relaxed);
        let all = &self.budget.0.borrowed;
        if borrowed > before {
            all.fetch_add(borrowed - before, Ordering::Relaxed);
        } else {
            all.fetch_sub(before - borrowed, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_consumer_has_all_of_it() {
        let budget = ByteBudget::default();
        let share = budget.share(1000);
        assert_eq!(share.available(), 1000);
        share.take(900);
        assert_eq!(share.available(), 100);
        share.take(200);
        assert_eq!(share.available(), 0);
        share.give_back(1100);
        assert_eq!(share.available(), 1000);
    }

    #[test]
    fn each_of_several_has_its_part_and_one_may_have_the_rest() {
        let budget = ByteBudget::default();
        let [greedy, other, small] = [1000, 1000, 100].map(|limit| budget.share(limit));
        assert_eq!([&greedy, &other, &small].map(ByteShare::available), [668, 668, 100]);
        greedy.take(668);
        assert_eq!([&greedy, &other, &small].map(ByteShare::available), [0, 166, 100]);
        other.take(166);
        greedy.give_back(600);
        assert_eq!([&greedy, &other].map(ByteShare::available), [600, 502]);
        let held = [&greedy, &other, &small].map(ByteShare::held).iter().sum::<usize>();
        assert!(held <= 1000);
    }
}
