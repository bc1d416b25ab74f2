//! Makes an entry of events, as a projection does. In: events of one key. Out: its entry. Pure.

use super::TestEvent;
use crate::{Projection, StoredEvent, projection};

/// What a projection makes of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projected<E> {
    /// The key's entry; `None` where there is none.
    pub entry: Option<E>,
    /// The sequences of events that could not be applied, and why: each is a dead letter `permanent` of its own delivery. The newest 32 are known.
    pub skipped: Vec<(u64, String)>,
}

/// Makes the entry of one key from its events, as [`Service::project`](crate::Service::project) does. Where a test does not say, their sequences
/// follow each other from 1.
///
/// Events that cannot be decoded are passed over, as in a pod, where each fails in its own delivery.
///
/// ```
/// use jetwright_runtime::{ApplyError, Projection, StoredEvent};
/// use jetwright_runtime::testing::{self, Projected};
/// # #[derive(Clone, PartialEq, prost::Message)] pub struct Paid { #[prost(int64, tag = "1")] amount: i64 }
/// # impl prost::Name for Paid { const NAME: &'static str = "Paid"; const PACKAGE: &'static str = "bank.v1"; }
///
/// struct Balances;
///
/// impl Projection for Balances {
///     type Event = Paid;
///     type Entry = i64;
///     const BUCKET: &'static str = "balances";
///
///     fn key(subject: &str) -> Option<&str> {
///         subject.split('.').nth(1)
///     }
///
///     fn filter(id: &str) -> String {
///         format!("accounts.{id}.>")
///     }
///
///     fn apply(balance: Option<i64>, paid: Paid, _: &StoredEvent) -> Result<Option<i64>, ApplyError> {
///         match paid.amount {
///             0 => Err(ApplyError::new("nothing was paid")),
///             amount => Ok(Some(balance.unwrap_or_default() + amount)),
///         }
///     }
/// }
///
/// let payments = [5, 0, -2].map(|amount| testing::event("accounts.7.paid", &Paid { amount }));
/// let skipped = vec![(2, "nothing was paid".to_owned())];
/// assert_eq!(testing::project::<Balances>(payments), Projected { entry: Some(3), skipped });
/// ```
pub fn project<P: Projection>(events: impl IntoIterator<Item = TestEvent>) -> Projected<P::Entry> {
    let mut last_sequence = 0;
    let mut events: Vec<_> = events
        .into_iter()
        .map(|event| {
            let event = StoredEvent::from(event.or_sequence(last_sequence + 1));
            last_sequence = event.sequence;
            event
        })
        .collect();
    // In the order of the stream, in which a projection reads them.
    events.sort_by_key(|event| event.sequence);
    let (entry, skipped) = projection::fold::<P>(&events);
    Projected { entry, skipped }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ApplyError, testing};

    #[derive(Clone, PartialEq, prost::Message)]
    struct Letter {
        #[prost(string, tag = "1")]
        text: String,
    }

    impl prost::Name for Letter {
        const NAME: &'static str = "Letter";
        const PACKAGE: &'static str = "tests.v1";
    }

    /// The letters of a key, one after another, with their sequences.
    struct Words;

    impl Projection for Words {
        type Event = Letter;
        type Entry = String;
        const BUCKET: &'static str = "words";

        fn key(subject: &str) -> Option<&str> {
            subject.split('.').nth(1)
        }

        fn filter(key: &str) -> String {
            format!("letters.{key}")
        }

        fn apply(
            word: Option<String>,
            letter: Letter,
            stored: &StoredEvent,
        ) -> Result<Option<String>, ApplyError> {
            match letter.text.as_str() {
                "" => Err(ApplyError::new("no letter")),
                "end" => Ok(None),
                text => Ok(Some(word.unwrap_or_default() + text + &stored.sequence.to_string())),
            }
        }
    }

    fn letter(text: &str) -> TestEvent {
        testing::event("letters.7", &Letter { text: text.to_owned() })
    }

    fn projected(entry: Option<&str>, skipped: &[u64]) -> Projected<String> {
        let skipped = skipped.iter().map(|sequence| (*sequence, "no letter".to_owned())).collect();
        Projected { entry: entry.map(str::to_owned), skipped }
    }

    #[test]
    fn events_make_an_entry_in_the_order_of_their_sequences() {
        let events = [letter("b").sequence(4), letter("c"), letter("a").sequence(2)];
        assert_eq!(project::<Words>(events), projected(Some("a2b4c5"), &[]));
    }

    #[test]
    fn what_cannot_be_applied_is_skipped_and_what_cannot_be_decoded_is_passed_over() {
        let unknown = testing::raw_event("letters.7", "tests.v1.Word", "");
        let events = [letter("a"), letter(""), unknown, letter("b")];
        assert_eq!(project::<Words>(events), projected(Some("a1b4"), &[2]));
        assert_eq!(project::<Words>([letter("")]), projected(None, &[1]));
    }

    #[test]
    fn an_entry_may_end() {
        assert_eq!(project::<Words>([letter("a"), letter("end")]), projected(None, &[]));
        assert_eq!(project::<Words>([]), projected(None, &[]));
    }
}
