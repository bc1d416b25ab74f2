//! Permits for requests: how many wait for their replies at once, and how many of those may be for one stream. A stream whose leader
//! is silent keeps each of its permits for as long as a request may take, so it gets at most half of them.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

use crate::api_subjects::api_request;

/// Maximum requests that wait for their replies at once.
const MAX_REQUESTS: usize = 2048;
/// Of these, the requests of one stream.
const MAX_REQUESTS_PER_STREAM: usize = MAX_REQUESTS / 2;
/// Number of streams at which those without requests are forgotten.
const FORGET_AT: usize = 256;

#[derive(Debug)]
pub(crate) struct Permits {
    all: Semaphore,
    /// By name, and never by a hash of it: a stream must not share the permits of one that is silent.
    streams: Mutex<HashMap<Box<str>, Arc<Semaphore>>>,
}

/// Kept while one request waits for its reply.
pub(crate) struct Permit<'a> {
    _stream: OwnedSemaphorePermit,
    _all: SemaphorePermit<'a>,
}

impl Permits {
    pub(crate) fn new() -> Self {
        Self { all: Semaphore::new(MAX_REQUESTS), streams: Mutex::default() }
    }

    /// A permit, if one is free now.
    pub(crate) fn try_acquire(&self, stream: &str) -> Option<Permit<'_>> {
        let stream = self.stream(stream).try_acquire_owned().ok()?;
        Some(Permit { _stream: stream, _all: self.all.try_acquire().ok()? })
    }

    /// Waits for a permit until the deadline.
    pub(crate) async fn acquire(&self, stream: &str, deadline: Instant) -> Option<Permit<'_>> {
        let acquired = async {
            // The stream's permit first: a request that waits for it must not occupy one that others could use.
            let stream = self.stream(stream).acquire_owned().await.ok()?;
            Some(Permit { _stream: stream, _all: self.all.acquire().await.ok()? })
        };
        timeout_at(deadline, acquired).await.ok()?
    }

    /// The permits of this stream.
    fn stream(&self, name: &str) -> Arc<Semaphore> {
        let mut streams = self.streams.lock();
        if let Some(stream) = streams.get(name) {
            return Arc::clone(stream);
        }
        if streams.len() >= FORGET_AT {
            // Who holds a permit of a stream, or waits for one, holds its semaphore too.
            streams.retain(|_, stream| Arc::strong_count(stream) > 1);
        }
        let stream = Arc::new(Semaphore::new(MAX_REQUESTS_PER_STREAM));
        streams.insert(name.into(), Arc::clone(&stream));
        stream
    }
}

/// The stream that a request is for, by its subject: the one that a request to JetStream's API names, or for a publish the first
/// token, which is the same for all subjects of most streams.
pub(crate) fn stream_of<'a>(subject: &'a str) -> &'a str {
    let first = |subject: &'a str| subject.split_once('.').map_or(subject, |(first, _)| first);
    let Some(request) = api_request(subject) else { return first(subject) };
    // CONSUMER.INFO.<stream>.<consumer>, STREAM.MSG.GET.<stream>
    let mut tokens = request.split('.').skip(1);
    let named = tokens.next().and_then(|verb| if verb == "MSG" { tokens.nth(1) } else { tokens.next() });
    named.unwrap_or_else(|| first(subject))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_request_is_for_the_stream_that_its_subject_names() {
        for (subject, stream) in [
            ("orders.42.placed", "orders"),
            ("orders", "orders"),
            ("$JS.API.STREAM.MSG.GET.orders", "orders"),
            ("$JS.API.CONSUMER.INFO.orders.fulfilment", "orders"),
            ("$JS.hub.API.CONSUMER.INFO.orders.fulfilment", "orders"),
            ("$JS.API.INFO", "$JS"),
        ] {
            assert_eq!(stream_of(subject), stream, "{subject}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_stream_leaves_half_of_the_permits_to_each_other() {
        let permits = Permits::new();
        let silent: Vec<_> = std::iter::from_fn(|| permits.try_acquire("silent")).collect();
        assert_eq!(silent.len(), MAX_REQUESTS_PER_STREAM);
        for other in 0..1000 {
            let other = other.to_string();
            let others: Vec<_> = std::iter::from_fn(|| permits.try_acquire(&other)).collect();
            assert_eq!(others.len(), MAX_REQUESTS - MAX_REQUESTS_PER_STREAM, "{other}");
        }
        let soon = Instant::now() + Duration::from_secs(1);
        assert!(permits.acquire("silent", soon).await.is_none());
        assert!(permits.acquire("other", soon + Duration::from_secs(1)).await.is_some());
    }

    #[tokio::test]
    async fn streams_without_requests_are_forgotten_and_others_are_not() {
        let permits = Permits::new();
        let silent: Vec<_> = std::iter::from_fn(|| permits.try_acquire("silent")).collect();
        for other in 0..10 * FORGET_AT {
            assert!(permits.try_acquire(&other.to_string()).is_some());
        }
        assert!(permits.streams.lock().len() <= FORGET_AT);
        assert!(permits.try_acquire("silent").is_none(), "{} are held", silent.len());
    }
}
