//! The pods of an EventConsumer: a Deployment, what stands beside it, and the bindings file that tells the pods what they consume.
//!
//! The driver. One reconcile is dereference → validate → build → apply → look → status; what exists is not compared with what is
//! built, server-side apply does that.

mod apply;
mod build;
mod dereference;
mod look;
mod names;
mod pods;
mod sighting;
mod status;
mod template;
mod validate;

use jetwright_crds::{EventConsumer, conditions::Reason};

use crate::{
    context::Context,
    kubernetes::status::Verdict,
    outcome::{Category, Failure, chain},
};

#[cfg(test)]
pub use status::Own;
pub use {pods::Pods, status::Running};

/// Why a reconcile did not come to its end: one variant a step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the workload depends on could not be read.
    #[error("cannot read what the workload depends on")]
    Dereference(#[source] dereference::Error),
    /// The objects could not be made.
    #[error("cannot build the objects")]
    Build(#[source] build::Error),
    /// The objects could not be applied.
    #[error("cannot apply the objects")]
    Apply(#[source] apply::Error),
}

impl Failure for Error {
    fn category(&self) -> Category {
        match self {
            Self::Dereference(error) => error.category(),
            Self::Build(_) => Category::Refused,
            Self::Apply(error) => error.category(),
        }
    }
}

/// Brings the pods to what the object declares; None where it declares none.
///
/// # Errors
///
/// When a step fails.
pub async fn reconcile(object: &EventConsumer, context: &Context) -> Result<Option<Running>, Error> {
    let found = dereference::dereference(object, context).await.map_err(Error::Dereference)?;
    match found {
        dereference::Found::None => {
            // A workload that was taken out of the spec takes its pods with it.
            apply::remove(object, context).await.map_err(Error::Apply)?;
            Ok(None)
        }
        dereference::Found::Elsewhere(elsewhere) => {
            apply::remove(object, context).await.map_err(Error::Apply)?;
            Ok(Some(status::elsewhere(&object.spec, elsewhere.as_deref())))
        }
        dereference::Found::Own(found) => {
            let desired = match validate::validate(object, &found) {
                Ok(desired) => desired,
                Err(problems) => return Ok(Some(status::invalid(&problems))),
            };
            let objects = build::build(&desired, &context.settings).map_err(Error::Build)?;
            let deployment =
                apply::apply(objects, &desired.names, object, context).await.map_err(Error::Apply)?;
            let look = if status::is_rolled_out(&deployment) {
                look::Look::default()
            } else {
                look::look(&desired, context).await
            };
            Ok(Some(status::running(&desired, &deployment, &look)))
        }
    }
}

/// Takes the pods down; true once none is left.
///
/// # Errors
///
/// When Kubernetes refuses.
pub async fn take_down(object: &EventConsumer, context: &Context) -> Result<bool, Error> {
    apply::remove(object, context).await.map_err(Error::Apply)?;
    apply::are_gone(object, context).await.map_err(Error::Apply)
}

/// What a reconcile that failed means for the conditions.
#[must_use]
pub fn failed(error: &Error) -> Verdict {
    if let Error::Apply(foreign) = error
        && let Some(remedy) = foreign.remedy()
    {
        return Verdict::stalled(Reason::NameConflict, format!("{}: {remedy}", chain(error)));
    }
    Verdict::failed(error)
}
