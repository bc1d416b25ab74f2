//! The threads of one handler, and how many attempts they may have at once, for all the sources of its events in this process.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit},
    task::spawn,
    time::sleep,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    attempt::{AttemptResult, Delivery, process},
    runner::HandlerRunner,
    workers::{Threads, Workers},
};
use crate::{Handler, partitions::Tenure};

/// Maximum time before all the room is asked for.
const MAX_DELAY_ALONE: Duration = Duration::from_millis(50);

/// One attempt.
pub(super) struct Job {
    pub(super) slot: usize,
    pub(super) delivery: Box<Delivery>,
    /// The right to make it, where one is needed.
    pub(super) tenure: Option<Arc<Tenure>>,
}

/// An attempt that ended.
pub(super) struct Attempted {
    pub(super) slot: usize,
    /// `None` if it did not begin, or was interrupted, since this process may not act for its partition now.
    pub(super) result: Option<AttemptResult>,
    pub(super) delivery: Box<Delivery>,
}

/// The threads of one handler.
pub(crate) struct HandlerPool {
    threads: Arc<Threads<Job, Attempted>>,
    /// Attempts that may begin, over all sources; `None` where there is one, which counts for itself.
    room: Option<Arc<Semaphore>>,
    /// The room while nothing runs.
    concurrency: u32,
}

/// All the room of a pool, for one attempt that runs alone.
pub(super) enum AllRoom {
    Awaited(AbortOnDropHandle<Option<OwnedSemaphorePermit>>),
    /// Nothing else runs until this is dropped.
    Taken {
        _permits: Option<OwnedSemaphorePermit>,
    },
}

impl HandlerPool {
    /// Starts the threads. `is_shared` says whether there are several sources.
    ///
    /// # Errors
    ///
    /// The system gives the handler no threads.
    pub(crate) fn start<H: Handler>(runner: &Arc<HandlerRunner<H>>, is_shared: bool) -> io::Result<Self> {
        let of_attempts = Arc::clone(runner);
        let threads =
            Threads::start(runner.name, &runner.watchdog, move |Job { slot, delivery, tenure }, now| {
                let runner = Arc::clone(&of_attempts);
                async move {
                    // It may have waited for a thread.
                    if tenure.as_ref().is_some_and(|tenure| !tenure.may_begin()) {
                        return Attempted { slot, result: None, delivery };
                    }
                    let (result, delivery) = process(runner, delivery, now.into(), tenure.as_deref()).await;
                    Attempted { slot, result, delivery }
                }
            })?;
        let concurrency = runner.options.concurrency.max(1);
        let permits = usize::try_from(concurrency).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let room = is_shared.then(|| Arc::new(Semaphore::new(permits)));
        Ok(Self { threads: Arc::new(threads), room, concurrency })
    }

    /// Whether there are several sources.
    pub(super) fn is_shared(&self) -> bool {
        self.room.is_some()
    }

    /// The work of one source.
    pub(super) fn workers(&self) -> Workers<Job, Attempted> {
        Workers::of(&self.threads)
    }

    /// Takes room for one attempt, if there is any.
    pub(super) fn try_take_room(&self) -> bool {
        self.room.as_ref().is_none_or(|room| room.try_acquire().map(SemaphorePermit::forget).is_ok())
    }

    /// Waits for room for one attempt, and takes it. Cancel safe.
    pub(super) async fn room(&self) {
        if let Some(room) = &self.room
            // Never closed.
            && let Ok(permit) = room.acquire().await
        {
            permit.forget();
        }
    }

    /// Asks for all the room; `None` where there is one source. Others begin nothing from then on.
    ///
    /// Which source is first differs each time: an event that ends its process keeps none of another source from ever being handled.
    pub(super) fn all_room(&self) -> Option<AllRoom> {
        let (room, concurrency) = (Arc::clone(self.room.as_ref()?), self.concurrency);
        let asking = async move {
            sleep(MAX_DELAY_ALONE.mul_f64(rand::random())).await;
            // Never closed.
            room.acquire_many_owned(concurrency).await.ok()
        };
        Some(AllRoom::Awaited(AbortOnDropHandle::new(spawn(asking))))
    }

    /// An attempt ended, or did not begin.
    pub(super) fn give_room_back(&self) {
        if let Some(room) = &self.room {
            room.add_permits(1);
        }
    }
}

/// Waits until all the room is taken, if it was asked for. Cancel safe.
pub(super) async fn taken(room: &mut Option<AllRoom>) {
    match room {
        Some(AllRoom::Awaited(asking)) => {
            *room = Some(AllRoom::Taken { _permits: asking.await.ok().flatten() });
        }
        _ => std::future::pending().await,
    }
}
