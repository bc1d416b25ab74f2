//! Checks that an installation works: the definitions are those of this version, and an EventStream becomes ready and goes again. What
//! it makes it deletes in every case.

use std::time::Duration;

use jetwright_crds::{EventStream, labels::VERIFY};
use jiff::{SignedDuration, Timestamp};
use kube::{Api, Client, ResourceExt, api::ListParams};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{
    client,
    definitions::{self, Compared},
    error::Error,
    probe::{self, Removed},
    say,
};
use crate::{error::error_chain, namespaces::Namespaces, readiness};

/// What is older was left by a run that was killed; none takes so long.
const MAX_RUN: SignedDuration = SignedDuration::from_mins(10);

/// How long Kubernetes may take to answer after that.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Checks an installation in a namespace (the program's own, where none is named), for about this time.
///
/// # Errors
///
/// What does not work, and what to do about it.
pub async fn run(namespace: Option<String>, within: Duration, stop: &CancellationToken) -> Result<(), Error> {
    let end = Instant::now() + within;
    let client = client().await?;
    let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
    let api: Api<EventStream> = Api::namespaced(client.clone(), &namespace);
    let prepared = async {
        check_definitions(&client, &namespace, end).await?;
        remove_left_behind(&api, &namespace).await;
        Ok::<(), Error>(())
    };
    tokio::select! {
        () = stop.cancelled() => return Err(Error::Interrupted),
        prepared = timeout_at(end + REQUEST_TIMEOUT, prepared) => prepared.map_err(|_| Error::Unanswered)??,
    }

    let object = probe::object(rand::random());
    let name = object.name_any();
    let checked = check(&api, &namespace, &object, (end, stop)).await;
    // In every case: without an answer, nobody knows whether it was made.
    let removed = remove(&api, &namespace, &name).await;
    match (checked, removed) {
        (Err(error), Err(left)) => {
            say(format_args!("left: {}", error_chain(&left)));
            return Err(error);
        }
        (checked, removed) => checked.and(removed)?,
    }
    say("the installation works");
    Ok(())
}

async fn check_definitions(client: &Client, namespace: &str, end: Instant) -> Result<(), Error> {
    let namespaces = Namespaces::Only(vec![namespace.to_owned()]);
    readiness::served(client, &namespaces).await.map_err(Error::Definitions)?;
    let compared = match definitions::compare(client, end).await {
        Compared::Same => "with every field that this version knows".to_owned(),
        Compared::Unknown(why) => format!("and their fields not compared ({why})"),
        Compared::Older(fields) => return Err(Error::Older { lacking: definitions::named(&fields) }),
    };
    say(format_args!("definitions: served, {compared}"));
    Ok(())
}

/// Makes the EventStream and waits for it.
async fn check(
    api: &Api<EventStream>,
    namespace: &str,
    object: &EventStream,
    (end, stop): (Instant, &CancellationToken),
) -> Result<(), Error> {
    let (name, namespace) = (object.name_any(), namespace.to_owned());
    probe::make(api, object).await.map_err(|error| match error {
        Some(source) => Error::Make { name: name.clone(), namespace: namespace.clone(), source },
        None => Error::Unanswered,
    })?;
    let subject = object.spec.subjects.join(", ");
    say(format_args!("made: EventStream {name} in namespace {namespace}, in memory, for {subject}"));
    let made = Instant::now();
    tokio::select! {
        () = stop.cancelled() => return Err(Error::Interrupted),
        ready = probe::await_ready(api, &name, end) => {
            ready.map_err(|state| Error::NotReady { name: name.clone(), namespace, state })?;
        }
    }
    say(format_args!("ready: the operator made its stream in JetStream, after {:.1?}", made.elapsed()));
    Ok(())
}

async fn remove(api: &Api<EventStream>, namespace: &str, name: &str) -> Result<(), Error> {
    match probe::remove(api, namespace, name).await? {
        Removed::Whole => say(format_args!("gone: EventStream {name} is deleted, with what belongs to it")),
        Removed::WithoutOperator => {
            say(format_args!(
                "gone: EventStream {name} is deleted, without the operator, which had made no stream for it"
            ));
        }
    }
    Ok(())
}

/// Removes what runs that were killed have left; what cannot be removed does not hold this run up.
async fn remove_left_behind(api: &Api<EventStream>, namespace: &str) {
    let labelled = ListParams::default().labels(VERIFY);
    let found = match api.list_metadata(&labelled).await {
        Ok(found) => found.items,
        Err(error) => {
            return say(format_args!("what earlier runs left cannot be listed: {}", error_chain(&error)));
        }
    };
    let now = Timestamp::now();
    let old = found
        .into_iter()
        .filter(|object| is_left_behind(object.creation_timestamp().map(|time| time.0), now));
    let removals = old.map(|object| async move {
        let name = object.name_any();
        match probe::remove(api, namespace, &name).await {
            Ok(_) => say(format_args!("removed: EventStream {name}, which an earlier run left behind")),
            Err(left) => say(format_args!("left: by an earlier run: {}", error_chain(&left))),
        }
    });
    futures::future::join_all(removals).await;
}

fn is_left_behind(created: Option<Timestamp>, now: Timestamp) -> bool {
    created.is_some_and(|created| now.duration_since(created) > MAX_RUN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_run_is_still_at_is_not_left_behind() {
        let now = Timestamp::from_second(10_000).unwrap();
        let made = |ago: i64| Some(Timestamp::from_second(10_000 - ago).unwrap());
        assert!(is_left_behind(made(601), now));
        assert!(
            !is_left_behind(made(600), now) && !is_left_behind(made(-30), now) && !is_left_behind(None, now)
        );
    }
}
