//! Subjects with wildcards. Pure.

/// Whether some subject matches both: `*` stands for one token, `>` for one or more at the end.
#[must_use]
pub fn overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (Some(">"), Some(_)) | (Some(_), Some(">")) | (None, None) => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_overlap_where_some_subject_matches_both() {
        for (one, other) in [
            ("orders.1.placed", "orders.*.*"),
            ("orders.*.placed", "orders.1.*"),
            ("orders.>", "orders.*.*"),
            ("orders.>", "orders.1"),
            (">", "a"),
            ("a", "a"),
        ] {
            assert!(overlap(one, other) && overlap(other, one), "{one} {other}");
        }
        for (one, other) in
            [("orders.*", "orders.*.*"), ("orders.>", "orders"), ("users.*", "orders.*"), ("a", "b")]
        {
            assert!(!overlap(one, other) && !overlap(other, one), "{one} {other}");
        }
    }
}
