//! Whether others write a thing as fast as its operator does, so that the two would take turns for ever. In: the writes of both, and the
//! generation of the object. Out: whether to write, and what to say. Pure but for the clock.
//!
//! Where two operators write in turn, one of them is the first to pause, and the other has what it declares: it says that the thing is
//! contested, too, since the first goes on later. A thing that was contested is written once more after each pause; only when nobody
//! changed it during one, the contest is over.

use std::time::Duration;

use jetwright_crds::{conditions::Reason, text::cut};
use tokio::time::Instant;

use crate::{
    object_state::{ObjectKey, ObjectStates},
    outcome::Pending,
};

/// Most writes of one thing in a [`WINDOW`] without a new generation of its object.
pub const MAX_WRITES: usize = 20;
/// As many writes of each side are a contest whose other side has paused: the two do not count to the same number at the same time.
const TURNS: usize = 15;
const WINDOW: Duration = Duration::from_mins(1);
/// Time in which the other side of a contest would have written again.
const TURN: Duration = Duration::from_secs(2);
/// How long after a contest one write is enough for the next: the other operator may have paused, too.
const RELAPSE: Duration = Duration::from_mins(5);
/// Longest part of a message that another client chooses.
const MAX_NAME_BYTES: usize = 200;

/// A client of NATS that changed something, as the audit of JetStream's API names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writer {
    pub name: Option<String>,
    pub user: Option<String>,
    pub host: Option<String>,
}

impl Writer {
    fn describe(&self) -> String {
        // Debug form: a name may be any text, line breaks among them.
        let named = |what: &str, value: &Option<String>| {
            let value = value.as_ref().filter(|value| !value.is_empty());
            value.map(|value| format!("{what} {:?}", cut(value, MAX_NAME_BYTES)))
        };
        let parts = [named("name", &self.name), named("user", &self.user), named("host", &self.host)];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        if parts.is_empty() {
            "a client without a name".into()
        } else {
            format!("the client with {}", parts.join(", "))
        }
    }
}

/// What others wrote of a thing.
#[derive(Clone, Debug, Default)]
pub struct ForeignWrites {
    /// When, as many as count.
    times: Recent,
    last: Option<Writer>,
}

impl ForeignWrites {
    pub fn add(&mut self, writer: Writer) {
        self.times.add(Instant::now());
        self.last = Some(writer);
    }
}

/// The times of the latest writes, as many as count.
#[derive(Clone, Debug, Default)]
struct Recent(Vec<Instant>);

impl Recent {
    fn add(&mut self, now: Instant) {
        if self.0.len() == MAX_WRITES {
            self.0.remove(0);
        }
        self.0.push(now);
    }

    fn since(&self, start: Instant) -> usize {
        self.0.iter().filter(|time| **time >= start).count()
    }
}

/// What others do with a thing.
#[derive(Clone, Debug, Default)]
pub struct Rivals {
    pub writes: ForeignWrites,
    /// The uid of another object of the same cluster name, namespace and name, which the thing carries now.
    pub twin: Option<String>,
}

/// The contest for one thing.
#[derive(Clone, Debug, Default)]
pub struct Contest {
    generation: Option<i64>,
    /// When that generation was seen first.
    since: Option<Instant>,
    own: Recent,
    twin: Option<String>,
    /// What is said while it is contested, and until when nothing is written.
    pause: Option<(Instant, String)>,
    /// Until when one write is enough to be contested again, and what is said then.
    relapse: Option<(Instant, String)>,
}

/// Whether to write.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decision {
    Go,
    /// Write once, and say this.
    GoOnce(String),
    /// Write nothing for so long, and say this.
    Pause(Duration, String),
}

impl Contest {
    fn observe(&mut self, generation: Option<i64>, now: Instant) {
        if self.since.is_none() || self.generation != generation {
            *self = Self { generation, since: Some(now), ..Self::default() };
        }
    }

    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.pause(Instant::now()).is_some()
    }

    /// The pause that goes on.
    fn pause(&self, now: Instant) -> Option<Decision> {
        let (until, message) = self.pause.as_ref()?;
        (*until > now).then(|| Decision::Pause(*until - now, message.clone()))
    }

    /// Decides for a plan that writes, or that does not.
    fn decide(
        &mut self,
        writes: bool,
        rivals: &Rivals,
        now: Instant,
        message: impl FnOnce(&Self) -> String,
    ) -> Decision {
        if let Some(pause) = self.pause(now) {
            return pause;
        }
        self.twin = rivals.twin.clone().or_else(|| self.twin.take());
        if let Some((until, message)) = self.pause.take() {
            self.relapse = Some((until + RELAPSE, message));
        }
        if let Some((until, message)) = self.relapse.take_if(|(until, _)| writes || *until <= now)
            && until > now
        {
            self.pause = Some((now + WINDOW, message.clone()));
            return Decision::GoOnce(message);
        }
        let start = self.since.unwrap_or(now).max(now.checked_sub(WINDOW).unwrap_or(now));
        let (own, foreign) = (self.own.since(start), rivals.writes.times.since(start));
        let other_paused = !writes && own.min(foreign) >= TURNS;
        if own < MAX_WRITES && !other_paused {
            return Decision::Go;
        }
        let message = message(self);
        self.pause = Some((now + WINDOW, message.clone()));
        Decision::Pause(WINDOW, message)
    }
}

