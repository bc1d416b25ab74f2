//! What a program's page of metrics says. Pure.

/// The sum of a counter over all its labels.
#[must_use]
pub fn sum(metrics: &str, counter: &str) -> u64 {
    sum_of(metrics, |line| line.strip_prefix(counter).is_some_and(|rest| rest.starts_with(['{', ' '])))
}

/// The sum of the counters whose lines are chosen.
#[must_use]
pub fn sum_of(metrics: &str, chosen: impl Fn(&str) -> bool) -> u64 {
    let values = metrics
        .lines()
        .filter(|line| chosen(line))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    values.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_summed_over_its_labels_and_no_other_is() {
        let metrics = "# HELP a_total x\na_total{b=\"c\"} 2\na_total{b=\"d\"} 3\na_total_of 7\nb_total 4\n";
        assert_eq!((sum(metrics, "a_total"), sum(metrics, "b_total"), sum(metrics, "c_total")), (5, 4, 0));
        assert_eq!(sum_of(metrics, |line| line.contains("b=\"d\"")), 3);
    }
}
