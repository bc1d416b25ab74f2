//! Metrics: a catalogue per program, from which come their registration, their page and their test; and those of the process itself.
//!
//! [`catalogue`] is the table and what is made of it, [`exposition`] compares with it what a program exports, and [`page`] is its part of
//! the documentation.

pub mod catalogue;
pub mod exposition;
pub mod page;
pub mod program;
pub(crate) mod scrape;

pub use program::register;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{catalogue, page, program};
    use crate::http;

    #[test]
    fn the_page_has_the_metrics_of_every_program_and_of_http_interfaces() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        for (section, rows) in [("process", program::CATALOGUE), ("http", http::METRICS)] {
            assert_eq!(catalogue::problems(rows), [""; 0]);
            page::check(&page, section, rows).unwrap();
        }
    }
}
