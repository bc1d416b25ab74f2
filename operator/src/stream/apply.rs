//! In: a plan and the held stream. Out: what was done, and the stream as JetStream has it then. Writes to JetStream and decides
//! nothing.

use std::time::Duration;

use jetwright_nats::jetstream_error::{NO_SUITABLE_PEERS, REPLICAS_NEED_CLUSTER};

use super::dereference::Dereferenced;
use crate::{
    context::Context,
    jetstream::{ApiError, Config, Seen, StreamInfo},
    outcome::{Applied, Category, Done},
    plan::Plan,
};

/// The server's words where a cluster has too few servers, and no other reason beside it (selectPeerError in
/// server/jetstream_cluster.go of nats-server): a server that is away is named in them, and is waited for.
const TOO_FEW_SERVERS: &str = "no suitable peers for placement";

/// How long an object waits for a cluster to have as many servers as its profile wishes for.
const PATIENCE: Duration = Duration::from_mins(3);

/// Why a plan could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream could not be made.
    #[error("stream {name} could not be made")]
    Create {
        /// The stream.
        name: String,
        /// What JetStream said.
        source: ApiError,
    },
    /// The stream could not be changed.
    #[error("stream {name} could not be changed ({fields})")]
    Update {
        /// The stream.
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
) -> Result<Applied<StreamInfo>, Error> {
    let done = match plan {
        Plan::Unchanged => Done::Nothing,
        Plan::Blocked(blocked) => Done::Blocked(blocked),
        Plan::Create { config, fewer } => {
            let settles = found.waited >= PATIENCE;
            let made = create(&found.name, &config, &fewer, settles, context).await;
            // Whatever happened, what was known before is no longer so.
            *found.held = Seen::Unknown;
            let info = made.map_err(|source| Error::Create { name: found.name.clone(), source })?;
            context.mirror.set_stream(&found.name, &mut found.held, Some(info));
            context.mirror.doubt_consumers(&found.name);
            Done::Created
        }
        Plan::Update { steps, fields, drift } => {
            for step in &steps {
                *found.held = Seen::Unknown;
                let updated = context.mirror.api().update_stream(&found.name, step).await;
                let failed =
                    |source| Error::Update { name: found.name.clone(), fields: fields.join(", "), source };
                context.mirror.set_stream(&found.name, &mut found.held, Some(updated.map_err(failed)?));
            }
            if drift { Done::Repaired(fields) } else { Done::Updated(fields) }
        }
    };
    Ok(Applied::of(done, found.held.present(), &found.remembered))
}

/// Makes the stream. Servers that are not clustered are one; a cluster of too few may be one that is still forming, so that only
/// one who waited settles for fewer.
async fn create(
    name: &str,
    config: &Config,
    fewer: &[Config],
    settles: bool,
    context: &Context,
) -> Result<StreamInfo, ApiError> {
    let api = context.mirror.api();
    let answer = api.create_stream(name, config).await;
    let candidates = match &answer {
        // One server is one: the fewest replicas are what it takes.
        Err(error) if error.err_code() == Some(REPLICAS_NEED_CLUSTER) => {
            fewer.last().map(std::slice::from_ref)
        }
        Err(error) if settles && has_too_few_servers(error) => Some(fewer),
        _ => None,
    };
    let mut answer = answer;
    for config in candidates.unwrap_or_default() {
        answer = api.create_stream(name, config).await;
        if !answer.as_ref().is_err_and(has_too_few_servers) {
            break;
        }
    }
    answer
}

fn has_too_few_servers(error: &ApiError) -> bool {
    matches!(error, ApiError::Refused { err_code: NO_SUITABLE_PEERS, description, .. } if description == TOO_FEW_SERVERS)
}