/// Lets an object's writes of one thing pass, or not.
pub struct WriteGate<'a> {
    pub states: &'a ObjectStates,
    pub object: ObjectKey,
    pub generation: Option<i64>,
    /// What kind of thing it is.
    pub kind: &'static str,
}

impl WriteGate<'_> {
    /// What to say while nothing is written, whatever JetStream has.
    #[must_use]
    pub fn pause(&self) -> Option<Pending> {
        self.with(|contest| contest.pause(Instant::now())).and_then(|decision| pending(&decision))
    }

    /// Lets a plan pass, and says what is to be said of it; or does not let it pass.
    ///
    /// # Errors
    ///
    /// What to say instead.
    pub fn pass(&self, writes: bool, rivals: &Rivals) -> Result<Option<Pending>, Pending> {
        let decide = |contest: &mut Contest| {
            contest.decide(writes, rivals, Instant::now(), |contest| self.message(contest, rivals))
        };
        let decision = self.with(decide);
        match (&decision, pending(&decision)) {
            (Decision::Pause(..), Some(pending)) => Err(pending),
            (_, pending) => Ok(pending),
        }
    }

    /// The thing was written; in how long it is to be decided again whether it is contested, where others may have paused.
    #[must_use]
    pub fn wrote(&self) -> Option<Duration> {
        let now = Instant::now();
        self.with(|contest| {
            contest.own.add(now);
            let many = contest.own.since(now.checked_sub(WINDOW).unwrap_or(now)) >= TURNS;
            (many && contest.pause.is_none()).then_some(TURN)
        })
    }

    fn with<R>(&self, work: impl FnOnce(&mut Contest) -> R) -> R {
        self.states.with_contest(&self.object, |contest| {
            contest.observe(self.generation, Instant::now());
            work(contest)
        })
    }

    fn message(&self, contest: &Contest, rivals: &Rivals) -> String {
        let (kind, object) = (self.kind, self.object.kind);
        let other = match &rivals.writes.last {
            Some(writer) => format!("{} writes it, too", writer.describe()),
            None => "another operator or tool writes it, too".to_owned(),
        };
        let remedy = match &contest.twin {
            Some(uid) => format!(
                "that is the operator of another Kubernetes cluster with the same --cluster-name, whose {object} of this namespace and name \
                 has the uid {uid}: give each cluster a --cluster-name of its own, or delete one of the two {object}s"
            ),
            None => format!("stop it, or remove the {kind} from this {object}"),
        };
        format!(
            "this {kind} was written {MAX_WRITES} times within a minute without a change of this {object}, and is now written once a minute: \
             {other}; {remedy}"
        )
    }
}

/// What is said of a decision.
fn pending(decision: &Decision) -> Option<Pending> {
    let (delay, message) = match decision {
        Decision::Go => return None,
        Decision::GoOnce(message) => (WINDOW, message.clone()),
        Decision::Pause(delay, message) => (*delay, message.clone()),
    };
    Some(Pending { reason: Reason::Contested, message, stalled: false, requeue_after: Some(delay) })
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

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
            WriteGate { states: &self.states, object, generation: Some(self.generation), kind: "stream" }
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
        assert!(said.message.contains("another operator or tool"), "{}", said.message);
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_who_take_turns_both_say_so_although_one_of_them_has_what_it_declares() {
        let mut fight = Fight::new();
        for turn in 1..=TURNS {
            assert_eq!(fight.rest(), None, "{turn}");
            fight.foreign_write();
            assert_eq!(fight.gate().pass(true, &fight.rivals), Ok(None));
            assert_eq!(fight.gate().wrote(), (turn == TURNS).then_some(TURN));
        }
        let said = fight.rest().unwrap().message;
        assert!(said.contains(r#"the client with name "nats\ncli", user "app" writes it, too"#), "{said}");
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
        advance(RELAPSE).await;
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
