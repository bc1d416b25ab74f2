//! Errors as RFC 9457 defines them.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// A response of type `application/problem+json`: `status`, `title` (the status' own phrase), `detail`, and in `errors` each
/// field that is wrong. All text is for the caller: internal causes go to the log, never into a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    detail: String,
    /// Field and what is wrong with it.
    errors: Vec<(String, String)>,
    retry_after: Option<Duration>,
}

impl Problem {
    /// A problem, in a sentence that says what is wrong and, if the caller can fix it, how.
    #[must_use]
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), errors: Vec::new(), retry_after: None }
    }

    /// 422: the request is readable and wrong. [`field`](Self::field) says where.
    #[must_use]
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    }

    /// 404.
    #[must_use]
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// 409: the state is not what the request assumes.
    #[must_use]
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    /// 503: something that this program needs is unavailable; the caller may repeat the same request after a second.
    #[must_use]
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(Duration::from_secs(1))
    }

    /// 500. The cause belongs in the log.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the program failed; its log has the cause")
    }

    /// Says when the caller may repeat the same request (in whole seconds, at least one).
    #[must_use]
    pub fn retry_after(self, after: Duration) -> Self {
        Self { retry_after: Some(after), ..self }
    }

    /// Names a field that is wrong (`lines[0].quantity`, or a header), and why.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>, detail: impl Into<String>) -> Self {
        self.errors.push((field.into(), detail.into()));
        self
    }

    /// Whether any field was named.
    #[must_use]
    pub fn has_fields(&self) -> bool {
        !self.errors.is_empty()
    }

    /// The status of the response.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self { status, detail, errors, retry_after } = self;
        let title = status.canonical_reason().unwrap_or("Error");
        let mut body = json!({"status": status.as_u16(), "title": title, "detail": detail});
        if !errors.is_empty() {
            body["errors"] =
                errors.into_iter().map(|(field, detail)| json!({"field": field, "detail": detail})).collect();
        }
        let mut response = (status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(after) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        response
    }
}
