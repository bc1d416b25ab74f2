//! Hashes that live as long as the process.

use std::hash::{DefaultHasher, Hash, Hasher};

/// The hash of a value. Never kept beyond the process: another version of the program may hash otherwise.
pub fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
