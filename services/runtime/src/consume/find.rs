//! Waits until the consumer is there, and learns which one it is. Asks JetStream; never gives up.

use std::{sync::PoisonError, time::Duration};

use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::Consumption;
use crate::{
    Handler,
    connection::{Request, RequestError, pause},
};

/// How long one question may take.
const BOUND: Duration = Duration::from_secs(5);

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
                return found(consumption, created);
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

/// One of the name that was made at another time is another one.
fn found<H>(consumption: &Consumption<H>, created: String) {
    let mut made = consumption.made.lock().unwrap_or_else(PoisonError::into_inner);
    if made.as_ref() != Some(&created) {
        *made = Some(created);
        consumption.incarnation.send_modify(|incarnation| *incarnation += 1);
    }
}

async fn ask<H: Handler>(consumption: &Consumption<H>) -> Result<Info, String> {
    let (stream, consumer) = (&consumption.binding.stream, &consumption.binding.consumer);
    let object = format!("consumer {consumer} of stream {stream}");
    let request = Request {
        subject: format!("$JS.API.CONSUMER.INFO.{stream}.{consumer}"),
        headers: None,
        payload: bytes::Bytes::new(),
        object: object.clone(),
        deadline: Instant::now() + BOUND,
    };
    match consumption.connection.request(request).await {
        Ok(info) => Ok(info),
        // 10059 and 10014: not found; the description says which.
        Err(RequestError::Refused(error)) => Err(format!("{object}: {error}")),
        Err(other) => Err(other.into_error(&object).to_string()),
    }
}
