//! What was seen of a stream or consumer, and is still known when its marks are wiped or it is gone. In memory: a restart or a change of
//! leader forgets it. Decides nothing.

use std::time::Duration;

use jetwright_crds::marks::{OWNER, UID};
use tokio::time::Instant;

use super::config::Config;

/// How long JetStream has to say that there is nothing until a request that it did not answer makes nothing any more: it works at several
/// requests at once, and a server that stood still at all that came meanwhile.
const SETTLING_TIME: Duration = Duration::from_secs(5);

/// What was seen of one stream or consumer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    mark: Option<Mark>,
    highest: Option<Highest>,
    refusal: Option<Refusal>,
    unanswered: Option<Unanswered>,
}

/// JetStream was asked to make, change or delete it, and has not said what became of that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unanswered {
    /// Since when it has said that it does not exist.
    absent_since: Option<Instant>,
}

/// JetStream did not give a stream the replicas that are preferred.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refusal {
    /// The uid and generation of the object that asked.
    declaration: (String, i64),
    why: String,
    at: Instant,
}

/// The owner that the metadata named when they did last.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    /// Tells the one from another one of the same name.
    created: String,
    owner: String,
}

/// The highest sequence of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Highest {
    /// Of the object that the stream is or was.
    uid: String,
    sequence: u64,
}

impl History {
    /// Takes note of what JetStream says; `last_sequence` is a stream's. What no object owns has no meaning to one that creates it again.
    pub fn observe(&mut self, config: &Config, created: &str, last_sequence: Option<u64>) {
        if let Some(unanswered) = &mut self.unanswered {
            unanswered.absent_since = None;
        }
        let metadata = config.metadata();
        if let Some(owner) = metadata.get(OWNER) {
            self.mark = Some(Mark { created: created.to_owned(), owner: (*owner).to_owned() });
        }
        let (Some(uid), Some(sequence)) = (metadata.get(UID), last_sequence) else { return };
        match &mut self.highest {
            Some(highest) if highest.uid == **uid => highest.sequence = highest.sequence.max(sequence),
            highest => *highest = Some(Highest { uid: (*uid).to_owned(), sequence }),
        }
    }

    /// Takes note of a request that changes it, and returns what was open before, for when it is answered.
    pub fn ask(&mut self) -> Option<Unanswered> {
        self.unanswered.replace(Unanswered::default())
    }

    /// JetStream answered the request; this was open before.
    pub fn answered(&mut self, before: Option<Unanswered>) {
        self.unanswered = before;
    }

    /// Of what does not exist, as JetStream says now: how long a request that it did not answer may make it yet; None where nothing does.
    pub fn settling(&mut self) -> Option<Duration> {
        let since = *self.unanswered.as_mut()?.absent_since.get_or_insert_with(Instant::now);
        let left = SETTLING_TIME.checked_sub(since.elapsed()).filter(|left| !left.is_zero());
        if left.is_none() {
            self.unanswered = None;
        }
        left
    }

    /// Takes note that JetStream refused what this generation of an object prefers.
    pub fn refuse(&mut self, (uid, generation): (&str, i64), why: String) {
        let declaration = (uid.to_owned(), generation);
        self.refusal = Some(Refusal { declaration, why, at: Instant::now() });
    }

    /// Why JetStream refused what this generation of an object prefers; None where it may be asked.
    #[must_use]
    pub fn refusal(&self, (uid, generation): (&str, i64)) -> Option<&str> {
        let refusal = self.refusal.as_ref()?;
        (refusal.declaration.0 == uid && refusal.declaration.1 == generation).then_some(refusal.why.as_str())
    }

    /// Forgets a refusal that is at least this old.
    pub fn forget_refusal(&mut self, age: Duration) {
        self.refusal.take_if(|refusal| refusal.at.elapsed() >= age);
    }

    /// The owner that was seen on the one that was created at this time.
    #[must_use]
    pub fn mark_at(&self, created: &str) -> Option<&str> {
        self.mark.as_ref().filter(|mark| mark.created == created).map(|mark| mark.owner.as_str())
    }

    /// The highest sequence that the stream was seen to have while it was this object's; None where it never was.
    #[must_use]
    pub fn highest_sequence(&self, uid: &str) -> Option<u64> {
        self.highest.as_ref().filter(|highest| highest.uid == uid).map(|highest| highest.sequence)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(uid: Option<&str>) -> Config {
        Config::default().with("metadata", uid.map_or(json!({}), |uid| json!({ UID: uid })))
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_holds_for_its_declaration_until_it_is_old() {
        let mut history = History::default();
        history.refuse(("a", 1), "too few".into());
        assert_eq!(history.refusal(("a", 1)), Some("too few"));
        assert_eq!((history.refusal(("a", 2)), history.refusal(("b", 1))), (None, None));
        let age = Duration::from_mins(10);
        history.forget_refusal(age);
        assert!(history.refusal(("a", 1)).is_some());
        tokio::time::advance(age).await;
        history.forget_refusal(age);
        assert_eq!(history.refusal(("a", 1)), None);
    }

    #[test]
    fn the_highest_is_kept_whatever_comes_later_until_it_is_another_objects() {
        let mut history = History::default();
        for (uid, last) in [(Some("a"), 7), (Some("a"), 3), (None, 900)] {
            history.observe(&config(uid), "10:00", Some(last));
        }
        assert_eq!((history.highest_sequence("a"), history.highest_sequence("b")), (Some(7), None));
        history.observe(&config(Some("b")), "10:00", Some(2));
        assert_eq!((history.highest_sequence("a"), history.highest_sequence("b")), (None, Some(2)));
    }
}
