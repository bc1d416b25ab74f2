//! Subjects and filters of subjects. Pure.

/// Whether a filter, which may have wildcards, matches this subject.
pub(crate) fn matches(filter: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in filter.split('.') {
        match (wanted, tokens.next()) {
            (">", token) => return token.is_some(),
            ("*", Some(_)) => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

/// Whether a filter stands for several subjects, and not for every one.
pub(crate) fn is_some_of_many(filter: &str) -> bool {
    filter != ">" && filter.split('.').any(|token| token == "*" || token == ">")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_matches_by_tokens() {
        for (filter, subject, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*.c", "a.b.c", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a", true),
            ("a.b.>", "a.bc.d", false),
        ] {
            assert_eq!(matches(filter, subject), expected, "{filter} {subject}");
        }
    }

    #[test]
    fn a_filter_of_several_subjects_has_a_wildcard() {
        let several: Vec<_> =
            ["a.>", "a.*.b", "a.b", ">", "a*"].into_iter().filter(|filter| is_some_of_many(filter)).collect();
        assert_eq!(several, ["a.>", "a.*.b"]);
    }
}
