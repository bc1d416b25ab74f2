//! Loads, decides and appends; after a conflict with another writer, again.

use std::time::Duration;

use tokio::time::sleep;

use super::{Aggregate, AggregateError, Aggregates, Loaded, NewEvent};

/// Maximum decisions before a conflict is returned. Each means that another writer's event was stored.
const MAX_TRIES: u32 = 10;

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
    /// Whether it appended an event; `false` too if one existed already under the message id of the decision, which may be this one,
    /// stored by a try whose response was lost.
    pub appended: bool,
    /// Sequence of that event, or of the newest one; 0 if there is none.
    pub sequence: u64,
}

impl<A: Aggregate> Aggregates<A> {
    /// Loads the aggregate, decides, and appends what was decided. If another event was stored meanwhile, it loads and
    /// decides again, ten times at most. So `decide` must depend on nothing but the state, and change nothing.
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
                Err(conflict) if conflict.is_conflict() && tries < MAX_TRIES => {
                    sleep(pause(tries, rand::random())).await;
                    tries += 1;
                    loaded = self.load(loaded.id()).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The pause after a conflict: none before the first repetition, as most conflicts are one; then longer and longer, so that many
/// writers of one aggregate spread.
fn pause(tries: u32, jitter: f64) -> Duration {
    if tries == 1 { Duration::ZERO } else { Duration::from_millis(1 << tries.min(7)).mul_f64(jitter) }
}
