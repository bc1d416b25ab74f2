//! What an EventStream has come to, by its status. Pure.

use jetwright_crds::{
    EventStream,
    conditions::{self, READY},
};

/// What an EventStream's newest generation has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// No operator has said anything about it.
    #[default]
    Unseen,
    /// It is ready.
    Ready,
    /// It is not.
    NotReady {
        /// The condition's reason.
        reason: String,
        /// The condition's message.
        message: String,
    },
}

/// What the object's newest generation has come to.
pub fn state(object: &EventStream) -> State {
    match conditions::get(object.conditions(), READY) {
        Some(ready) if ready.observed_generation != object.metadata.generation => State::Unseen,
        Some(ready) if ready.status == "True" => State::Ready,
        Some(ready) => State::NotReady { reason: ready.reason.clone(), message: ready.message.clone() },
        None => State::Unseen,
    }
}
