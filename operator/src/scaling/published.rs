//! In: decisions, look by look. Out: what is said of them in the condition, which changes with what a user would want to know and not with
//! each look. Pure.

use std::{cmp::Reverse, fmt::Write as _, time::Duration};

use jetwright_crds::{conditions, consumer::ConsumerFigures};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{
    autoscaler::{Decision, Reason},
    capacity::WARMUP,
    figures::Reading,
    rates::WINDOW,
    spec::Useful,
    startup::STARTUP_TIMEOUT,
};

/// How long a reason must hold before the condition says it: what is over by then is not worth a write.
const PERSISTENCE: Duration = Duration::from_secs(20);
/// Consumers whose figures a message has.
const MAX_NAMED: usize = 3;

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub reason: conditions::Reason,
    pub message: String,
}

/// What was said last, and what may be said next.
#[derive(Clone, Debug, Default)]
pub struct Published {
    pub said: Option<Said>,
    /// A reason that does not hold for long enough yet, and since when.
    next: Option<(conditions::Reason, Duration)>,
    /// How many pods there are since the step up that is said, until there are others.
    stepped_to: Option<u32>,
    /// Whether it is said that more pods would find nothing to do.
    says_more_would_be_idle: bool,
}

/// One decision, with what it was made of.
#[derive(Clone, Copy, Debug)]
pub struct Decided<'a> {
    pub at: Duration,
    /// Pods before it.
    pub before: u32,
    pub decision: Decision,
    pub readings: &'a [(String, Reading)],
    pub figures: &'a [ConsumerFigures],
    pub max: u32,
    /// Which numbers of pods are of use, where all consumers have partitions.
    pub useful: Option<Useful>,
    pub observes: bool,
}

impl Decided<'_> {
    /// Whether the load takes more pods, and they would find nothing to do.
    fn would_more_be_idle(&self) -> bool {
        !self.observes
            && self.decision.reason == Reason::Steady
            && self.decision.wish > self.decision.replicas
    }
}

impl Published {
    /// Goes on with what an earlier process said, which is in the object's conditions.
    pub fn continued(known: &[Condition]) -> Self {
        let said = known.iter().find(|condition| condition.type_ == conditions::SCALING_ACTIVE);
        let said = said.and_then(|condition| {
            let reason = conditions::Reason::named(&condition.reason)?;
            Some(Said { reason, message: condition.message.clone() })
        });
        Self { said, ..Self::default() }
    }

    /// Takes over a decision; whether something else is said now.
    pub fn add(&mut self, decided: Decided<'_>) -> bool {
        let reason = self.reason(&decided);
        let said = self.said.as_ref().map(|said| said.reason);
        let replicas = decided.decision.replicas;
        let scaled = !decided.observes && replicas != decided.before;
        self.stepped_to = match reason {
            conditions::Reason::ScaledUp if scaled => Some(replicas),
            _ => self.stepped_to.filter(|stepped_to| *stepped_to == replicas),
        };
        let is_said = self.says_what_is_unknown(&decided)
            && self.says_more_would_be_idle == decided.would_more_be_idle();
        if !scaled && said == Some(reason) && is_said {
            self.next = None;
            return false;
        }
        // One missing answer is no first condition either.
        let is_news = scaled || (said.is_none() && reason != conditions::Reason::FiguresUnknown);
        if !is_news {
            let since = self.next.filter(|(next, _)| *next == reason).map_or(decided.at, |(_, since)| since);
            self.next = Some((reason, since));
            if decided.at < since + PERSISTENCE {
                return false;
            }
        }
        (self.next, self.says_more_would_be_idle) = (None, decided.would_more_be_idle());
        self.said = Some(Said { reason, message: message(reason, &decided) });
        true
    }

    /// Whether what is said names what is unknown now, if anything is.
    fn says_what_is_unknown(&self, decided: &Decided<'_>) -> bool {
        let is_unknown = matches!(decided.decision.reason, Reason::FiguresUnknown(_));
        !is_unknown || self.said.as_ref().is_some_and(|said| said.message.ends_with(&unknown(decided)))
    }

