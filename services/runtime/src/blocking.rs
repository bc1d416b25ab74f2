//! Code of handlers that blocks its thread. Nothing can end it, so an ordered event that has begun some has not ended before it: the next event
//! of its key would run beside it.

use std::{cell::OnceCell, future::Future, pin::Pin};

use tokio::{task::futures::TaskLocalFuture, task::spawn_blocking, task_local};
use tokio_util::task::TaskTracker;

use crate::HandlerError;

task_local! {
    /// What the attempt that runs here has begun. Most begin nothing.
    static BEGUN: OnceCell<TaskTracker>;
}

/// Runs code that blocks its thread, such as a driver without async or a long computation, on a thread where it blocks no event.
///
/// A handler that blocks its own thread delays other events of the same handler, and one that does so for more than 5 s
/// beyond its deadline fails liveness, so that Kubernetes restarts its process. The code runs to its end even if the attempt ends at its deadline.
/// With `ordering: PerKey` the event ends with it: until then neither its next attempt nor the next event of its key begins, and the
/// partition goes to no other process. Code that runs for more than 5 s beyond the deadline fails liveness then.
///
/// ```
/// # async fn handle() -> Result<(), jetwright_runtime::HandlerError> {
/// let sum = jetwright_runtime::blocking(|| (1..=1_000_000_u64).sum::<u64>()).await?;
/// # assert_eq!(sum, 500_000_500_000);
/// # Ok(())
/// # }
/// # tokio::runtime::Runtime::new().unwrap().block_on(handle()).unwrap();
/// ```
///
/// # Errors
///
/// [`HandlerError::Transient`] if the code panics.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, HandlerError> {
    let running = BEGUN.try_with(|begun| begun.get_or_init(TaskTracker::new).token()).ok();
    let work = move || {
        let _running = running;
        work()
    };
    spawn_blocking(work)
        .await
        .map_err(|error| HandlerError::transient(format_args!("blocking code failed: {error}")))
}

/// An attempt, of which is known what blocking code it has begun.
pub(crate) type Tracked<F> = TaskLocalFuture<OnceCell<TaskTracker>, F>;

pub(crate) fn tracked<F: Future>(attempt: F) -> Tracked<F> {
    BEGUN.scope(OnceCell::new(), attempt)
}

/// The blocking code that an attempt has begun and that still runs.
pub(crate) fn running<F: Future>(attempt: Pin<&mut Tracked<F>>) -> Option<TaskTracker> {
    let begun = attempt.take_value()?.into_inner()?;
    begun.close();
    Some(begun).filter(|begun| !begun.is_empty())
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, sync::mpsc, time::Duration};

    use futures::FutureExt as _;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn code_that_outlives_its_attempt_is_known_until_it_ends() {
        let (end, until) = mpsc::channel::<()>();
        let mut attempt = pin!(tracked(async {
            let code = blocking(move || until.recv());
            assert!(timeout(Duration::from_millis(20), code).await.is_err());
        }));
        attempt.as_mut().await;
        let running = running(attempt).expect("the code runs");
        assert!(running.wait().now_or_never().is_none());
        end.send(()).unwrap();
        running.wait().await;
    }

    #[tokio::test]
    async fn an_attempt_whose_code_has_ended_waits_for_nothing() {
        let mut attempt = pin!(tracked(async { blocking(|| 1).await.unwrap() }));
        assert_eq!(attempt.as_mut().await, 1);
        assert!(running(attempt).is_none());
        let mut without = pin!(tracked(async {}));
        without.as_mut().await;
        assert!(running(without).is_none());
        let outside: Result<(), _> = blocking(|| panic!("of a test")).await;
        assert!(outside.is_err());
    }
}
