//! Keeps a readiness gate, and the metrics of the connection, in step with the connection. In: its link and its state.

use jetwright_nats::{Connection, ConnectionState, Link};
use jetwright_process::health::Gate;
use tokio::sync::watch;

use crate::metrics::Metrics;

/// The reason before the first connection.
pub(crate) const INITIAL_REASON: &str = "not connected to NATS yet";

/// The gate is open while NATS is connected and replies can arrive. The future ends with the connection.
pub(crate) fn follow(
    connection: &Connection,
    gate: Gate,
    metrics: Metrics,
) -> impl Future<Output = ()> + use<> {
    run(connection.link(), connection.state(), gate, metrics)
}

async fn run(
    mut link: watch::Receiver<Link>,
    mut state: watch::Receiver<ConnectionState>,
    gate: Gate,
    metrics: Metrics,
) {
    let mut counted = 0;
    loop {
        let now = *link.borrow_and_update();
        let reason = not_ready(&state.borrow_and_update(), now.connected);
        match reason {
            None => gate.open(),
            Some(reason) => gate.close(&reason),
        }
        metrics.connection(now.connected, now.epoch - counted);
        counted = now.epoch;
        let changed = tokio::select! {
            changed = link.changed() => changed,
            changed = state.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Why NATS takes no requests; `None` if it does.
fn not_ready(state: &ConnectionState, link_is_up: bool) -> Option<String> {
    match &state.last_error {
        _ if state.connected => None,
        Some(error) if link_is_up => Some(error.to_string()),
        Some(error) => Some(format!("not connected to NATS: {error}")),
        None if state.was_connected => Some("not connected to NATS: the connection was lost".to_owned()),
        None => Some(INITIAL_REASON.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn the_gate_says_why_nats_cannot_be_asked() {
        let reason = |connected, was_connected, error: Option<&str>, link_is_up| {
            let (since, last_error) = (Instant::now(), error.map(Into::into));
            not_ready(&ConnectionState { connected, was_connected, since, last_error }, link_is_up)
        };
        assert_eq!(reason(true, true, None, true), None);
        assert_eq!(reason(false, false, None, false).as_deref(), Some(INITIAL_REASON));
        let refused = Some("not connected to NATS: refused".to_owned());
        assert_eq!(reason(false, true, Some("refused"), false), refused);
        let lost = Some("not connected to NATS: the connection was lost".to_owned());
        assert_eq!(reason(false, true, None, false), lost);
        assert_eq!(reason(false, true, Some("denied"), true).as_deref(), Some("denied"));
    }
}
