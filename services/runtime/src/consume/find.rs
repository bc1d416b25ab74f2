//! Waits until the consumer is there, and learns which one it is. Asks JetStream; never gives up.

use std::time::Duration;

use serde::Deserialize;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::Consumption;
use crate::{
    Handler,
    connection::{Ask, NotDone, pause},
};

/// How long one question may take.
const BOUND: Duration = Duration::from_secs(5);

/// Which consumer of the name it is: that of one making, told by the time at which JetStream says it was made.
#[derive(Clone, Debug)]
pub(super) struct Incarnation {
    made: Option<String>,
    newest: watch::Receiver<Option<String>>,
}

impl Incarnation {
    /// The one that was found last.
    pub(super) fn newest<H>(consumption: &Consumption<H>) -> Self {
        let newest = consumption.incarnation.subscribe();
        let made = newest.borrow().clone();
        Self { made, newest }
    }

    /// Whether another one was found since.
    pub(super) fn is_replaced(&self) -> bool {
        *self.newest.borrow() != self.made
    }

    /// Returns when another one was found.
    pub(super) async fn replaced(&mut self) {
        let Self { made, newest } = self;
        if newest.wait_for(|newest| newest != made).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// What JetStream says of a consumer.
#[derive(Deserialize)]
struct Info {
    created: String,
}

/// Returns when JetStream says that the consumer exists. Until then the gate says what is missing.
pub(super) async fn find<H: Handler>(consumption: &Consumption<H>) {
    let mut told = String::new();
    for attempt in 1.. {
        let why = match ask(consumption).await {
            Ok(Info { created }) => {
                consumption.incarnation.send_if_modified(|newest| {
                    let changed = newest.as_ref() != Some(&created);
                    *newest = Some(created);
                    changed
                });
                return;
            }
            Err(why) => why,
        };
        consumption.gate.close(&why);
        if why != told {
            tracing::warn!(binding = H::BINDING, why, "waits for its consumer");
            told = why;
        }
        sleep(pause(attempt + 1, rand::random())).await;
    }
}

async fn ask<H: Handler>(consumption: &Consumption<H>) -> Result<Info, String> {
    let (stream, consumer) = (&consumption.binding.stream, &consumption.binding.consumer);
    let object = format!("consumer {consumer} of stream {stream}");
    let ask = Ask {
        subject: format!("$JS.API.CONSUMER.INFO.{stream}.{consumer}"),
        headers: None,
        payload: bytes::Bytes::new(),
        object: object.clone(),
        deadline: Instant::now() + BOUND,
    };
    match consumption.connection.ask(ask).await {
        Ok(info) => Ok(info),
        // 10059 and 10014: not found; the description says which.
        Err(NotDone::Refused(error)) => Err(format!("{object}: {error}")),
        Err(other) => Err(other.about(&object).to_string()),
    }
}
