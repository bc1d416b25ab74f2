//! Permits for requests: how many wait for their replies at once, and how many of those may be for one stream. A stream whose leader
//! is silent keeps each of its permits for as long as a request may take, so it gets at most half of them.

use std::{
    array,
    hash::{BuildHasher, RandomState},
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

use crate::api_subjects::api_request;

/// Maximum requests that wait for their replies at once.
const MAX_REQUESTS: usize = 2048;
/// Of these, the requests of one stream.
const MAX_REQUESTS_PER_STREAM: usize = MAX_REQUESTS / 2;
/// Streams are counted by the hash of their names; two of this many share a count.
const STREAM_COUNTS: usize = 64;

#[derive(Debug)]
pub(crate) struct Permits {
    all: Semaphore,
    streams: [Semaphore; STREAM_COUNTS],
    hasher: RandomState,
}

/// Kept while one request waits for its reply.
pub(crate) struct Permit<'a> {
    _stream: SemaphorePermit<'a>,
    _all: SemaphorePermit<'a>,
}

impl Permits {
    pub(crate) fn new() -> Self {
        let streams = array::from_fn(|_| Semaphore::new(MAX_REQUESTS_PER_STREAM));
        Self { all: Semaphore::new(MAX_REQUESTS), streams, hasher: RandomState::new() }
    }

    /// A permit, if one is free now.
    pub(crate) fn try_acquire(&self, stream: &str) -> Option<Permit<'_>> {
        let stream = self.stream(stream).try_acquire().ok()?;
        Some(Permit { _stream: stream, _all: self.all.try_acquire().ok()? })
    }

    /// Waits for a permit until the deadline.
    pub(crate) async fn acquire(&self, stream: &str, deadline: Instant) -> Option<Permit<'_>> {
        let acquired = async {
            // The stream's permit first: a request that waits for it must not occupy one that others could use.
            let stream = self.stream(stream).acquire().await.ok()?;
            Some(Permit { _stream: stream, _all: self.all.acquire().await.ok()? })
        };
        timeout_at(deadline, acquired).await.ok()?
    }

    fn stream(&self, name: &str) -> &Semaphore {
        let hash = self.hasher.hash_one(name);
        // The remainder is less than the number of streams.
        let index = usize::try_from(hash % STREAM_COUNTS as u64).unwrap_or_default();
        &self.streams[index]
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
    async fn one_stream_leaves_half_of_the_permits_to_others() {
        let permits = Permits::new();
        let other = (0..).map(|number| number.to_string());
        let mut other = other.filter(|other| !std::ptr::eq(permits.stream(other), permits.stream("silent")));
        let other = other.next().unwrap();
        let silent: Vec<_> = std::iter::from_fn(|| permits.try_acquire("silent")).collect();
        let others: Vec<_> = std::iter::from_fn(|| permits.try_acquire(&other)).collect();
        assert_eq!(
            (silent.len(), others.len()),
            (MAX_REQUESTS_PER_STREAM, MAX_REQUESTS - MAX_REQUESTS_PER_STREAM)
        );
        let soon = Instant::now() + Duration::from_secs(1);
        assert!(permits.acquire("silent", soon).await.is_none());
        drop(others);
        assert!(permits.acquire(&other, soon + Duration::from_secs(1)).await.is_some());
    }
}
