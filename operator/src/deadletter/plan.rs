//! In: the name of an EventStream, what it is, and what there is for its dead letters. Out: the EventStream that is to keep them, or
//! why there can be none. Pure.

use jetwright_crds::{EventStream, conditions::Reason};
use kube::ResourceExt;

use super::{
    build::build,
    dereference::Dereferenced,
    names::{LABEL, Names},
};
use crate::{
    kubernetes::status::Verdict,
    outcome::listed,
    stream::{remembered, stream_name},
};

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// This one is to be.
    Keep(Box<EventStream>),
    /// Nothing, for this reason.
    Nothing(Verdict),
}

/// Decides what to do for a consumer of the EventStream of this name.
pub fn plan(reference: &str, found: &Dereferenced) -> Plan {
    decide(reference, found).map_or_else(Plan::Nothing, |kept| Plan::Keep(Box::new(kept)))
}

fn decide(reference: &str, Dereferenced { source, found }: &Dereferenced) -> Result<EventStream, Verdict> {
    let Some(source) = source else {
        let message = format!("spec.streamRef: there is no EventStream {reference}: make it");
        return Err(Verdict::stalled(Reason::NotFound, message));
    };
    let names = Names::of(reference, &stream_name(source))
        .map_err(|problem| Verdict::stalled(Reason::Invalid, listed(&[problem])))?;
    if let Some(found) = found {
        usable(&names, found)?;
    }
    let is_deleted = source.metadata.deletion_timestamp.is_some();
    let Some(replicas) = remembered(source).replicas.filter(|_| !is_deleted) else {
        let message = format!(
            "EventStream {reference} has no stream of its own, after which that of the dead letters is made; its conditions say why"
        );
        return Err(Verdict::reconciling(Reason::StreamNotReady, message));
    };
    Ok(build(&names, source, replicas, found.as_ref()))
}

/// Whether what there is under the name may be brought to what it has to be.
fn usable(names: &Names, found: &EventStream) -> Result<(), Verdict> {
    let Names { source, object, stream, subjects: _ } = names;
    if found.labels().get(LABEL) != Some(source) {
        let message = format!(
            "EventStream {object} was not made for the dead letters of {source} and is left alone: give it and its stream another name, \
             or set spec.deadLetter.policy to Drop"
        );
        return Err(Verdict::stalled(Reason::NameConflict, message));
    }
    let kept = stream_name(found);
    if kept != *stream {
        let message = format!(
            "EventStream {object} is for stream {kept}, where dead letters of before are, and not for {stream}: delete the EventStream, \
             which leaves that stream as it is, and it is made again"
        );
        return Err(Verdict::stalled(Reason::NameConflict, message));
    }
    if found.metadata.deletion_timestamp.is_some() {
        let message = format!("EventStream {object} is being deleted; then it is made again");
        return Err(Verdict::reconciling(Reason::Deleting, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deadletter::build::tests::{kept, source};

    fn planned(
        source: Option<EventStream>,
        found: Option<EventStream>,
    ) -> Result<EventStream, (Reason, String)> {
        match plan("orders", &Dereferenced { source, found }) {
            Plan::Keep(kept) => Ok(*kept),
            Plan::Nothing(Verdict { reason, message, ready, .. }) => {
                assert_eq!(ready, Some(false));
                Err((reason, message))
            }
        }
    }

    fn reason(source: Option<EventStream>, found: Option<EventStream>) -> Reason {
        planned(source, found).unwrap_err().0
    }

    #[test]
    fn one_is_made_once_the_stream_is_there_and_kept_as_it_is_to_be() {
        let made = planned(Some(source(Some(3))), None).unwrap();
        assert_eq!(made, kept("orders", 3));
        assert_eq!(planned(Some(source(Some(3))), Some(made)).unwrap(), kept("orders", 3));
        assert_eq!(reason(None, None), Reason::NotFound);
        assert_eq!(reason(Some(source(None)), None), Reason::StreamNotReady);
    }

    #[test]
    fn a_stream_that_is_being_deleted_gets_none() {
        let mut deleted = source(Some(3));
        deleted.metadata.deletion_timestamp = Some(crate::kubernetes::status::now());
        assert_eq!(reason(Some(deleted), None), Reason::StreamNotReady);
    }

    #[test]
    fn what_was_not_made_for_it_is_left_alone() {
        let mut unlabelled = kept("orders", 3);
        unlabelled.metadata.labels = None;
        let (reason, message) = planned(Some(source(Some(3))), Some(unlabelled)).unwrap_err();
        assert_eq!(reason, Reason::NameConflict);
        assert!(
            message.contains("EventStream orders-dlq") && message.contains("policy to Drop"),
            "{message}"
        );
        let mut of_others = kept("orders", 3);
        of_others.labels_mut().insert(LABEL.to_owned(), "others".to_owned());
        assert_eq!(planned(Some(source(Some(3))), Some(of_others)).unwrap_err().0, Reason::NameConflict);
    }

    #[test]
    fn one_for_a_stream_of_before_is_left_and_told() {
        let (reason, message) = planned(Some(source(Some(3))), Some(kept("before", 3))).unwrap_err();
        assert_eq!(reason, Reason::NameConflict);
        assert!(
            message.contains("is for stream before-dlq") && message.contains("delete the EventStream"),
            "{message}"
        );
    }

    #[test]
    fn one_that_is_being_deleted_is_awaited() {
        let mut deleted = kept("orders", 3);
        deleted.metadata.deletion_timestamp = Some(crate::kubernetes::status::now());
        assert_eq!(reason(Some(source(Some(3))), Some(deleted)), Reason::Deleting);
    }
}
