//! The service over HTTP.
//!
//! | request | answer |
//! | --- | --- |
//! | `POST /users` with `{"email": "ann@example.org"}` | 201 with the user and its `Location` |
//! | the same again with the same `Idempotency-Key` | 200 with the same user; 422 with another email |
//! | `GET /users/{id}` | 200 with the user, 404 |
//!
//! All of these responses have an `Event-Sequence`: that of the user's newest event in the response. A `GET` with
//! this number as `Minimum-Event-Sequence` gets a response with that event in it, so that a client reads its own writes.
//!
//! A user is `{"id", "email", "created_at"}`, the time by RFC 3339. If NATS cannot take or give events: 503 within
//! seconds, with `Retry-After`; with an `Idempotency-Key` a retry is safe. Other mistakes are 4xx.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::routing::{get, post};
use jetwright_process::http::{HttpMetrics, Json, Path, Problem, idempotency_key, with_defaults};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::user::{self, Email, Register, User};
use crate::users::{Registered, Users, UsersError, VersionedUser};

/// Sequence of the newest event in a response.
const EVENT_SEQUENCE: HeaderName = HeaderName::from_static("event-sequence");
/// Sequence of an event that must be in the response.
const MINIMUM_EVENT_SEQUENCE: &str = "Minimum-Event-Sequence";

/// The routes.
pub(crate) fn router(users: Users, metrics: HttpMetrics) -> Router {
    let routes = Router::new().route("/users", post(create_user)).route("/users/{id}", get(get_user));
    with_defaults(routes, metrics).with_state(users)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewUser {
    email: String,
}

#[derive(Debug, Serialize)]
struct UserView {
    id: Uuid,
    email: String,
    created_at: Timestamp,
}

type UserResponse<const HEADERS: usize> = (StatusCode, [(HeaderName, String); HEADERS], Json<UserView>);

async fn create_user(
    State(users): State<Users>,
    headers: HeaderMap,
    Json(new): Json<NewUser>,
) -> Result<UserResponse<2>, Problem> {
    let id = user::id(idempotency_key(&headers)?);
    let email: Email = new
        .email
        .parse()
        .map_err(|expected| Problem::invalid("the user is invalid").field("email", expected))?;
    let Registered { user, new, sequence } =
        users.register(&Register { id, email, at: Timestamp::now() }).await?;
    tracing::info!(user = %user.id, new, "registered user");
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    let location = (header::LOCATION, format!("/users/{}", user.id));
    Ok((status, [location, (EVENT_SEQUENCE, sequence.to_string())], Json(view(user))))
}

async fn get_user(
    State(users): State<Users>,
    Path(id): Path<Uuid>,
    headers: HeaderMap,
) -> Result<UserResponse<1>, Problem> {
    let user = users.get(id, minimum_sequence(&headers)?).await?;
    let VersionedUser { user, sequence } = user.ok_or_else(|| Problem::not_found("there is no such user"))?;
    Ok((StatusCode::OK, [(EVENT_SEQUENCE, sequence.to_string())], Json(view(user))))
}

/// Sequence of the event that the caller wants in the response; 0 by default.
fn minimum_sequence(headers: &HeaderMap) -> Result<u64, Problem> {
    let Some(text) = headers.get(MINIMUM_EVENT_SEQUENCE) else { return Ok(0) };
    let number = text.to_str().ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| invalid_minimum("must be the Event-Sequence of a response"))
}

fn invalid_minimum(detail: impl Into<String>) -> Problem {
    Problem::invalid("there is no such event").field(MINIMUM_EVENT_SEQUENCE, detail)
}

fn view(user: User) -> UserView {
    let User { id, email, created_at } = user;
    UserView { id, email: email.as_str().to_owned(), created_at }
}

impl From<UsersError> for Problem {
    fn from(error: UsersError) -> Self {
        match error {
            UsersError::AnotherEmail(_) => {
                let detail = "was used to register another email";
                Self::invalid("one key is for one user").field("Idempotency-Key", detail)
            }
            UsersError::Events(error) => error.into(),
            UsersError::NoSuchEvent(_) => invalid_minimum(error.to_string()),
        }
    }
}
