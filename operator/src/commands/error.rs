//! Why a command fails. Each reads as one line that says what to do.

use super::{advice, state::State};
use crate::readiness::UPGRADE_DEFINITIONS;

/// Why an installation does not work, the operator cannot be uninstalled yet, or nobody knows.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no Kubernetes to ask.
    #[error("Kubernetes cannot be found: run in a cluster, or set KUBECONFIG")]
    NoKubernetes(#[source] kube::Error),
    /// Kubernetes does not answer.
    #[error("Kubernetes does not answer")]
    Unanswered,
    /// A signal came.
    #[error("interrupted")]
    Interrupted,
    /// A kind cannot be listed.
    #[error("{kind}s cannot be listed ({scope})")]
    List {
        kind: String,
        /// Where.
        scope: String,
        source: kube::Error,
    },
    /// There are objects with the finalizer.
    #[error("{0} objects wait for the operator to be deleted")]
    Held(usize),
    /// Definitions are missing, or may not be read.
    #[error("{0}")]
    Definitions(String),
    /// Definitions are of an older version.
    #[error(
        "the CustomResourceDefinitions are older than this program ({}): they lack {lacking}; {UPGRADE_DEFINITIONS}",
        env!("CARGO_PKG_VERSION")
    )]
    Older {
        /// Fields that they lack.
        lacking: String,
    },
    /// The EventStream could not be made.
    #[error("EventStream {name} could not be made in namespace {namespace}")]
    Make { name: String, namespace: String, source: kube::Error },
    /// The EventStream was not ready in time.
    #[error("EventStream {name} was not ready in time{}; {}", cause(state), what_to_do(state, namespace))]
    NotReady {
        name: String,
        namespace: String,
        /// What it had come to.
        state: State,
    },
    /// Kubernetes does not delete the EventStream.
    #[error("EventStream {name} could not be deleted: kubectl delete eventstream {name} -n {namespace}")]
    Undeleted { name: String, namespace: String, source: kube::Error },
    /// The EventStream is being deleted, but its stream is in JetStream.
    #[error(
        "EventStream {name} is marked for deletion and still there, since its stream is in JetStream: it goes when the operator \
         reaches NATS, or gives that up (--deletion-timeout)"
    )]
    Terminating { name: String },
    /// Kubernetes did not say in time whether the EventStream is gone.
    #[error(
        "Kubernetes does not answer, so EventStream {name} may be left: kubectl delete eventstream {name} -n {namespace}"
    )]
    PerhapsLeft { name: String, namespace: String },
}

fn cause(state: &State) -> String {
    match state {
        State::NotReady { reason, message } => format!(" ({reason}: {message})"),
        State::Ready | State::Unseen => String::new(),
    }
}

fn what_to_do(state: &State, namespace: &str) -> String {
    let reason = match state {
        State::NotReady { reason, .. } => Some(reason.as_str()),
        State::Ready | State::Unseen => None,
    };
    advice::of(reason, namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_the_reason_the_message_and_what_to_do() {
        let state = State::NotReady { reason: "NoConnection".into(), message: "nobody serves it".into() };
        let error = Error::NotReady { name: "a".into(), namespace: "shop".into(), state };
        let text = error.to_string();
        assert!(
            text.starts_with(
                "EventStream a was not ready in time (NoConnection: nobody serves it); add shop"
            ),
            "{text}"
        );
    }
}
