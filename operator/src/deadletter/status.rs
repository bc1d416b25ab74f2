//! In: the EventStream of dead letters as Kubernetes has it. Out: what it means for those who write them. Pure.

use jetwright_crds::{
    EventStream,
    conditions::{self, READY, Reason, STALLED},
};
use kube::ResourceExt;

use crate::{
    kubernetes::status::{Phase, Verdict},
    stream::stream_name,
};

/// Dead letters are kept once the EventStream is Ready as it was applied last.
pub fn verdict(kept: &EventStream) -> Verdict {
    let name = kept.name_any();
    let known = kept.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let newest = |type_| {
        let told = conditions::get(known, type_)?;
        (told.observed_generation == kept.metadata.generation).then_some(told)
    };
    let Some(ready) = newest(READY) else {
        return Verdict::reconciling(Reason::StreamNotReady, format!("EventStream {name} is on its way"));
    };
    let stalled = newest(STALLED).is_some_and(|stalled| stalled.status == "True");
    let unready = |ready_status| Verdict {
        ready: ready_status,
        reason: Reason::named(&ready.reason).unwrap_or(Reason::StreamNotReady),
        message: format!("EventStream {name}: {}", ready.message),
        phase: if stalled { Phase::Stalled } else { Phase::Reconciling },
    };
    match ready.status.as_str() {
        "True" => Verdict::ready(format!("dead letters are kept in stream {}", stream_name(kept))),
        "False" => unready(Some(false)),
        _ => unready(None),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::deadletter::build::tests::kept;

    /// What is told of an EventStream of generation 2 that has these conditions (type, status, reason).
    fn told(generation: i64, conditions: &[(&str, &str, &str)]) -> Verdict {
        let condition = |(type_, status, reason): &(&str, &str, &str)| -> Value {
            json!({
                "type": type_, "status": status, "reason": reason, "message": "words", "observedGeneration": generation,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            })
        };
        let conditions: Vec<_> = conditions.iter().map(condition).collect();
        let mut kept = kept("orders", 1);
        kept.metadata.generation = Some(2);
        kept.status = Some(serde_json::from_value(json!({"conditions": conditions})).unwrap());
        verdict(&kept)
    }

    #[test]
    fn dead_letters_are_kept_once_their_stream_is_ready() {
        let ready = Verdict::ready("dead letters are kept in stream orders-dlq");
        assert_eq!(told(2, &[("Ready", "True", "Reconciled")]), ready);
        let coming = Verdict::reconciling(Reason::StreamNotReady, "EventStream orders-dlq is on its way");
        assert_eq!(told(2, &[]), coming);
        assert_eq!(told(1, &[("Ready", "True", "Reconciled")]), coming, "of an older generation");
    }

    #[test]
    fn what_is_wrong_with_their_stream_is_wrong_with_them() {
        let words = "EventStream orders-dlq: words";
        assert_eq!(
            told(2, &[("Ready", "False", "Refused"), ("Stalled", "True", "Refused")]),
            Verdict::stalled(Reason::Refused, words)
        );
        assert_eq!(
            told(2, &[("Ready", "False", "Failed"), ("Stalled", "False", "Reconciled")]),
            Verdict::reconciling(Reason::Failed, words)
        );
        assert_eq!(
            told(2, &[("Ready", "Unknown", "Disconnected")]),
            Verdict { ready: None, ..Verdict::reconciling(Reason::Disconnected, words) }
        );
    }
}
