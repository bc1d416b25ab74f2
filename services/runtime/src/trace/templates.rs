//! The filter of a consumer that an event's subject matches: the name of where the event came from, without the ids in its subject.

use std::sync::Arc;

use parking_lot::RwLock;

use crate::subject::matches;

/// The filters of a handler's events. They change when somebody changes the consumer.
#[derive(Debug, Default)]
pub(crate) struct Templates(RwLock<Arc<[String]>>);

impl Templates {
    /// The consumer has these filters of published subjects now.
    pub(crate) fn set(&self, filters: &[&str]) {
        let is_same = self.0.read().iter().map(String::as_str).eq(filters.iter().copied());
        if !is_same {
            *self.0.write() = filters.iter().map(|filter| (*filter).to_owned()).collect();
        }
    }

    /// The filter that this subject matches; none if it stands for every subject.
    pub(super) fn of(&self, subject: &str) -> Option<String> {
        let filters = Arc::clone(&self.0.read());
        filters.iter().find(|filter| *filter != ">" && matches(filter, subject)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_of_a_subject_is_the_filter_that_it_matches() {
        let templates = Templates::default();
        assert_eq!(templates.of("orders.42.placed"), None);
        templates.set(&["users.>", "orders.*.placed"]);
        assert_eq!(templates.of("orders.42.placed").as_deref(), Some("orders.*.placed"));
        assert_eq!(templates.of("orders.42.confirmed"), None);
        templates.set(&[">"]);
        assert_eq!(templates.of("orders.42.placed"), None);
    }
}
