//! Who a program is to NATS: a folder of files, as Kubernetes mounts a Secret, and nothing in the environment.
//!
//! The files are read again at every connect, so that a Secret that was changed is used without a restart. A connection that
//! stands goes on with what it was made with. [`options`] makes a connection tell why it is not there, and what the
//! servers do not permit.

mod check;
mod files;
mod folder;
mod listen;
mod violation;

pub use folder::Credentials;
pub use listen::{Happening, options, options_with};
pub use violation::{Violation, Violations, Watch};
