//! Lets what an object writes of one thing pass, or holds it back while the thing is contested. In: a plan, and what others write. Out: whether
//! to write, and what the object's status says.

use std::time::Duration;

use jetwright_crds::conditions::Reason;
use tokio::time::Instant;

use crate::{
    contest::{Contest, Decision, Rivals, WINDOW},
    object_state::{ObjectKey, ObjectStates},
    outcome::Pending,
};

/// Lets an object's writes of one thing pass, or not.
pub struct WriteGate<'a> {
    pub states: &'a ObjectStates,
    pub object: ObjectKey,
    /// The partition whose thing it is, where the object has one for each.
    pub partition: Option<u32>,
    pub generation: Option<i64>,
    /// What kind of thing it is.
    pub kind: &'static str,
}

impl WriteGate<'_> {
    /// The gate of one partition's thing.
    #[must_use]
    pub fn of_partition(self, partition: Option<u32>) -> Self {
        Self { partition, ..self }
    }

    /// What the status says while nothing is written, whatever JetStream has.
    #[must_use]
    pub fn pause(&self) -> Option<Pending> {
        self.with(|contest| contest.pause(Instant::now())).and_then(|decision| pending(&decision))
    }

    /// Lets a plan pass, with what the status says of it; or does not.
    ///
    /// # Errors
    ///
    /// What the status says instead.
    pub fn pass(&self, writes: bool, rivals: &Rivals) -> Result<Option<Pending>, Pending> {
        let decide = |contest: &mut Contest| {
            let message =
                |contest: &Contest, own, foreign| self.message(contest.twin(), rivals, (own, foreign));
            contest.decide(writes, rivals, Instant::now(), message)
        };
        let decision = self.with(decide);
        match (&decision, pending(&decision)) {
            (Decision::Pause(..), Some(pending)) => Err(pending),
            (_, pending) => Ok(pending),
        }
    }

    /// The thing was written; how long it is until the next decision, where others may have paused.
    #[must_use]
    pub fn wrote(&self) -> Option<Duration> {
        self.with(|contest| contest.wrote(Instant::now()))
    }

    fn with<R>(&self, work: impl FnOnce(&mut Contest) -> R) -> R {
        self.states.with_contest(&self.object, self.partition, |contest| {
            contest.observe(self.generation, Instant::now());
            work(contest)
        })
    }

    fn message(&self, twin: Option<&str>, rivals: &Rivals, (own, foreign): (usize, usize)) -> String {
        let (kind, object) = (self.kind, self.object.kind);
        let other = match &rivals.writes.last {
            Some(writer) => format!("The last other writer is {}", writer.describe()),
            None => "Another operator or tool may write it".to_owned(),
        };
        let remedy = match twin {
            Some(uid) => format!(
                "that is the operator of another Kubernetes cluster with the same --cluster-name, whose {object} of this namespace and name \
                 has the uid {uid}: give each cluster a --cluster-name of its own, or delete one of the two {object}s"
            ),
            None => format!("stop it, or remove the {kind} from this {object}"),
        };
        format!(
            "within a minute, without a change of this {object}, this operator wrote this {kind} {own} times and others {foreign} times; it now \
             writes at most once a minute. {other}; {remedy}"
        )
    }
}

