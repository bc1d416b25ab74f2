//! Texts within the bounds of where they go. Pure.

use std::borrow::Cow;

/// What ends a text that was cut.
const ELLIPSIS: &str = "…";

/// A text of at most so many bytes, cut between two characters.
#[must_use]
pub fn cut(text: &str, max_bytes: usize) -> Cow<'_, str> {
    if text.len() <= max_bytes {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(max_bytes.saturating_sub(ELLIPSIS.len()));
    Cow::Owned(format!("{}{ELLIPSIS}", &text[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_by_its_bytes_and_never_within_a_character() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("longer", 5), "lo…");
        let cyrillic = "я".repeat(1024);
        for bound in 1000..1024 {
            let cut = cut(&cyrillic, bound);
            assert!(
                cut.len() <= bound && cut.len() + 2 > bound && cut.ends_with("я…"),
                "{bound}: {}",
                cut.len()
            );
        }
    }
}
