//! In: a raw spec. Out: whether a consumer's dead letters are kept, and for how long. Pure.

use std::time;

use jetwright_crds::{
    Duration, EventConsumerSpec,
    consumer::{DeadLetterPolicy, DeadLetterSpec},
};

use crate::outcome::{Problem, problem};

/// How long a dead letter is kept where nothing is set.
const MAX_AGE: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// How long each dead letter of a consumer is kept; None where there are none, since nobody writes or nobody wants them.
///
/// # Errors
///
/// When messages of JetStream cannot be kept so: the header Nats-TTL has whole seconds, at least one (ADR-43 of NATS).
pub fn kept_for(spec: &EventConsumerSpec) -> Result<Option<Duration>, Problem> {
    let DeadLetterSpec { policy, max_age } = spec.dead_letter.clone().unwrap_or_default();
    let has_pods = spec.workload.is_some() || spec.workload_ref.is_some();
    if !has_pods || policy.unwrap_or_default() == DeadLetterPolicy::Drop {
        return Ok(None);
    }
    let age = max_age.unwrap_or(MAX_AGE);
    if age.0 < time::Duration::from_secs(1) || age.0.subsec_nanos() != 0 {
        let message =
            format!("{age} is not whole seconds, at least one: change it, or leave it out for {MAX_AGE}");
        return Err(problem("spec.deadLetter.maxAge", message));
    }
    Ok(Some(age))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(rest: &str) -> Result<Option<String>, &'static str> {
        let spec = serde_saphyr::from_str(&format!("{{streamRef: {{name: orders}}, {rest}}}")).unwrap();
        kept_for(&spec).map(|age| age.map(|age| age.to_string())).map_err(|problem| problem.field)
    }

    #[test]
    fn dead_letters_are_kept_where_there_are_pods_unless_it_says_otherwise() {
        let pods = "workload: {template: {spec: {containers: [{name: app}]}}}";
        for pods in [pods, "workloadRef: {name: other}"] {
            assert_eq!(kept(pods), Ok(Some("90d".into())));
            assert_eq!(kept(&format!("{pods}, deadLetter: {{maxAge: 1w}}")), Ok(Some("1w".into())));
            assert_eq!(kept(&format!("{pods}, deadLetter: {{policy: Keep}}")), Ok(Some("90d".into())));
            assert_eq!(kept(&format!("{pods}, deadLetter: {{policy: Drop}}")), Ok(None));
        }
        assert_eq!(kept("consumerName: alone"), Ok(None));
    }

    #[test]
    fn an_age_is_whole_seconds() {
        let age = |age: &str| kept(&format!("workloadRef: {{name: a}}, deadLetter: {{maxAge: {age}}}"));
        assert_eq!(age("1s"), Ok(Some("1s".into())));
        for wrong in ["0s", "999ms", "1s1ms"] {
            assert_eq!(age(wrong), Err("spec.deadLetter.maxAge"), "{wrong}");
        }
    }
}
