//! Free ports.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Below what Linux hands out for outgoing connections (ip_local_port_range, from 32768), so that nobody is given the
/// port of a server that is stopped for a moment.
const PORTS: Range<u16> = 12_000..32_000;

/// A port of 127.0.0.1 where nobody listens now, and that no other caller in this process was given. Another process may
/// take it before the caller does: a server that is started on it is tried again on others when that happens.
#[must_use]
pub fn free_port() -> u16 {
    /// Ports that were given away, since tests that run at once start their programs some time after they have asked.
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    for _ in 0..1000 {
        let port = rand::random_range(PORTS);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
            && GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port)
        {
            return port;
        }
    }
    panic!("no free port of 127.0.0.1 found in {PORTS:?}, in a thousand tries")
}

/// Whether a server's log says that its port was taken.
pub(crate) fn was_taken(log: &str) -> bool {
    log.contains("address already in use")
}
