//! Configuration from a YAML file with the environment over it. All mistakes are reported at once.
//!
//! A setting has one path, with dots between its levels and camelCase for several words: `http.maxBodyBytes`. The
//! environment variable over it is made from the path and the program's prefix: dots and word boundaries become `_`, and
//! all is upper case (`USERS_HTTP_MAX_BODY_BYTES`). The path gives the variable and never the other way round, so `_` is
//! free to stand for both. A variable that is set to nothing counts as not set.
//!
//! ```
//! use std::net::SocketAddr;
//! use jetwright_process::configuration::{Problems, Reader};
//!
//! struct Configuration { address: SocketAddr, database: String }
//!
//! fn read() -> Result<Configuration, Problems> {
//!     let mut reader = Reader::open(None, "SHOP")?;
//!     let address = reader.value("http.address", SocketAddr::from(([0, 0, 0, 0], 8080)));
//!     let database = reader.required("database");
//!     reader.finish()?;
//!     Ok(Configuration { address, database: database? })
//! }
//! # assert!(read().is_err());
//! ```

mod problems;
mod reader;

use std::path::PathBuf;

pub use problems::{Noted, Problem, Problems};
pub use reader::Reader;

/// The configuration file that `<PREFIX>_CONFIG_FILE` names, if it does.
#[must_use]
pub fn file(prefix: &str) -> Option<PathBuf> {
    std::env::var_os(format!("{prefix}_{CONFIG_FILE}")).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// What follows the prefix in the name of the variable that names the file.
const CONFIG_FILE: &str = "CONFIG_FILE";
