//! A handler's own threads, on which its attempts run. A handler that blocks its thread delays attempts of the same handler alone:
//! acknowledgements, other handlers, HTTP and the stop run elsewhere.

mod queue;
mod watchdog;

use std::{
    future::{Future, poll_fn},
    io, mem,
    panic::AssertUnwindSafe,
    sync::Arc,
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use futures::FutureExt;
use tokio::{
    runtime::{Builder, Runtime},
    task::yield_now,
};
use tokio_util::sync::ReusableBoxFuture;

pub(crate) use self::watchdog::Watchdog;
use self::{
    queue::{Announcements, Jobs, Results},
    watchdog::Watched,
};

/// Minimum threads of each handler, on machines with fewer cores: one that blocks leaves another.
const MIN_THREADS: usize = 2;
/// How long a thread begins one job after another before it turns to those that wait for something, and to the timers and sockets that
/// wake them: nothing else on it runs meanwhile.
const MAX_TURN: Duration = Duration::from_millis(1);

/// Code other than a handler panicked: a bug of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an attempt panicked outside of its handler")]
pub(super) struct WorkerPanic;

type JobResult<R> = Result<R, WorkerPanic>;

/// A job, and where its result goes.
type Assigned<J, R> = (J, Arc<Results<JobResult<R>>>);

/// The threads of one handler.
pub(super) struct Threads<J, R> {
    jobs: Arc<Jobs<Assigned<J, R>>>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl<J: Send + 'static, R: Send + 'static> Threads<J, R> {
    /// Starts the threads. Each job begins in the order of [`begin`](Workers::begin), as many at once as there are threads; one that has
    /// to wait for something makes room for the next. `work` receives the time too: each reading of a clock counts here.
    ///
    /// # Errors
    ///
    /// The system gives no threads.
    pub(super) fn start<F>(
        name: &'static str,
        watchdog: &Arc<Watchdog>,
        work: impl Fn(J, Instant) -> F + Clone + Send + Sync + 'static,
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
        let jobs = Arc::<Jobs<Assigned<J, R>>>::default();
        for _ in 0..threads {
            let worker = Worker {
                jobs: Arc::clone(&jobs),
                unannounced: Vec::new(),
                watchdog: Arc::clone(watchdog),
                work: work.clone(),
                attempt: None,
            };
            runtime.spawn(worker.run());
        }
        Ok(Self { jobs, runtime: Some(runtime) })
    }
}

/// What one source of a handler's events has its threads do. Sources share the threads.
pub(super) struct Workers<J, R> {
    /// Jobs that are not handed over yet.
    new: Vec<Assigned<J, R>>,
    results: Arc<Results<JobResult<R>>>,
    threads: Arc<Threads<J, R>>,
}

impl<J: Send + 'static, R: Send + 'static> Workers<J, R> {
    pub(super) fn of(threads: &Arc<Threads<J, R>>) -> Self {
        Self { new: Vec::new(), results: Arc::default(), threads: Arc::clone(threads) }
    }

    /// Queues a job for a free thread, after [`hand_over`](Self::hand_over).
    pub(super) fn begin(&mut self, job: J) {
        self.new.push((job, Arc::clone(&self.results)));
    }

    /// Hands new jobs over to the threads.
    pub(super) fn hand_over(&mut self) {
        self.threads.jobs.extend(&mut self.new);
    }

    /// Waits until there are results. Cancel safe.
    pub(super) async fn ended(&self) {
        self.results.announced().await;
    }

    /// Puts the results so far into `room`, which is empty and is filled next time.
    pub(super) fn take_results(&self, room: &mut Vec<JobResult<R>>) {
        self.results.swap(room);
    }
}

impl<J, R> Drop for Threads<J, R> {
    fn drop(&mut self) {
        // Waiting jobs are dropped; a blocked thread is left behind, since nothing can end it.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One thread, which begins one job after another.
struct Worker<J, R, W> {
    jobs: Arc<Jobs<Assigned<J, R>>>,
    /// Where results wait to be announced.
    unannounced: Vec<Arc<Results<JobResult<R>>>>,
    watchdog: Arc<Watchdog>,
    work: W,
    /// Room for the next attempt, or `None` after one that continues elsewhere: attempts are large, and most end at once.
    attempt: Option<ReusableBoxFuture<'static, JobResult<R>>>,
}

impl<J, R, F, W> Worker<J, R, W>
where
    J: Send + 'static,
    R: Send + 'static,
    F: Future<Output = R> + Send + 'static,
    W: Fn(J, Instant) -> F,
{
    async fn run(mut self) {
        let mut announcements = Announcements::new(Instant::now());
        loop {
            let job = self.jobs.next().await;
            let began = Instant::now();
            announcements.resumed(began);
            let are_left = self.take_turn(job, began, &mut announcements).await;
            if announcements.idle() {
                self.announce();
            }
            if are_left {
                yield_now().await;
            }
        }
    }

    /// Does this job and those after it, until there is none or the turn is over; returns whether some may be left.
    async fn take_turn(
        &mut self,
        first: Assigned<J, R>,
        began: Instant,
        announcements: &mut Announcements,
    ) -> bool {
        let (mut next, mut now) = (Some(first), began);
        while let Some((job, results)) = next {
            let result = self.begin(job, &results, now).await;
            now = Instant::now();
            if let Some(result) = result {
                results.add(result);
                if !self.unannounced.iter().any(|other| Arc::ptr_eq(other, &results)) {
                    self.unannounced.push(results);
                }
                if announcements.ended(now) {
                    self.announce();
                }
            }
            if now.saturating_duration_since(began) > MAX_TURN {
                return true;
            }
            next = self.jobs.try_next();
        }
        false
    }

    fn announce(&mut self) {
        self.unannounced.drain(..).for_each(|results| results.announce());
    }

    /// Begins a job. Most end when they are polled first; one that does not continues as a task of its own.
    async fn begin(
        &mut self,
        job: J,
        results: &Arc<Results<JobResult<R>>>,
        now: Instant,
    ) -> Option<JobResult<R>> {
        let attempt = AssertUnwindSafe((self.work)(job, now)).catch_unwind();
        let attempt = attempt.map(|ended| ended.map_err(|_| WorkerPanic));
        match &mut self.attempt {
            Some(room) => room.set(attempt),
            None => self.attempt = Some(ReusableBoxFuture::new(attempt)),
        }
        let running = self.attempt.as_mut()?;
        let polled = poll_fn(|context| Poll::Ready(self.watchdog.watch_poll(|| running.poll(context))));
        if let Poll::Ready(result) = polled.await {
            return Some(result);
        }
        let attempt = Watched::new(mem::take(&mut self.attempt)?, Arc::clone(&self.watchdog));
        let results = Arc::clone(results);
        tokio::spawn(async move {
            results.add(attempt.await);
            results.announce();
        });
        None
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, ops::Range};

    use super::*;

    fn workers<F>(work: impl Fn(u32) -> F + Clone + Send + Sync + 'static) -> Workers<u32, u32>
    where
        F: Future<Output = u32> + Send + 'static,
    {
        let watchdog = Arc::new(Watchdog::new("tests", Duration::from_mins(1)));
        let threads = Threads::start("tests", &watchdog, move |job, _| work(job)).unwrap();
        Workers::of(&Arc::new(threads))
    }

    fn begin_all(workers: &mut Workers<u32, u32>, jobs: Range<u32>) {
        jobs.for_each(|job| workers.begin(job));
        workers.hand_over();
    }

    fn results(workers: &Workers<u32, u32>) -> Vec<JobResult<u32>> {
        let mut results = Vec::new();
        workers.take_results(&mut results);
        results
    }

    async fn next(workers: &Workers<u32, u32>) -> Vec<JobResult<u32>> {
        workers.ended().await;
        results(workers)
    }

    #[tokio::test]
    async fn every_job_is_done_whether_it_waits_or_not() {
        let mut workers = workers(|job| async move {
            if job % 3 == 0 {
                tokio::time::sleep(Duration::from_millis(u64::from(job % 7))).await;
            }
            job
        });
        begin_all(&mut workers, 0..200);
        let mut done = BTreeSet::new();
        while done.len() < 200 {
            done.extend(next(&workers).await.into_iter().map(Result::unwrap));
        }
        assert!(results(&workers).is_empty());
    }

    #[tokio::test]
    async fn each_source_has_the_results_of_its_own_jobs() {
        let mut one = workers(|job| async move { job });
        let mut other = Workers::of(&one.threads);
        for round in 0..50 {
            begin_all(&mut one, 100 * round..100 * round + 2);
            begin_all(&mut other, 100 * round + 50..100 * round + 51);
        }
        let mut done = [0, 0];
        while done != [100, 50] {
            let (workers, counted) = if done[0] < 100 { (&one, 0) } else { (&other, 1) };
            for job in next(workers).await.into_iter().map(Result::unwrap) {
                assert_eq!(job % 100 >= 50, counted == 1);
                done[counted] += 1;
            }
        }
    }

    #[tokio::test]
    async fn a_job_that_panics_is_reported_and_others_continue() {
        let mut workers = workers(|job| async move {
            assert_ne!(job, 1, "no such job");
            job
        });
        begin_all(&mut workers, 0..3);
        let mut done = BTreeSet::new();
        let mut panics = 0;
        while done.len() + panics < 3 {
            for result in next(&workers).await {
                match result {
                    Ok(job) => drop(done.insert(job)),
                    Err(WorkerPanic) => panics += 1,
                }
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
        begin_all(&mut workers, 0..20);
        let mut done = BTreeSet::new();
        while done.len() < 19 {
            done.extend(next(&workers).await.into_iter().map(Result::unwrap));
        }
        assert!(!done.contains(&0));
    }
}
