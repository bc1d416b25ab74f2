//! The order service's own metrics.

use jetwright_process::metrics::catalogue::{name_of, words};

jetwright_process::catalogue! {
    /// By step and outcome.
    STEP_DURATION: Histogram "fulfilment_step_duration_seconds" [
        words("step", &["user_validation", "inventory_reservation", "payment_authorization"]),
        words("outcome", &["passed", "refused", "failed"])
    ] "Time that a step of the fulfilment took, by how it ended";
    /// By article.
    OPEN_RESERVATIONS: Gauge "inventory_open_reservations" [
        name_of("sku", "an article")
    ] "Open orders with reserved pieces of the article, as this process last saw it; at most 10,000";
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use jetwright_process::metrics::{catalogue::problems, page};

    use super::CATALOGUE;

    #[test]
    fn the_page_has_the_metrics_of_the_order_service() {
        assert_eq!(problems(CATALOGUE), [""; 0]);
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
        page::check(&file, "order service", CATALOGUE).unwrap();
    }
}
