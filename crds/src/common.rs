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

/// What an object does where JetStream has something of its name that is not its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = described_by_field)]
pub enum AdoptionPolicy {
    /// It is left alone.
    #[default]
    Refuse,
    /// What has no owner becomes the object's.
    AdoptUnowned,
    /// What has another owner becomes the object's, once.
    TakeOver,
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
