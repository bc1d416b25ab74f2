//! Whether others write a thing as fast as its operator does, so that the two would take turns for ever. In: the writes of both, and the
//! generation of the object. Out: whether to write, and what the status says. Pure, but for the clock.
//!
//! Where two operators write in turn, one of them is the first to pause, and the other has what it declares: it says that the thing is
//! contested, too, since the first goes on later. A thing that was contested is written once more after each pause; only when nobody
//! changed it during one, the contest is over.

use std::time::Duration;

use jetwright_crds::text::cut;
use tokio::time::Instant;

/// Most writes of one thing in a [`WINDOW`] without a new generation of its object.
pub const MAX_WRITES: usize = 20;
/// As many writes of each side are a contest whose other side has paused: the two do not count to the same number at the same time.
pub const CONTEST_WRITES: usize = 15;
pub const WINDOW: Duration = Duration::from_mins(1);
/// Time in which the other side of a contest would have written again.
pub const REACTION_TIME: Duration = Duration::from_secs(2);
/// How long after a contest one write is enough for the next: the other operator may have paused, too.
pub const RELAPSE_WINDOW: Duration = Duration::from_mins(5);
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
    /// The client in words.
    pub fn describe(&self) -> String {
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
    pub last: Option<Writer>,
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

/// Whether to write, and what the status says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow,
    AllowOnce(String),
    /// Write nothing for this long.
    Pause(Duration, String),
}

impl Contest {
    /// Starts over where the declaration is another one.
    pub fn observe(&mut self, generation: Option<i64>, now: Instant) {
        if self.since.is_none() || self.generation != generation {
            *self = Self { generation, since: Some(now), ..Self::default() };
        }
    }

    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.pause(Instant::now()).is_some()
    }

    /// The pause that goes on.
    pub fn pause(&self, now: Instant) -> Option<Decision> {
        let (until, message) = self.pause.as_ref()?;
        (*until > now).then(|| Decision::Pause(*until - now, message.clone()))
    }

    /// The uid of another object of the same cluster name, namespace and name, where the thing carried one.
    pub fn twin(&self) -> Option<&str> {
        self.twin.as_deref()
    }

    /// Counts a write of the operator; how long it is until it has to be decided again whether the thing is contested, where others may have
    /// paused.
    pub fn wrote(&mut self, now: Instant) -> Option<Duration> {
        self.own.add(now);
        let many = self.own.since(now.checked_sub(WINDOW).unwrap_or(now)) >= CONTEST_WRITES;
        (many && self.pause.is_none()).then_some(REACTION_TIME)
    }

    /// Decides for a plan that writes, or that does not. `message` is what the status says, with how often the operator and others wrote.
    pub fn decide(
        &mut self,
        writes: bool,
        rivals: &Rivals,
        now: Instant,
        message: impl FnOnce(&Self, usize, usize) -> String,
    ) -> Decision {
        if let Some(pause) = self.pause(now) {
            return pause;
        }
        self.twin = rivals.twin.clone().or_else(|| self.twin.take());
        if let Some((until, message)) = self.pause.take() {
            self.relapse = Some((until + RELAPSE_WINDOW, message));
        }
        if let Some((until, message)) = self.relapse.take_if(|(until, _)| writes || *until <= now)
            && until > now
        {
            self.pause = Some((now + WINDOW, message.clone()));
            return Decision::AllowOnce(message);
        }
        let start = self.since.unwrap_or(now).max(now.checked_sub(WINDOW).unwrap_or(now));
        let (own, foreign) = (self.own.since(start), rivals.writes.times.since(start));
        let other_paused = !writes && own.min(foreign) >= CONTEST_WRITES;
        if own < MAX_WRITES && !other_paused {
            return Decision::Allow;
        }
        let message = message(self, own, foreign);
        self.pause = Some((now + WINDOW, message.clone()));
        Decision::Pause(WINDOW, message)
    }
}
