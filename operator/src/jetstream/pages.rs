//! Where the next page of a list of JetStream begins, and where the list ends. Pure.

use std::collections::HashSet;

use jetwright_nats::Page;

use super::info::StreamInfo;

/// How far a list was read: to what the server says is its end, or to a page that brings nothing new, as from a server that ignores the offset.
#[derive(Default)]
pub struct Pages {
    /// Where the next page begins.
    pub offset: usize,
    seen: HashSet<String>,
}

impl Pages {
    /// Takes note of a page; whether there is another one.
    pub fn is_followed<I>(&mut self, page: &Page<I>, name: impl Fn(&I) -> &str) -> bool {
        // A page has less than there is where servers do not answer.
        self.offset += page.items.len().max(page.limit);
        let mut is_new = false;
        for name in page.items.iter().map(name).chain(page.missing.iter().map(String::as_str)) {
            is_new |= self.seen.insert(name.to_owned());
        }
        is_new && self.offset < page.total
    }
}

/// The name of a stream in a list.
pub fn stream_name(stream: &StreamInfo) -> &str {
    stream.name().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The requests that a list of so many takes, and what it brings, from a server that ignores offsets or not.
    fn read(count: usize, total: usize, ignores_offset: bool) -> (usize, Vec<usize>) {
        let (mut pages, mut requests, mut taken) = (Pages::default(), 0, BTreeSet::new());
        loop {
            requests += 1;
            let from = if ignores_offset { 0 } else { pages.offset.min(count) };
            let items: Vec<_> = (from..count.min(from + 256)).map(|number| number.to_string()).collect();
            taken.extend(items.iter().map(|item| item.parse::<usize>().unwrap()));
            if !pages.is_followed(&Page { items, missing: Vec::new(), limit: 256, total }, String::as_str) {
                return (requests, taken.into_iter().collect());
            }
        }
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
