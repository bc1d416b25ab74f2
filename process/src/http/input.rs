//! What callers send, with every mistake reported by its field. Reads the body; no other I/O.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Problem;

/// Maximum length of an Idempotency-Key, in characters.
const MAX_KEY_CHARS: usize = 255;

/// A JSON body, of requests and responses. Types of requests have `deny_unknown_fields`, so that a misspelt field is an error.
///
/// Errors: 415 if the request's type is not JSON, 413 if it is longer than the limit, 400 if it is not JSON, and 422 with the
/// field if it is JSON of another form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T, S> FromRequest<S> for Json<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            let detail = "send JSON, and say so: Content-Type: application/json";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
        }
        let body = whole_body(request, state).await?;
        parse(&body).map(Self)
    }
}

/// The body, if it is complete and no longer than the limit.
pub(super) async fn whole_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    Bytes::from_request(request, state).await.map_err(|rejection| {
        let detail = match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => "the body is longer than what this service takes".to_owned(),
            _ => rejection.body_text(),
        };
        Problem::new(rejection.status(), detail)
    })
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// Parameters of the path. If they do not parse, nothing exists at that path: 404.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path<T>(pub T);

impl<T, S> FromRequestParts<S> for Path<T>
where
    T: DeserializeOwned + Send,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(_) => Err(Problem::not_found("there is nothing at this path")),
        }
    }
}

/// The caller's Idempotency-Key, if there is one.
///
/// # Errors
///
/// 422 if it is empty, longer than 255 characters, not printable ASCII, or sent twice.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let key = key.to_str().unwrap_or_default();
    if key.is_empty() || key.len() > MAX_KEY_CHARS || keys.next().is_some() {
        let detail = "must be one key of 1 to 255 printable ASCII characters";
        return Err(Problem::invalid("the Idempotency-Key is invalid").field("Idempotency-Key", detail));
    }
    Ok(Some(key))
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let why = error.into_inner();
        if why.is_data() {
            let problem = Problem::invalid("the body is JSON of another form than expected");
            return problem.field(field(&path, &why.to_string()), sentence(&why));
        }
        Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {why}"))
    })?;
    json.end()
        .map_err(|why| Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {why}")))?;
    Ok(value)
}

/// The path of what is wrong. For an absent field serde names the field in the message, and gives the path of its parent.
fn field(path: &str, why: &str) -> String {
    let absent = why.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    match (path, absent) {
        ("." | "", Some(absent)) => absent.to_owned(),
        (path, Some(absent)) => format!("{path}.{absent}"),
        (path, None) => path.to_owned(),
    }
}

/// The message without the position in the text: the field says more.
fn sentence(why: &serde_json::Error) -> String {
    let text = why.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(sentence, _)| sentence.to_owned())
}
