//! The filter of a consumer that an event's subject matches: the name of where the event came from, without the ids in its subject.

use std::sync::Arc;

use parking_lot::RwLock;

use crate::subject::matches;

/// The filters of a handler's events. They change when somebody changes the consumer.
#[derive(Debug, Default)]
pub(crate) struct Templates(RwLock<Arc<[Template]>>);

/// A filter, with what spans are called by it.
#[derive(Clone, Debug)]
pub(super) struct Template {
    pub(super) filter: Arc<str>,
    /// Name of the span of an attempt.
    pub(super) attempt: Arc<str>,
}

impl Templates {
    /// The consumer has these filters now.
    pub(crate) fn set(&self, filters: &[&str]) {
        let is_same = self.0.read().iter().map(|template| &*template.filter).eq(filters.iter().copied());
        if !is_same {
            *self.0.write() = filters.iter().map(|filter| Template::of(filter)).collect();
        }
    }

    /// The filter that this subject matches; none if it stands for every subject.
    pub(super) fn of(&self, subject: &str) -> Option<Template> {
        let templates = Arc::clone(&self.0.read());
        let found =
            templates.iter().find(|template| &*template.filter != ">" && matches(&template.filter, subject));
        found.cloned()
    }
}

impl Template {
    fn of(filter: &str) -> Self {
        Self { filter: filter.into(), attempt: format!("process {filter}").into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_of_a_subject_is_the_filter_that_it_matches() {
        let templates = Templates::default();
        let of = |subject| templates.of(subject).map(|template| template.filter.to_string());
        assert_eq!(of("orders.42.placed"), None);
        templates.set(&["users.>", "orders.*.placed"]);
        assert_eq!(of("orders.42.placed").as_deref(), Some("orders.*.placed"));
        assert_eq!(of("orders.42.confirmed"), None);
        templates.set(&[">"]);
        assert_eq!(of("orders.42.placed"), None);
    }
}
