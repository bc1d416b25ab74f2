//! Types that several kinds use.

use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};

/// Takes an enum's own description out of its schema, where it would stand in place of the field's.
pub(crate) fn described_by_field(schema: &mut Schema) {
    schema.remove("description");
}

/// Names an object of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NameRef {
    /// metadata.name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What becomes of the thing in JetStream when its object is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = described_by_field)]
pub enum DeletionPolicy {
    /// It stays as it is.
    Retain,
    /// It is deleted, with everything in it.
    Delete,
}
