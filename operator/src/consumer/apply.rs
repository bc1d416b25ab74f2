//! In: a plan and the held consumer. Out: what was done, and the consumer as JetStream has it then. Writes to JetStream and decides
//! nothing.

use super::dereference::Dereferenced;
use crate::{
    context::Context,
    jetstream::{ApiError, ConsumerInfo, Seen},
    outcome::{Applied, Category, Done},
    plan::Plan,
};

/// Why a plan could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The consumer could not be made.
    #[error("consumer {name} of stream {stream} could not be made")]
    Create {
        /// The stream.
        stream: String,
        /// The consumer.
        name: String,
        /// What JetStream said.
        source: ApiError,
    },
    /// The consumer could not be changed.
    #[error("consumer {name} of stream {stream} could not be changed ({fields})")]
    Update {
        /// The stream.
        stream: String,
        /// The consumer.
        name: String,
        /// The fields that were to change.
        fields: String,
        /// What JetStream said.
        source: ApiError,
    },
}

impl Error {
    pub(super) fn category(&self) -> Category {
        match self {
            Self::Create { source, .. } | Self::Update { source, .. } => Category::of_jetstream(source),
        }
    }
}

/// Carries a plan out.
pub async fn apply(
    plan: Plan,
    mut found: Dereferenced,
    context: &Context,
) -> Result<Applied<ConsumerInfo>, Error> {
    let api = context.mirror.api();
    let (stream, name) = (found.stream.name.clone(), found.name.clone());
    let done = match plan {
        Plan::Unchanged => Done::Nothing,
        Plan::Blocked(blocked) => Done::Blocked(blocked),
        // A consumer has as many replicas as its stream.
        Plan::Create { config, fewer: _ } => {
            // Whatever happens, what was known before is no longer so.
            *found.held = Seen::Unknown;
            let made = api.create_consumer(&stream, &name, &config).await;
            let failed = |source| Error::Create { stream: stream.clone(), name: name.clone(), source };
            *found.held = Seen::from(Some(made.map_err(failed)?));
            Done::Created
        }
        Plan::Update { steps, fields, drift } => {
            for step in &steps {
                *found.held = Seen::Unknown;
                let updated = api.update_consumer(&stream, &name, step).await;
                let failed = |source| Error::Update {
                    stream: stream.clone(),
                    name: name.clone(),
                    fields: fields.join(", "),
                    source,
                };
                *found.held = Seen::from(Some(updated.map_err(failed)?));
            }
            if drift { Done::Repaired(fields) } else { Done::Updated(fields) }
        }
    };
    Ok(Applied::of(done, found.held.present(), &found.remembered))
}