/// What the status says of a decision.
fn pending(decision: &Decision) -> Option<Pending> {
    let (delay, message) = match decision {
        Decision::Allow => return None,
        Decision::AllowOnce(message) => (WINDOW, message.clone()),
        Decision::Pause(delay, message) => (*delay, message.clone()),
    };
    Some(Pending { reason: Reason::Contested, message, stalled: false, requeue_after: Some(delay) })
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::contest::{CONTEST_WRITES, MAX_WRITES, REACTION_TIME, RELAPSE_WINDOW, Writer};

    struct Fight {
        states: ObjectStates,
        rivals: Rivals,
        generation: i64,
    }

    impl Fight {
        fn new() -> Self {
            Self { states: ObjectStates::default(), rivals: Rivals::default(), generation: 1 }
        }

        fn gate(&self) -> WriteGate<'_> {
            let object = ObjectKey { kind: "EventStream", namespace: "shop".into(), name: "orders".into() };
            WriteGate {
                states: &self.states,
                object,
                partition: None,
                generation: Some(self.generation),
                kind: "stream",
            }
        }

        fn foreign_write(&mut self) {
            let writer = Writer { name: Some("nats\ncli".into()), user: Some("app".into()), host: None };
            self.rivals.writes.add(writer);
        }

        /// Whether a write passes; and what is said of it.
        fn write(&self) -> (bool, Option<Pending>) {
            match self.gate().pass(true, &self.rivals) {
                Ok(said) => {
                    let _ = self.gate().wrote();
                    (true, said)
                }
                Err(said) => (false, Some(said)),
            }
        }

        fn rest(&self) -> Option<Pending> {
            match self.gate().pass(false, &self.rivals) {
                Ok(said) => said,
                Err(said) => Some(said),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_twenty_writes_a_minute_are_a_contest() {
        let fight = Fight::new();
        assert!((0..MAX_WRITES).all(|_| fight.write() == (true, None)));
        let (passes, said) = fight.write();
        let said = said.unwrap();
        assert!(!passes && said.reason == Reason::Contested && said.requeue_after == Some(WINDOW));
        assert!(said.message.contains("Another operator or tool"), "{}", said.message);
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_who_take_turns_both_say_so_although_one_of_them_has_what_it_declares() {
        let mut fight = Fight::new();
        for turn in 1..=CONTEST_WRITES {
            assert_eq!(fight.rest(), None, "{turn}");
            fight.foreign_write();
            assert_eq!(fight.gate().pass(true, &fight.rivals), Ok(None));
            assert_eq!(fight.gate().wrote(), (turn == CONTEST_WRITES).then_some(REACTION_TIME));
        }
        let said = fight.rest().unwrap().message;
        assert!(
            said.contains(r#"The last other writer is the client with name "nats\ncli", user "app""#),
            "{said}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn new_generations_and_the_writes_of_others_alone_are_no_contest() {
        let mut fight = Fight::new();
        for generation in 1..100 {
            fight.generation = generation;
            fight.foreign_write();
            assert_eq!(fight.write(), (true, None));
        }
        let mut foreign = Fight::new();
        (0..100).for_each(|_| foreign.foreign_write());
        assert_eq!((foreign.rest(), foreign.write()), (None, (true, None)));
        let slow = Fight::new();
        for _ in 0..100 {
            advance(WINDOW / 18).await;
            assert_eq!(slow.write(), (true, None));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_contest_goes_on_with_a_write_a_minute_until_nobody_changes_the_thing_for_one() {
        let fight = Fight::new();
        while fight.write().0 {}
        for _ in 0..10 {
            // It is said although nothing has to be written, too: the other one has paused.
            assert!(fight.rest().is_some() && fight.gate().pause().is_some());
            advance(WINDOW).await;
            assert_eq!(fight.gate().pause(), None);
            assert!(matches!(fight.write(), (true, Some(_))));
            assert!(!fight.write().0);
        }
        advance(WINDOW).await;
        assert_eq!(fight.rest(), None);
        // The other one begins again after its own pause.
        advance(WINDOW).await;
        assert!(matches!(fight.write(), (true, Some(_))));
        advance(WINDOW).await;
        assert_eq!(fight.rest(), None);
        advance(RELAPSE_WINDOW).await;
        assert_eq!(fight.write(), (true, None));
    }

    #[tokio::test(start_paused = true)]
    async fn another_declaration_ends_a_contest() {
        let mut fight = Fight::new();
        while fight.write().0 {}
        fight.generation = 2;
        assert_eq!((fight.gate().pause(), fight.write()), (None, (true, None)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cluster_of_the_same_name_is_named_as_such() {
        let mut fight = Fight::new();
        fight.rivals.twin = Some("u2".into());
        assert_eq!(fight.write(), (true, None));
        // The next plan may see its own mark again.
        fight.rivals.twin = None;
        while fight.write().0 {}
        let said = fight.rest().unwrap().message;
        assert!(said.contains("--cluster-name") && said.contains("uid u2"), "{said}");
    }
}
