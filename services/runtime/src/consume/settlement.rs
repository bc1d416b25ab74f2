//! Tells JetStream what was decided, until it confirms. Decides nothing.

use std::time::Duration;

use async_nats::{Request, RequestErrorKind};
use tokio::time::{Instant, sleep, timeout_at};

use super::{Consumption, settle::Settlement};
use crate::connection::pause;

/// How long JetStream may take to confirm before it is told again.
const ANSWER: Duration = Duration::from_secs(1);
/// So often JetStream may be silent. It answers no settlement of a delivery that it does not know, and after a kill it
/// may have forgotten its newest deliveries: it makes them again, for which there must be room.
const SILENCES: u32 = 3;
/// How long a settlement is repeated at least while JetStream is away; when it is back, a delivery has its whole ackWait
/// again.
const AT_LEAST: Duration = Duration::from_secs(30);

/// Tells JetStream until it confirms, or until there is no use in it: the event is delivered again then.
pub(super) async fn confirm<H>(consumption: &Consumption<H>, reply: &str, settlement: &Settlement) {
    let payload = payload(settlement);
    let deadline = Instant::now() + consumption.binding.ack_wait.0.max(AT_LEAST);
    let mut silences = 0;
    for attempt in 1.. {
        let request = Request::new().payload(payload.clone().into()).timeout(Some(ANSWER));
        match timeout_at(deadline, consumption.connection.send(reply, request)).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => {
                tracing::debug!(%error, attempt, "settlement not confirmed yet");
                silences += u32::from(error.kind() == RequestErrorKind::TimedOut);
            }
            Err(_) => break,
        }
        let wait = pause(attempt + 1, rand::random());
        if silences >= SILENCES || Instant::now() + wait >= deadline {
            break;
        }
        sleep(wait).await;
    }
    consumption.metrics.unconfirmed();
    tracing::warn!("JetStream did not confirm the settlement; the event may be delivered again");
}

/// Tells JetStream once that the event is still being handled.
pub(super) async fn in_progress<H>(consumption: &Consumption<H>, reply: &str) {
    if let Err(error) = consumption.connection.client().publish(reply.to_owned(), "+WPI".into()).await {
        tracing::debug!(%error, "JetStream was not told of work in progress");
    }
}

/// The acknowledgement's payload, as the server reads it (NATS ADR-15; the reason of a term goes into its advisory).
fn payload(settlement: &Settlement) -> String {
    match settlement {
        Settlement::Ack => "+ACK".to_owned(),
        Settlement::Retry { after, .. } => format!("-NAK {{\"delay\":{}}}", after.as_nanos()),
        Settlement::Bury { reason, .. } => format!("+TERM jetwright:{}", reason.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::settle::Reason;
    use super::*;

    #[test]
    fn each_settlement_is_what_the_server_reads() {
        assert_eq!(payload(&Settlement::Ack), "+ACK");
        let after = Duration::from_millis(1500);
        assert_eq!(
            payload(&Settlement::Retry { after, error: String::new() }),
            r#"-NAK {"delay":1500000000}"#
        );
        let bury = Settlement::Bury { reason: Reason::LastAttempt, error: "x".to_owned() };
        assert_eq!(payload(&bury), "+TERM jetwright:last-attempt");
    }
}
