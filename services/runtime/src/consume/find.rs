//! Waits until the consumer is there. Asks JetStream; never gives up.

use std::time::Duration;

use serde::de::IgnoredAny;
use tokio::time::{Instant, sleep};

use super::Consumption;
use crate::{
    Handler,
    connection::{Ask, NotDone, pause},
};

/// How long one question may take.
const BOUND: Duration = Duration::from_secs(5);

/// Returns when JetStream says that the consumer exists. Until then the gate says what is missing.
pub(super) async fn find<H: Handler>(consumption: &Consumption<H>) {
    let mut told = String::new();
    for attempt in 1.. {
        let Err(why) = ask(consumption).await else {
            consumption.gate.open();
            tracing::info!(binding = H::BINDING, "consuming");
            return;
        };
        consumption.gate.close(&why);
        if why != told {
            tracing::warn!(binding = H::BINDING, why, "waits for its consumer");
            told = why;
        }
        sleep(pause(attempt + 1, rand::random())).await;
    }
}

async fn ask<H: Handler>(consumption: &Consumption<H>) -> Result<(), String> {
    let (stream, consumer) = (&consumption.binding.stream, &consumption.binding.consumer);
    let object = format!("consumer {consumer} of stream {stream}");
    let ask = Ask {
        subject: format!("$JS.API.CONSUMER.INFO.{stream}.{consumer}"),
        headers: None,
        payload: bytes::Bytes::new(),
        object: object.clone(),
        deadline: Instant::now() + BOUND,
    };
    match consumption.connection.ask::<IgnoredAny>(ask).await {
        Ok(IgnoredAny) => Ok(()),
        // 10059 and 10014: not found; the description says which.
        Err(NotDone::Refused(error)) => Err(format!("{object}: {error}")),
        Err(other) => Err(other.about(&object).to_string()),
    }
}
