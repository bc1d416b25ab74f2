//! Threads of a handler's own, on which its attempts run. A handler that blocks its thread holds up attempts of the same handler alone:
//! acknowledgements, other handlers, HTTP and the stop run elsewhere.

mod watchdog;

use std::{future::Future, io, panic::AssertUnwindSafe, sync::Arc, task::Poll, thread};

use async_channel::{Receiver, Sender};
use futures::{FutureExt, poll};
use tokio::{
    runtime::{Builder, Runtime},
    sync::mpsc,
};

pub(crate) use self::watchdog::Watchdog;
use self::watchdog::Watched;

/// Threads of each handler, where the machine has fewer cores: one that blocks leaves another.
const MIN_THREADS: usize = 2;

/// Something panicked that no handler is: a fault of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an attempt panicked outside of its handler")]
pub(super) struct WorkerPanic;

/// The threads of one handler.
pub(super) struct Workers<J, R> {
    jobs: Sender<J>,
    results: mpsc::UnboundedReceiver<Result<R, WorkerPanic>>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl<J: Send + 'static, R: Send + 'static> Workers<J, R> {
    /// Starts the threads. Each job is begun in the order of [`begin`](Self::begin), as many at once as there are threads; one that has
    /// to wait for something makes room for the next.
    ///
    /// # Errors
    ///
    /// The system gives no threads.
    pub(super) fn start<F>(
        name: &'static str,
        watchdog: &Arc<Watchdog>,
        work: impl Fn(J) -> F + Clone + Send + Sync + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = R> + Send + 'static,
    {
        let threads =
            thread::available_parallelism().map_or(MIN_THREADS, |cores| cores.get().max(MIN_THREADS));
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name(format!("handler {name}"))
            .enable_all()
            .build()?;
        let (jobs, queue) = async_channel::unbounded();
        let (done, results) = mpsc::unbounded_channel();
        for _ in 0..threads {
            let (queue, done) = (queue.clone(), done.clone());
            let (watchdog, work) = (Arc::clone(watchdog), work.clone());
            runtime.spawn(work_off(queue, done, watchdog, work));
        }
        Ok(Self { jobs, results, runtime: Some(runtime) })
    }

    /// Has a job begun when a thread is free.
    pub(super) fn begin(&self, job: J) {
        // Refused only while this is dropped.
        let _ = self.jobs.try_send(job);
    }

    /// The next result. May be dropped and called again without loss.
    pub(super) async fn next(&mut self) -> Option<Result<R, WorkerPanic>> {
        self.results.recv().await
    }

    /// A result that is there already.
    pub(super) fn try_next(&mut self) -> Option<Result<R, WorkerPanic>> {
        self.results.try_recv().ok()
    }
}

impl<J, R> Drop for Workers<J, R> {
    fn drop(&mut self) {
        // What waits is dropped; a thread that is blocked is left behind, since nothing can end it.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Begins one job after another. Most jobs end when they are polled first; one that does not goes on as a task of its own.
async fn work_off<J, R, F>(
    queue: Receiver<J>,
    done: mpsc::UnboundedSender<Result<R, WorkerPanic>>,
    watchdog: Arc<Watchdog>,
    work: impl Fn(J) -> F,
) where
    R: Send + 'static,
    F: Future<Output = R> + Send + 'static,
{
    while let Ok(job) = queue.recv().await {
        let attempt = AssertUnwindSafe(work(job)).catch_unwind().map(|ended| ended.map_err(|_| WorkerPanic));
        let mut working = Watched::new(attempt, Arc::clone(&watchdog));
        match poll!(&mut working) {
            Poll::Ready(result) => drop(done.send(result)),
            Poll::Pending => {
                let done = done.clone();
                tokio::spawn(async move { drop(done.send(working.await)) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use super::*;

    fn workers<F>(work: impl Fn(u32) -> F + Clone + Send + Sync + 'static) -> Workers<u32, u32>
    where
        F: Future<Output = u32> + Send + 'static,
    {
        Workers::start("tests", &Arc::new(Watchdog::new("tests", Duration::from_mins(1))), work).unwrap()
    }

    #[tokio::test]
    async fn every_job_is_done_whether_it_waits_or_not() {
        let mut workers = workers(|job| async move {
            if job % 3 == 0 {
                tokio::time::sleep(Duration::from_millis(u64::from(job % 7))).await;
            }
            job
        });
        (0..200).for_each(|job| workers.begin(job));
        let mut done = BTreeSet::new();
        while done.len() < 200 {
            done.extend(workers.next().await.map(Result::unwrap));
        }
        assert!(workers.try_next().is_none());
    }

    #[tokio::test]
    async fn a_job_that_panics_is_told_and_others_go_on() {
        let mut workers = workers(|job| async move {
            assert_ne!(job, 1, "no such job");
            job
        });
        (0..3).for_each(|job| workers.begin(job));
        let mut done = BTreeSet::new();
        let mut panics = 0;
        while done.len() + panics < 3 {
            match workers.next().await.unwrap() {
                Ok(job) => drop(done.insert(job)),
                Err(WorkerPanic) => panics += 1,
            }
        }
        assert_eq!((done, panics), (BTreeSet::from([0, 2]), 1));
    }

    #[tokio::test]
    async fn a_job_that_blocks_its_thread_holds_up_neither_the_caller_nor_all_others() {
        let mut workers = workers(|job| async move {
            if job == 0 {
                thread::sleep(Duration::from_hours(1));
            }
            job
        });
        (0..20).for_each(|job| workers.begin(job));
        let mut done = BTreeSet::new();
        while done.len() < 19 {
            done.extend(workers.next().await.map(Result::unwrap));
        }
        assert!(!done.contains(&0));
    }
}
