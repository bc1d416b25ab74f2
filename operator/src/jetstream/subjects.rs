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

/// Whether every subject that the one matches is matched by the other too, by the server's own rule (isSubsetMatchTokenized in
/// server/sublist.go of nats-server).
#[must_use]
pub fn is_covered(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (Some(_), Some(">")) | (None, None) => return true,
            (Some(a), Some(b)) if a == b || (b == "*" && a != ">") => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_covered_by_one_that_matches_all_of_it() {
        for (one, other) in
            [("a.b", "a.*"), ("a.*", "a.>"), ("a.>", "a.>"), ("a.>", ">"), ("a.b.c", "*.b.>"), ("a", "a")]
        {
            assert!(is_covered(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("a.*", "a.b"),
            ("a.>", "a.*"),
            ("a.*.x", "a.1.*"),
            ("a.1.*", "a.*.x"),
            ("a", "a.>"),
            ("a.b", "a"),
        ] {
            assert!(!is_covered(one, other), "{one} {other}");
        }
    }

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
