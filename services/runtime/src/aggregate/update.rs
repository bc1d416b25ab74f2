//! Load, decide, append; and where somebody else was faster, again.

use std::time::Duration;

use tokio::time::sleep;

use super::{Aggregate, AggregateError, Aggregates, Loaded, NewEvent};

/// How often it is decided before a conflict is told. Each means that somebody else's event was stored.
const TRIES: u32 = 10;

/// What a decision does to an aggregate, with an output for its caller.
#[derive(Debug)]
pub enum Decision<T> {
    /// Append this event.
    Append(NewEvent, T),
    /// Append nothing.
    NoOp(T),
}

/// What an update did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Updated<T> {
    /// The output of the last decision.
    pub output: T,
    /// Whether it appended an event; `false` too where one was there already under a message id that the decision gave it, which may
    /// be this one, stored by a try whose answer was lost.
    pub appended: bool,
    /// Sequence of that event, or of the newest that was there; 0 where there is none.
    pub sequence: u64,
}

impl<A: Aggregate> Aggregates<A> {
    /// Loads the aggregate, decides, and appends what was decided. Where another event was stored meanwhile, it loads and
    /// decides again, ten times at most. So `decide` looks at nothing but the state, and changes nothing.
    ///
    /// ```no_run
    /// # use jetwright_runtime::{Aggregate, AggregateError, Aggregates, Decision, NewEvent, StoredEvent};
    /// # #[derive(Clone, PartialEq, prost::Message)] pub struct Paid { #[prost(int64, tag = "1")] amount: i64 }
    /// # impl prost::Name for Paid { const NAME: &'static str = "Paid"; const PACKAGE: &'static str = "events.v1"; }
    /// # #[derive(Clone, Default)] struct Account { balance: i64 }
    /// # impl Aggregate for Account { type Event = Paid; fn apply(&mut self, paid: Paid, _: &StoredEvent) { self.balance += paid.amount } }
    /// #[derive(Debug, thiserror::Error)]
    /// enum PaymentError {
    ///     #[error("there are only {0}")]
    ///     Short(i64),
    ///     #[error(transparent)]
    ///     Account(#[from] AggregateError),
    /// }
    ///
    /// async fn pay_out(accounts: &Aggregates<Account>, id: &str, amount: i64) -> Result<i64, PaymentError> {
    ///     let updated = accounts.update(id, |account| {
    ///         let left = account.balance - amount;
    ///         if left < 0 {
    ///             return Err(PaymentError::Short(account.balance));
    ///         }
    ///         Ok(Decision::Append(NewEvent::new("paid", Paid { amount: -amount }), left))
    ///     });
    ///     Ok(updated.await?.output)
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of `decide`, of [`load`](Self::load) and of [`append`](Self::append); a
    /// [`Conflict`](crate::ErrorKind::Conflict) when all tries met one.
    pub async fn update<T, E>(
        &self,
        id: &str,
        decide: impl FnMut(&A) -> Result<Decision<T>, E>,
    ) -> Result<Updated<T>, E>
    where
        E: From<AggregateError>,
    {
        self.update_from(self.load(id).await?, decide).await
    }

    /// As [`update`](Self::update), deciding first on what was loaded already, or is
    /// [assumed](Self::assume_new).
    ///
    /// # Errors
    ///
    /// As of [`update`](Self::update).
    pub async fn update_from<T, E>(
        &self,
        mut loaded: Loaded<A>,
        mut decide: impl FnMut(&A) -> Result<Decision<T>, E>,
    ) -> Result<Updated<T>, E>
    where
        E: From<AggregateError>,
    {
        let mut tries = 1;
        loop {
            let (event, output) = match decide(loaded.state())? {
                Decision::Append(event, output) => (event, output),
                Decision::NoOp(output) => {
                    return Ok(Updated { output, appended: false, sequence: loaded.last_sequence() });
                }
            };
            match self.append(&loaded, event).await.map_err(AggregateError::from) {
                Ok(published) => {
                    let (appended, sequence) = (!published.duplicate, published.sequence);
                    return Ok(Updated { output, appended, sequence });
                }
                Err(conflict) if conflict.is_conflict() && tries < TRIES => {
                    sleep(pause(tries, rand::random())).await;
                    tries += 1;
                    loaded = self.load(loaded.id()).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The pause after a conflict: none before the first repetition, as most conflicts are one; then ever longer, so that a
/// crowd that writes to one aggregate spreads.
fn pause(tries: u32, jitter: f64) -> Duration {
    if tries == 1 { Duration::ZERO } else { Duration::from_millis(1 << tries.min(7)).mul_f64(jitter) }
}
