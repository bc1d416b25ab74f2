//! What is wrong with a field of a spec (field.Error of Kubernetes). Pure.

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
