//! What is wrong with a field of a spec (field.Error of Kubernetes). Pure.

use jetwright_crds::{Duration, Size};

/// One field with a value that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field.
    pub field: &'static str,
    /// What is wrong with its value, and what to do.
    pub message: String,
}

impl FieldError {
    pub fn new(field: &'static str, message: impl Into<String>) -> Self {
        Self { field, message: message.into() }
    }

    /// What is wrong with a duration that JetStream cannot hold.
    #[must_use]
    pub fn too_long(field: &'static str, duration: Option<Duration>) -> Option<Self> {
        let duration = duration.filter(|duration| *duration > Duration::MAX)?;
        Some(Self::new(
            field,
            format!("{duration} must be at most 292 years, which is all that JetStream holds"),
        ))
    }

    /// What is wrong with a size that JetStream cannot count.
    #[must_use]
    pub fn too_large(field: &'static str, size: Option<Size>) -> Option<Self> {
        let size = size.filter(|size| *size > Size::MAX)?;
        Some(Self::new(
            field,
            format!("{size} must be less than 2^63 bytes (8192Pi), as JetStream counts them"),
        ))
    }
}

/// All errors in one message.
#[must_use]
pub fn join(errors: &[FieldError]) -> String {
    errors
        .iter()
        .map(|FieldError { field, message }| format!("{field}: {message}"))
        .collect::<Vec<_>>()
        .join("; ")
}