    fn reason(&self, decided: &Decided<'_>) -> conditions::Reason {
        use conditions::Reason as Word;
        match decided.decision.reason {
            Reason::FiguresUnknown(_) => Word::FiguresUnknown,
            _ if decided.observes => Word::Observing,
            Reason::ScaledUp => Word::ScaledUp,
            Reason::ScaledDown => Word::ScaledDown,
            Reason::NoGain => Word::NoGain,
            Reason::AtMaximum => Word::AtMaximum,
            Reason::AckPendingLimit => Word::AckPendingLimit,
            // That the pods of a step are waited for goes without saying.
            Reason::Starting if self.stepped_to == Some(decided.before) => {
                self.kept(&[Word::ScaledUp]).unwrap_or(Word::Starting)
            }
            Reason::Starting => Word::Starting,
            Reason::Steady if decided.would_more_be_idle() => Word::Steady,
            // What was done last stays said until something else is to say.
            Reason::Steady | Reason::Draining => {
                self.kept(&[Word::ScaledUp, Word::ScaledDown]).unwrap_or(Word::Steady)
            }
        }
    }

    /// What is said, where it is one of these.
    fn kept(&self, kept: &[conditions::Reason]) -> Option<conditions::Reason> {
        self.said.as_ref().map(|said| said.reason).filter(|said| kept.contains(said))
    }
}

/// What is said, with what to do about it.
fn message(reason: conditions::Reason, decided: &Decided<'_>) -> String {
    use conditions::Reason as Word;
    let Decision { replicas, wish, .. } = decided.decision;
    let by = described(decided.figures);
    match reason {
        Word::ScaledUp | Word::ScaledDown => format!("scaled from {} to {replicas} pods: {by}", decided.before),
        Word::Starting => format!(
            "the load takes {wish} pods, and there are {replicas}: the next step comes when all of those have been ready for {} s and have shown what \
             they bring. After {} minutes it waits for no more of them than are ready, if any is ({by})",
            (WARMUP + WINDOW).as_secs(),
            STARTUP_TIMEOUT.as_secs() / 60,
        ),
        Word::AtMaximum if decided.useful.is_some_and(|useful| useful.partitions <= decided.max) => format!(
            "the load takes {wish} pods, and each of the {replicas} has a partition alone: more would get none. Make the handlers faster, or give \
             the stream more partitions ({by})"
        ),
        Word::AtMaximum => format!(
            "the load takes {wish} pods, and there may be {}: raise spec.workload.autoscaling.maxReplicas, or make the handlers faster ({by})",
            decided.max
        ),
        Word::NoGain => format!(
            "the load takes {wish} pods, and the last ones brought less than a tenth of what they should: look for what all {replicas} share and \
             wait for, as a database. Scaling up goes on when more is settled, when nothing waits any more, or when \
             spec.workload.autoscaling changes ({by})"
        ),
        Word::AckPendingLimit => format!(
            "the load takes {wish} pods, and more than {replicas} would get nothing: as many messages are unacknowledged as may be. Raise \
             spec.maxAckPending ({by})"
        ),
        Word::FiguresUnknown => {
            format!("there are {replicas} pods until the figures are known again: {}", unknown(decided))
        }
        Word::Observing => "spec.workload.replicas says how many pods there are; status.autoscaling.desiredReplicas, what autoscaling would have \
             next. To let it scale, set spec.workload.autoscaling.mode to Active"
            .to_owned(),
        _ if decided.would_more_be_idle() => format!(
            "the load takes {wish} pods, and more than {replicas} would find nothing to do: what waits, waits for messages that pods \
             work at, or for its next attempt ({by})"
        ),
        _ => format!("{replicas} pods are what the load takes: {by}"),
    }
}

fn unknown(decided: &Decided<'_>) -> String {
    let unknown = decided.readings.iter().filter_map(|(name, reading)| Some((name, reading.unknown?)));
    let said: Vec<_> = unknown.map(|(name, why)| format!("the consumer of {name} {}", why.words())).collect();
    match decided.decision.reason {
        // It answers, and what it says is not believed yet.
        Reason::FiguresUnknown(why) if said.is_empty() => format!("a consumer {}", why.words()),
        _ => said.join("; "),
    }
}

