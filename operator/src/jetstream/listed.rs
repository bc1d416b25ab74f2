//! A stream or consumer of a list, as the text in which JetStream describes it: 256 of them as trees of values take megabytes, so that each is
//! read when it is its turn. Pure.

use std::marker::PhantomData;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _},
};
use serde_json::value::RawValue;

/// A description that was not read yet, but for the name.
pub struct Listed<T> {
    name: String,
    text: Box<RawValue>,
    described: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Listed<T> {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The description; None where this version cannot read it, which who asks for it alone is told.
    #[must_use]
    pub fn read(&self) -> Option<T> {
        let described = serde_json::from_str(self.text.get());
        described
            .inspect_err(|error| tracing::debug!(self.name, %error, "failed to read what a list has"))
            .ok()
    }
}

impl<'de, T> Deserialize<'de> for Listed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// A consumer says its name itself, a stream in its configuration.
        #[derive(Deserialize)]
        struct Named {
            name: Option<String>,
            config: Option<Box<Named>>,
        }
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let named: Named = serde_json::from_str(text.get()).map_err(D::Error::custom)?;
        let name = named.name.or_else(|| named.config?.name).unwrap_or_default();
        Ok(Self { name, text, described: PhantomData })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jetstream::info::{ConsumerInfo, StreamInfo};

    #[test]
    fn a_stream_and_a_consumer_are_found_by_name_and_read_whole() {
        let stream = r#"{"config": {"name": "orders", "subjects": ["a"]}, "created": "now",
            "state": {"messages": 1, "bytes": 2, "first_seq": 3, "last_seq": 4}}"#;
        let stream: Listed<StreamInfo> = serde_json::from_str(stream).unwrap();
        assert_eq!((stream.name(), stream.read().unwrap().state.last_seq), ("orders", 4));
        let consumer = r#"{"stream_name": "orders", "name": "c", "config": {"name": "c"}, "created": "now"}"#;
        let consumer: Listed<ConsumerInfo> = serde_json::from_str(consumer).unwrap();
        assert_eq!((consumer.name(), consumer.read().unwrap().stream_name), ("c", "orders".to_owned()));
    }

    #[test]
    fn what_cannot_be_read_does_not_keep_the_others_from_it() {
        let page = r#"[{"config": {"name": "odd"}}, {"name": "c", "stream_name": "s", "config": {}, "created": "now"}]"#;
        let page: Vec<Listed<ConsumerInfo>> = serde_json::from_str(page).unwrap();
        let read = |listed: &Listed<ConsumerInfo>| (listed.name().to_owned(), listed.read().is_some());
        assert_eq!(page.iter().map(read).collect::<Vec<_>>(), [("odd".into(), false), ("c".into(), true)]);
    }
}
