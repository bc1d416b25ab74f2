//! Attempts: each delivery begins when it may, on the desk's own task or on one of its own, and again later where it is tried again in
//! its place.

use std::{mem, sync::Arc, task::Poll, time::Duration};

use futures::{FutureExt, poll};
use tokio::time::Instant;

use super::{
    super::{
        acknowledge::GIVEN_BACK,
        attempt::{Delivery, Next, process},
    },
    Desk, Held, State, Worked,
};
use crate::Handler;

/// A handler that keeps its thread for longer than this is given threads of its own, for the next so many events.
const LONG: Duration = Duration::from_micros(100);
pub(super) const APART: u32 = 64;
/// One that keeps it for longer than this keeps others from being told of: it is given threads of its own for much longer, and for
/// twice as long each time, up to a bound.
const MUCH_TOO_LONG: Duration = Duration::from_millis(10);
pub(super) const FAR_APART: u32 = 16 * 1024;
const FARTHEST_APART: u32 = 1024 * 1024;
/// Longest time between two attempts in one place. Timers have a bound, and what was meant beyond that hardly waits for its time.
const LONGEST_PAUSE: Duration = Duration::from_hours(24 * 365);

impl<H: Handler> Desk<H> {
    /// Begins what waited for its turn. When the program ends there may not be time for all of it: the rest is given back in its order.
    pub(super) async fn begin_next(&mut self, place: usize) {
        let Some(held) = self.held.get_mut(place) else { return };
        let State::Waiting(delivery) = mem::replace(&mut held.state, State::Working) else { return };
        if held.incarnation != *self.incarnation.borrow() {
            return self.drop_predecessors(place);
        }
        let returned = held.lane.is_some_and(|lane| self.returned.contains(&lane));
        if returned || self.last_begin.is_some_and(|last| Instant::now() > last) {
            self.settle(place, &GIVEN_BACK).await;
        } else {
            self.begin(place, *delivery).await;
        }
    }

    /// Begins at once, and goes on with it elsewhere only if it has to wait for something: most do not, or keep no thread long.
    pub(super) async fn begin(&mut self, place: usize, delivery: Delivery) {
        let mut work = Box::pin(process(Arc::clone(&self.consumption), delivery));
        if self.apart > 0 {
            self.apart -= 1;
            self.working.spawn(async move {
                let begun = Instant::now();
                let first = poll!(&mut work);
                let kept_thread = begun.elapsed();
                let next = match first {
                    Poll::Ready(next) => next,
                    Poll::Pending => work.await,
                };
                Worked { place, next, kept_thread }
            });
            return;
        }
        let begun = Instant::now();
        let next = (&mut work).now_or_never();
        self.learn(begun.elapsed());
        match next {
            Some(next) => self.go_on(place, next).await,
            None => drop(
                self.working
                    .spawn(async move { Worked { place, next: work.await, kept_thread: Duration::ZERO } }),
            ),
        }
    }

    /// A handler kept its thread for so long.
    pub(super) fn learn(&mut self, kept_thread: Duration) {
        if kept_thread > MUCH_TOO_LONG {
            if self.apart < FAR_APART {
                self.apart = self.far_apart;
                self.far_apart = (self.far_apart * 2).min(FARTHEST_APART);
            }
        } else if kept_thread > LONG {
            self.apart = self.apart.max(APART);
        }
    }

    /// After an attempt.
    pub(super) async fn go_on(&mut self, place: usize, next: Next) {
        match next {
            Next::Settle(settlement) => self.settle(place, &settlement).await,
            Next::Again { .. } if self.last_begin.is_some() => self.settle(place, &GIVEN_BACK).await,
            Next::Again { after, delivery } => self.pause(place, after, delivery),
        }
    }

    /// Others have the room of what is tried again later.
    fn pause(&mut self, place: usize, after: Duration, delivery: Box<Delivery>) {
        let Some(held) = self.held.get_mut(place) else { return };
        let pause = self.pauses.insert(place, after.min(LONGEST_PAUSE));
        held.state = State::Paused(delivery, pause);
        if let Some((lane, lanes)) = held.lane.zip(self.lanes.as_mut()) {
            self.next.extend(lanes.pause(lane));
        }
    }

    /// The time of a pause is over.
    pub(super) fn resume(&mut self, place: usize) {
        let paused = |held: &&mut Held| matches!(held.state, State::Paused(..));
        let Some(held) = self.held.get_mut(place).filter(paused) else { return };
        let State::Paused(delivery, _) = mem::replace(&mut held.state, State::Working) else { return };
        held.state = State::Waiting(delivery);
        if let Some((lane, lanes)) = held.lane.zip(self.lanes.as_mut())
            && lanes.resume(lane, place)
        {
            self.next.push_back(place);
        }
    }

    /// The program ends before their time.
    pub(super) async fn give_back_paused(&mut self) {
        self.pauses.clear();
        let paused = |(place, held): (usize, &Held)| matches!(held.state, State::Paused(..)).then_some(place);
        for place in self.held.iter().filter_map(paused).collect::<Vec<_>>() {
            self.settle(place, &GIVEN_BACK).await;
        }
    }
}
