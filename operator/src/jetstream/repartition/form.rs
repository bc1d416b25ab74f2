//! In: the partitions that are declared, and those that a stream has, with its mark. Out: what the JetStream consumers of one with order are to be.
//! Pure.

use super::mark::Mark;

/// What the consumers of one with order are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One for each partition.
    Whole { count: u32 },
    /// One for each partition of before, which takes the numbers of the new ones too: those that exist, and no other is made.
    Widened { count: u32, to: u32 },
    /// Those of before are divided, each once it is beyond this sequence.
    Dividing { from: u32, to: u32, at: u64 },
}

impl Form {
    /// The form for a stream with so many partitions. A stream without a number in its subjects has no consumer with order.
    #[must_use]
    pub fn of(declared: u32, actual: u32, mark: Option<&Mark>) -> Self {
        let mark = mark.filter(|mark| mark.to == actual);
        match mark {
            Some(Mark { from, to, at: None }) => Self::Widened { count: from.unwrap_or(*to), to: *to },
            Some(Mark { from: Some(from), to, at: Some(at) }) if from != to => {
                Self::Dividing { from: *from, to: *to, at: *at }
            }
            _ if declared != actual => Self::Widened { count: actual, to: declared },
            _ => Self::Whole { count: actual },
        }
    }

    /// The same where all are divided.
    #[must_use]
    pub fn divided(declared: u32, actual: u32) -> Self {
        Self::of(declared, actual, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumers_are_widened_before_a_change_and_divided_after_it() {
        let mark = |from, to, at| Some(Mark { from, to, at });
        for (declared, actual, mark, expected) in [
            (8, 8, None, Form::Whole { count: 8 }),
            (16, 8, None, Form::Widened { count: 8, to: 16 }),
            (16, 16, mark(Some(8), 16, None), Form::Widened { count: 8, to: 16 }),
            (16, 16, mark(Some(8), 16, Some(7)), Form::Dividing { from: 8, to: 16, at: 7 }),
            // Declared again before all are divided.
            (48, 16, mark(Some(8), 16, Some(7)), Form::Dividing { from: 8, to: 16, at: 7 }),
            (48, 16, mark(Some(8), 16, None), Form::Widened { count: 8, to: 16 }),
            // From no number.
            (8, 8, mark(None, 8, None), Form::Widened { count: 8, to: 8 }),
            (8, 8, mark(None, 8, Some(7)), Form::Whole { count: 8 }),
            // Of an earlier stream.
            (8, 8, mark(Some(2), 4, Some(7)), Form::Whole { count: 8 }),
        ] {
            assert_eq!(Form::of(declared, actual, mark.as_ref()), expected, "{declared} {actual} {mark:?}");
        }
        assert_eq!(Form::divided(48, 16), Form::Widened { count: 16, to: 48 });
        assert_eq!(Form::divided(16, 16), Form::Whole { count: 16 });
    }
}
