//! What services that also answer HTTP share: problems as answers (RFC 9457), JSON bodies, traces, and a graceful end.
//!
//! ```
//! use axum::{Router, routing::post};
//! use jetwright_runtime::http::{Json, Problem, with_defaults};
//!
//! #[derive(serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct NewUser { email: String }
//!
//! async fn create(Json(user): Json<NewUser>) -> Result<String, Problem> {
//!     if !user.email.contains('@') {
//!         return Err(Problem::invalid("the user cannot be registered").field("email", "is no address"));
//!     }
//!     Ok(user.email)
//! }
//!
//! let router: Router = with_defaults(Router::new().route("/users", post(create)));
//! ```

mod extract;
mod layers;
mod problem;

pub use extract::{Json, Path};
pub use layers::{inject, serve, with_defaults};
pub use problem::Problem;
