//! What is wrong with a configuration, in the words of the person who fixes it.

use std::fmt;
use std::process::ExitCode;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path of the setting (`http.address`), or what else is wrong (a file, a variable).
    pub path: String,
    /// The environment variable that sets it, if there is one.
    pub variable: Option<String>,
    /// What is there, and where it comes from.
    pub found: String,
    /// What belongs there.
    pub expected: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, variable, found, expected } = self;
        write!(formatter, "{path}")?;
        if let Some(variable) = variable {
            write!(formatter, " ({variable})")?;
        }
        write!(formatter, ": {found}; {expected}")
    }
}

/// Every mistake of a configuration, each on a line of its own when displayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// The mistakes, in the order in which they were found.
    #[must_use]
    pub fn as_slice(&self) -> &[Problem] {
        &self.0
    }

    /// `Ok` if there are none.
    ///
    /// # Errors
    ///
    /// The mistakes themselves, if there are any.
    pub fn check(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self(problems)) }
    }

    /// Two parts of a configuration, or the mistakes of both.
    ///
    /// # Errors
    ///
    /// Either has mistakes.
    pub fn zip<A, B>(one: Result<A, Self>, other: Result<B, Self>) -> Result<(A, B), Self> {
        match (one, other) {
            (Ok(one), Ok(other)) => Ok((one, other)),
            (Err(problems), Ok(_)) | (Ok(_), Err(problems)) => Err(problems),
            (Err(one), Err(other)) => Err(one.and(other)),
        }
    }

    /// These mistakes and those of another part of the configuration, so that all are reported together.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

impl Problems {
    /// Prints the mistakes on standard error, for `main` to end with the code returned: 2, as for wrong usage of a command.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        eprintln!("{self}");
        ExitCode::from(2)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(formatter)?;
            }
            write!(formatter, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl FromIterator<Problem> for Problems {
    fn from_iter<T: IntoIterator<Item = Problem>>(problems: T) -> Self {
        Self(problems.into_iter().collect())
    }
}

/// A required setting that could not be read. The reader has noted why, and [`finish`](super::Reader::finish) reports it
/// with all the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted(pub(super) Problem);

impl From<Noted> for Problems {
    fn from(Noted(problem): Noted) -> Self {
        problem.into()
    }
}
