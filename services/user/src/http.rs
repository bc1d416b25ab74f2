//! The service over HTTP.
//!
//! | request | answer |
//! | --- | --- |
//! | `POST /users` with `{"email": "ann@example.org"}` | 201 with the user and its `Location` |
//! | the same again with the same `Idempotency-Key` | 200 with the same user; 422 with another email |
//! | `GET /users/{id}` | 200 with the user, 404 |
//!
//! A user is `{"id", "email", "created_at"}`, the time by RFC 3339. Where NATS cannot take or tell events: 503 within
//! seconds, with `Retry-After`; with an `Idempotency-Key` it is safe to come again. Other mistakes are 4xx.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::{get, post};
use jetwright_process::http::{HttpMetrics, Json, Path, Problem, idempotency_key, with_defaults};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::user::{self, Email, Register, User};
use crate::users::{Registered, Users, UsersError};

/// The routes.
pub(crate) fn router(users: Users, metrics: HttpMetrics) -> Router {
    let routes = Router::new().route("/users", post(register)).route("/users/{id}", get(show));
    with_defaults(routes, metrics).with_state(users)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewUser {
    email: String,
}

#[derive(Debug, Serialize)]
struct Shown {
    id: Uuid,
    email: String,
    created_at: Timestamp,
}

type Answer = (StatusCode, [(header::HeaderName, String); 1], Json<Shown>);

async fn register(
    State(users): State<Users>,
    headers: HeaderMap,
    Json(new): Json<NewUser>,
) -> Result<Answer, Problem> {
    let id = user::id(idempotency_key(&headers)?);
    let email: Email =
        new.email.parse().map_err(|expected| Problem::invalid("this is no user").field("email", expected))?;
    let Registered { user, new } = users.register(&Register { id, email, at: Timestamp::now() }).await?;
    tracing::info!(user = %user.id, new, "registered");
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, [(header::LOCATION, format!("/users/{}", user.id))], Json(shown(user))))
}

async fn show(State(users): State<Users>, Path(id): Path<Uuid>) -> Result<Json<Shown>, Problem> {
    let user = users.get(id).await?.ok_or_else(|| Problem::not_found("there is no such user"))?;
    Ok(Json(shown(user)))
}

fn shown(user: User) -> Shown {
    let User { id, email, created_at } = user;
    Shown { id, email: email.as_str().to_owned(), created_at }
}

impl From<UsersError> for Problem {
    fn from(error: UsersError) -> Self {
        match error {
            UsersError::AnotherEmail(_) => {
                let detail = "was used to register another email";
                Self::invalid("one key is for one user").field("Idempotency-Key", detail)
            }
            UsersError::JetStream(error) => error.into(),
            UsersError::Unreadable { .. } => {
                tracing::error!(%error, "answered 500");
                Self::internal()
            }
        }
    }
}