/// The figures, in a few words for each consumer that has messages; those with the most come first.
fn described(figures: &[ConsumerFigures]) -> String {
    let mut text = String::new();
    let mut figures: Vec<_> = figures.iter().collect();
    figures.sort_by_key(|figures| Reverse(figures.lag));
    let waiting = figures.iter().filter(|figures| figures.lag != Some(0)).count();
    figures.truncate(waiting.max(1));
    for figures in figures.iter().take(MAX_NAMED) {
        let ConsumerFigures { name, lag, arrivals, settled, capacity, .. } = figures;
        let separator = if text.is_empty() { "" } else { "; " };
        let known = |figure: &Option<String>| figure.clone().unwrap_or_else(|| "?".to_owned());
        let _ = write!(
            text,
            "{separator}{name} has {} unsettled messages; {} arrive and {} are settled in a second, one pod settles {}",
            lag.map_or_else(|| "?".to_owned(), |lag| lag.to_string()),
            known(arrivals),
            known(settled),
            known(capacity),
        );
    }
    if figures.len() > MAX_NAMED {
        let _ = write!(text, "; and {} more", figures.len() - MAX_NAMED);
    }
    text
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;
    use crate::scaling::figures::Unknown;

    fn decided(second: u64, before: u32, replicas: u32, reason: Reason) -> Decided<'static> {
        let wish = if reason == Reason::Steady { replicas } else { 9 };
        let decision = Decision { replicas, wish, reason };
        let at = Duration::from_secs(second);
        Decided { at, before, decision, readings: &[], figures: &[], max: 4, useful: None, observes: false }
    }

    fn said(published: &Published) -> Option<&'static str> {
        published.said.as_ref().map(|said| said.reason.as_str())
    }

    #[test]
    fn a_step_is_said_at_once_and_stays_said_while_nothing_else_is_to_say() {
        let mut published = Published::default();
        assert!(published.add(decided(0, 1, 1, Reason::Steady)));
        assert!(published.add(decided(2, 1, 4, Reason::ScaledUp)));
        assert!(published.said.as_ref().unwrap().message.starts_with("scaled from 1 to 4 pods"));
        for (second, reason) in [(4, Reason::Starting), (60, Reason::Steady), (120, Reason::Draining)] {
            assert!(!published.add(decided(second, 4, 4, reason)));
        }
        assert_eq!(said(&published), Some("ScaledUp"));
        assert!(published.add(decided(122, 4, 3, Reason::ScaledDown)));
        assert!(published.add(decided(140, 3, 2, Reason::ScaledDown)), "each step is");
    }

    #[test]
    fn that_more_pods_would_find_nothing_to_do_is_said_after_a_step_and_until_they_are_enough() {
        let mut published = Published::default();
        let no_use = |second| {
            let known = decided(second, 4, 4, Reason::Steady);
            Decided { decision: Decision { wish: 9, ..known.decision }, ..known }
        };
        let message = |published: &Published| published.said.clone().unwrap().message;
        published.add(decided(0, 1, 4, Reason::ScaledUp));
        assert!(!published.add(no_use(2)));
        assert!(published.add(no_use(22)));
        assert!(message(&published).contains("would find nothing to do"), "{}", message(&published));
        assert!(!published.add(no_use(24)));
        assert!(!published.add(decided(26, 4, 4, Reason::Steady)));
        assert!(published.add(decided(46, 4, 4, Reason::Steady)));
        assert!(message(&published).starts_with("4 pods are what the load takes"));
    }

    #[test]
    fn that_pods_are_waited_for_is_said_where_no_step_is_and_is_over_when_they_are_enough() {
        let mut published = Published::default();
        assert!(published.add(decided(0, 1, 1, Reason::Starting)));
        assert_eq!(said(&published), Some("Starting"));
        let message = &published.said.as_ref().unwrap().message;
        assert!(
            message.starts_with("the load takes 9 pods, and there are 1: the next step comes when all of those have been ready for 15 s and have shown"),
            "{message}"
        );
        assert!(!published.add(decided(2, 1, 1, Reason::Steady)));
        assert!(published.add(decided(22, 1, 1, Reason::Steady)));
        assert_eq!(said(&published), Some("Steady"));
        published.add(decided(24, 2, 1, Reason::ScaledDown));
        assert!(!published.add(decided(26, 1, 1, Reason::Starting)));
        assert!(published.add(decided(46, 1, 1, Reason::Starting)), "fewer pods are not what the load takes");
    }

    #[test]
    fn a_step_is_said_while_its_own_pods_are_waited_for_and_of_others_that_they_are() {
        let mut published = Published::default();
        published.add(decided(0, 1, 4, Reason::ScaledUp));
        assert!(!published.add(decided(2, 4, 4, Reason::Starting)));
        assert!(!published.add(decided(600, 4, 4, Reason::Starting)), "they are those of the step");
        // Somebody scales.
        assert!(!published.add(decided(602, 6, 6, Reason::Starting)));
        assert!(published.add(decided(622, 6, 6, Reason::Starting)));
        assert_eq!(said(&published), Some("Starting"));
        // The next process does not know how many pods came last.
        published.add(decided(640, 6, 8, Reason::ScaledUp));
        let scaled_up = Condition {
            type_: conditions::SCALING_ACTIVE.into(),
            status: "True".into(),
            reason: "ScaledUp".into(),
            message: published.said.unwrap().message,
            observed_generation: None,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        };
        let mut published = Published::continued(&[scaled_up]);
        assert!(!published.add(decided(0, 8, 8, Reason::Starting)));
        assert!(published.add(decided(20, 8, 8, Reason::Starting)));
        assert_eq!(said(&published), Some("Starting"));
    }

    #[test]
    fn what_holds_for_a_moment_is_not_said() {
        let mut published = Published::default();
        let unknown = Reason::FiguresUnknown(Unknown::Unanswered);
        assert!(!published.add(decided(0, 4, 4, unknown)));
        assert!(published.add(decided(2, 4, 4, Reason::Steady)));
        for second in 0..20 {
            let reason = if second % 2 == 0 { Reason::AtMaximum } else { Reason::Steady };
            assert!(!published.add(decided(4 + 10 * second, 4, 4, reason)));
        }
        assert!(!published.add(decided(300, 4, 4, unknown)));
        assert!(published.add(decided(320, 4, 4, unknown)));
        assert_eq!(said(&published), Some("FiguresUnknown"));
        assert!(!published.add(decided(322, 4, 4, Reason::Steady)));
        assert!(published.add(decided(342, 4, 4, Reason::Steady)));
        assert_eq!(said(&published), Some("Steady"));
    }

    #[test]
    fn at_the_maximum_it_is_said_what_bounds_the_pods() {
        let text = |useful| {
            let decided = Decided { max: 8, useful, ..decided(0, 8, 8, Reason::AtMaximum) };
            message(conditions::Reason::AtMaximum, &decided)
        };
        assert!(text(None).contains("raise spec.workload.autoscaling.maxReplicas"));
        assert!(
            text(Some(Useful { partitions: 16 })).contains("raise spec.workload.autoscaling.maxReplicas")
        );
        assert!(text(Some(Useful { partitions: 8 })).contains("give the stream more partitions"));
    }

    #[test]
    fn it_is_said_what_is_unknown_now() {
        let mut published = Published::default();
        let mut add = |seconds: std::ops::Range<u64>, name: &str, why| {
            let readings = [(name.to_owned(), Reading::unknown(why))];
            for second in seconds.step_by(2) {
                let decided = decided(second, 4, 4, Reason::FiguresUnknown(why));
                published.add(Decided { readings: &readings, ..decided });
            }
            published.said.clone().unwrap().message
        };
        assert!(
            add(0..30, "orders", Unknown::Unanswered).ends_with("the consumer of orders does not answer")
        );
        assert!(add(30..40, "orders", Unknown::Missing).ends_with("does not answer"), "not for long enough");
        assert!(add(40..60, "orders", Unknown::Missing).ends_with("the consumer of orders does not exist"));
        assert!(add(60..90, "mails", Unknown::Missing).ends_with("the consumer of mails does not exist"));
    }

    #[test]
    fn the_consumers_that_have_messages_are_described_and_the_one_with_the_most_comes_first() {
        let consumer = |name: &str, lag: u64| ConsumerFigures {
            name: name.to_owned(),
            lag: Some(lag),
            arrivals: Some("1.5".to_owned()),
            settled: Some("2".to_owned()),
            ..ConsumerFigures::default()
        };
        let text = described(&[consumer("a", 0), consumer("b", 3), consumer("c", 70)]);
        let of = |name: &str, lag| {
            format!(
                "{name} has {lag} unsettled messages; 1.5 arrive and 2 are settled in a second, one pod settles ?"
            )
        };
        assert_eq!(text, format!("{}; {}", of("c", 70), of("b", 3)));
        assert_eq!(described(&[consumer("a", 0), consumer("b", 0)]), of("a", 0));
    }
}
