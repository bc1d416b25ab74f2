//! Tells JetStream what was decided, until it confirms. Decides nothing.

use std::time::Duration;

use async_nats::{Request, RequestErrorKind};
use tokio::time::{Instant, sleep, timeout_at};

use super::{Consumption, find::Incarnation, settle::Settlement};
use crate::connection::{forbidden, pause};

/// How long JetStream may take to confirm before it is told again.
const ANSWER: Duration = Duration::from_secs(1);
/// So often JetStream may be silent. It answers no settlement of a delivery that it does not know, and after a kill it
/// may have forgotten its newest deliveries: it makes them again, for which there must be room.
const SILENCES: u32 = 3;
/// How long a settlement is repeated at least while JetStream is away; when it is back, a delivery has its whole ackWait
/// again.
const AT_LEAST: Duration = Duration::from_secs(30);

/// What one delivery is settled with.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    /// Where JetStream is told.
    pub(super) reply: String,
    /// The consumer that delivered it, and whether it still is the one.
    pub(super) incarnation: Incarnation,
}

/// Tells JetStream until it confirms, or until there is no use in it: the event is delivered again then.
pub(super) async fn confirm<H>(consumption: &Consumption<H>, delivery: &Delivery, settlement: &Settlement) {
    let mut incarnation = delivery.incarnation.clone();
    let confirmed = tokio::select! {
        biased;
        // Sequences begin again with a stream: what this settlement names may be another event there.
        () = incarnation.replaced() => {
            tracing::warn!("the consumer was made again; the settlement of its predecessor's delivery is dropped");
            consumption.metrics.unconfirmed();
            return;
        }
        confirmed = repeat(consumption, &delivery.reply, settlement) => confirmed,
    };
    if !confirmed {
        consumption.metrics.unconfirmed();
        tracing::warn!("JetStream did not confirm the settlement; the event may be delivered again");
    }
}

async fn repeat<H>(consumption: &Consumption<H>, reply: &str, settlement: &Settlement) -> bool {
    let payload = payload(settlement);
    let deadlines = Deadlines::new(settlement, consumption.binding.ack_wait.0, Instant::now());
    let mut silences = 0;
    for attempt in 1.. {
        let request = Request::new().payload(payload.clone().into()).timeout(Some(ANSWER));
        let deadline = if attempt == 1 { deadlines.first } else { deadlines.repeated };
        match timeout_at(deadline, consumption.connection.send(reply, request)).await {
            Ok(Ok(_)) => return true,
            // Whoever pulls is told, and the log is.
            Ok(Err(error)) if forbidden(&error).is_some() => return false,
            Ok(Err(error)) => {
                tracing::debug!(%error, attempt, "settlement not confirmed yet");
                if error.kind() == RequestErrorKind::TimedOut {
                    silences += 1;
                    consumption.doubt.notify_one();
                }
            }
            Err(_) => return false,
        }
        let wait = pause(attempt + 1, rand::random());
        if silences >= SILENCES || Instant::now() + wait >= deadlines.repeated {
            return false;
        }
        sleep(wait).await;
    }
    false
}

/// Until when a settlement is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Deadlines {
    /// The first time, which may have to wait for NATS.
    first: Instant,
    /// Each time after.
    repeated: Instant,
}

impl Deadlines {
    /// A retry whose first telling was heard, and its answer lost, is delivered again after its delay: told later than
    /// that, it would start the event once more beside its next attempt.
    fn new(settlement: &Settlement, ack_wait: Duration, now: Instant) -> Self {
        let first = now + ack_wait.max(AT_LEAST);
        let repeated = match settlement {
            Settlement::Retry { after, .. } => first.min(now + *after),
            Settlement::Ack | Settlement::Bury { .. } => first,
        };
        Self { first, repeated }
    }
}

/// Tells JetStream once that the event is still being handled, unless its consumer is another now.
pub(super) async fn in_progress<H>(consumption: &Consumption<H>, delivery: &Delivery) {
    if delivery.incarnation.is_replaced() {
        return;
    }
    let told = consumption.connection.client().publish(delivery.reply.clone(), "+WPI".into()).await;
    if let Err(error) = told {
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

    #[test]
    fn a_retry_is_not_repeated_when_the_next_attempt_may_have_begun() {
        let now = Instant::now();
        let after = |milliseconds| Settlement::Retry {
            after: Duration::from_millis(milliseconds),
            error: String::new(),
        };
        let deadlines = |settlement: &Settlement| {
            let Deadlines { first, repeated } = Deadlines::new(settlement, Duration::from_mins(1), now);
            ((first - now).as_millis(), (repeated - now).as_millis())
        };
        assert_eq!(deadlines(&after(1500)), (60_000, 1500));
        assert_eq!(deadlines(&after(90_000)), (60_000, 60_000));
        assert_eq!(deadlines(&Settlement::Ack), (60_000, 60_000));
    }
}
