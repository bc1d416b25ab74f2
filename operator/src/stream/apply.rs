//! In: a plan and the held stream. Out: what was done, and the stream as JetStream has it then. Writes to JetStream and decides
//! nothing.

use super::dereference::Dereferenced;
use crate::{
    context::Context,
    jetstream::{
        ApiError, Config, Seen, StreamInfo,
        api::{NO_SUITABLE_PEERS, REPLICAS_NEED_CLUSTER},
    },
    outcome::{Applied, Category, Done},
    plan::Plan,
};

/// The server's words where a cluster has too few servers, and no other reason beside it (selectPeerError in
/// server/jetstream_cluster.go of nats-server): a server that is away is named in them, and is waited for.
const TOO_FEW_SERVERS: &str = "no suitable peers for placement";

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
        Plan::Create(configs) => {
            let made = create(&found.name, &configs, context).await;
            // Whatever happened, what was known before is no longer so.
            *found.held = Seen::Unknown;
            let info = made.map_err(|source| Error::Create { name: found.name.clone(), source })?;
            *found.held = Seen::from(Some(info));
            context.mirror.doubt_consumers(&found.name).await;
            Done::Created
        }
        Plan::Update { steps, fields, drift } => {
            for step in &steps {
                *found.held = Seen::Unknown;
                let updated = context.mirror.api().update_stream(&found.name, step).await;
                let failed =
                    |source| Error::Update { name: found.name.clone(), fields: fields.join(", "), source };
                *found.held = Seen::from(Some(updated.map_err(failed)?));
            }
            if drift { Done::Repaired(fields) } else { Done::Updated(fields) }
        }
    };
    let blocked = matches!(done, Done::Blocked(_));
    let info = found.held.present().filter(|_| !blocked).cloned();
    Ok(Applied { done, info, remembered: found.remembered })
}

/// Tries the configurations in order, for as long as JetStream has too few servers for them.
async fn create(name: &str, configs: &[Config], context: &Context) -> Result<StreamInfo, ApiError> {
    let mut last = None;
    for config in configs {
        match context.mirror.api().create_stream(name, config).await {
            Err(error) if has_too_few_servers(&error) => last = Some(error),
            answer => return answer,
        }
    }
    Err(last.unwrap_or(ApiError::Unanswered { subject: name.to_owned(), why: "nothing to try".to_owned() }))
}

fn has_too_few_servers(error: &ApiError) -> bool {
    match error {
        ApiError::Refused { err_code, .. } if *err_code == REPLICAS_NEED_CLUSTER => true,
        ApiError::Refused { err_code, description, .. } => {
            *err_code == NO_SUITABLE_PEERS && description == TOO_FEW_SERVERS
        }
        _ => false,
    }
}
