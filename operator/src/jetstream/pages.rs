//! Lists of JetStream, page by page: where the next page begins, and where the list ends. Asks by what it is given, and does no I/O itself.

use std::{collections::HashSet, future::Future};

use futures::{Stream, stream};
use jetwright_nats::Page;

use crate::hash::hash_of;

/// Most items of a page (JSApiListLimit in server/jetstream_api.go of nats-server).
pub const PAGE: usize = 256;

/// The pages of a list, each asked for from its offset: to what the server says is its end, or to a page that brings nothing new, as from a
/// server that ignores the offset.
pub fn pages<I, E, F: Future<Output = Result<Page<I>, E>>>(
    ask: impl Fn(usize) -> F,
    name: fn(&I) -> &str,
) -> impl Stream<Item = Result<Page<I>, E>> {
    stream::try_unfold(Some(Position::default()), move |position| {
        let asked = position.map(|position| (ask(position.offset), position));
        async move {
            let Some((page, mut position)) = asked else { return Ok(None) };
            let page = page.await?;
            let is_followed = position.is_followed(&page, name);
            Ok(Some((page, is_followed.then_some(position))))
        }
    })
}

/// How far a list was read.
#[derive(Default)]
struct Position {
    /// Where the next page begins.
    offset: usize,
    /// Hashes of the names on the pages before.
    seen: HashSet<u64>,
}

impl Position {
    /// Takes note of a page; whether there is another one.
    fn is_followed<I>(&mut self, page: &Page<I>, name: fn(&I) -> &str) -> bool {
        // A page has less than there is where servers do not answer.
        self.offset += page.items.len().max(page.limit);
        let mut is_new = false;
        for name in page.items.iter().map(name).chain(page.missing.iter().map(String::as_str)) {
            is_new |= self.seen.insert(hash_of(&name));
        }
        is_new && self.offset < page.total
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, collections::BTreeSet, convert::Infallible};

    use futures::{FutureExt, TryStreamExt, future};

    use super::*;

    /// The requests that a list of so many takes, and what it brings, from a server that ignores offsets or not.
    fn read(count: usize, total: usize, ignores_offset: bool) -> (usize, Vec<usize>) {
        let requests = Cell::new(0);
        let ask = |offset: usize| {
            requests.set(requests.get() + 1);
            let from = if ignores_offset { 0 } else { offset.min(count) };
            let items = (from..count.min(from + 256)).map(|number| number.to_string()).collect();
            future::ready(Ok::<_, Infallible>(Page { items, missing: Vec::new(), limit: 256, total }))
        };
        let read = pages(ask, String::as_str).try_collect::<Vec<Page<String>>>();
        let read = read.now_or_never().unwrap().unwrap();
        let taken = read.iter().flat_map(|page| &page.items).map(|item| item.parse::<usize>().unwrap());
        (requests.get(), taken.collect::<BTreeSet<_>>().into_iter().collect())
    }

    #[test]
    fn a_list_is_read_to_its_end_whatever_the_server_makes_of_offset_and_total() {
        for (count, requests) in [(0, 1), (1, 1), (256, 1), (257, 2), (1000, 4)] {
            assert_eq!(read(count, count, false), (requests, (0..count).collect()), "{count}");
        }
        // It says too much, or does not know offsets.
        assert_eq!(read(300, usize::MAX, false), (3, (0..300).collect()));
        assert_eq!(read(1000, 1000, true), (2, (0..256).collect()));
        assert_eq!(read(1000, usize::MAX, true), (2, (0..256).collect()));
    }
}
