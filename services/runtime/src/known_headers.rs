//! The headers that an attempt reads of its event. In: the event's headers. Pure.

use async_nats::{HeaderMap, HeaderValue};

use crate::{
    event::EVENT_TYPE,
    trace::{TRACEPARENT, TRACESTATE},
};

/// The first value of each header that an attempt reads, if the event has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KnownHeaders<'a> {
    pub(crate) event_type: Option<&'a str>,
    pub(crate) traceparent: Option<&'a str>,
    pub(crate) tracestate: Option<&'a str>,
}

impl<'a> KnownHeaders<'a> {
    /// Finds all of them in one pass. An event has few headers: to compare their names costs less than to hash three.
    pub(crate) fn find(headers: &'a HeaderMap) -> Self {
        let mut known = Self::default();
        for (name, values) in headers.iter() {
            let name: &str = name.as_ref();
            let value = match name {
                EVENT_TYPE => &mut known.event_type,
                TRACEPARENT => &mut known.traceparent,
                TRACESTATE => &mut known.tracestate,
                _ => continue,
            };
            *value = values.first().map(HeaderValue::as_str);
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_of_each_known_header_is_found_whatever_else_there_is() {
        let mut headers = HeaderMap::new();
        assert_eq!(KnownHeaders::find(&headers), KnownHeaders::default());
        for (name, value) in [
            ("event-type", "another name"),
            (EVENT_TYPE, "a.v1.B"),
            (EVENT_TYPE, "second"),
            ("Nats-Msg-Id", "1"),
            (TRACESTATE, ""),
        ] {
            headers.append(name, value);
        }
        let known = KnownHeaders { event_type: Some("a.v1.B"), traceparent: None, tracestate: Some("") };
        assert_eq!(KnownHeaders::find(&headers), known);
        headers.insert(TRACEPARENT, "00-1");
        assert_eq!(KnownHeaders::find(&headers), KnownHeaders { traceparent: Some("00-1"), ..known });
    }
}
