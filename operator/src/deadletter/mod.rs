//! The dead letters of a consumer: an EventStream beside its own, in which its pods keep what they cannot process.
//!
//! The driver. One reconcile is validate → dereference → plan (which builds) → apply → status. The EventStream is brought to what it
//! has to be in JetStream by its own reconcile, as any other. All consumers of a stream share it, and nothing here ever deletes it.

mod apply;
mod build;
mod dereference;
pub mod names;
mod plan;
mod status;
pub mod validate;

use jetwright_crds::{EventConsumer, conditions::Reason};

use crate::{
    context::Context,
    kubernetes::{owned, status::Verdict},
    outcome::{Category, Failure, listed},
};

/// Why a reconcile did not come to its end: one variant a step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the dead letters depend on could not be read.
    #[error("cannot read what the dead letters depend on")]
    Dereference(#[source] dereference::Error),
    /// The EventStream could not be applied.
    #[error("cannot apply the EventStream of the dead letters")]
    Apply(#[source] owned::Error),
}

impl Failure for Error {
    fn category(&self) -> Category {
        match self {
            Self::Dereference(error) => error.category(),
            Self::Apply(error) => error.category(),
        }
    }
}

/// Sees to it that a consumer's dead letters are kept, and says whether they are; None where it has none.
///
/// # Errors
///
/// When a step fails.
pub async fn reconcile(object: &EventConsumer, context: &Context) -> Result<Option<Verdict>, Error> {
    match validate::kept_for(&object.spec) {
        Ok(Some(_)) => {}
        Ok(None) => return Ok(None),
        Err(problem) => return Ok(Some(Verdict::stalled(Reason::Invalid, listed(&[problem])))),
    }
    let found = dereference::dereference(object, context).await.map_err(Error::Dereference)?;
    match plan::plan(&object.spec.stream_ref.name, &found) {
        plan::Plan::Nothing(why) => Ok(Some(why)),
        plan::Plan::Keep(kept) => {
            let kept = apply::apply(&kept, found.found, object, context).await.map_err(Error::Apply)?;
            Ok(Some(status::verdict(&kept)))
        }
    }
}
