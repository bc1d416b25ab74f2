//! Who set what of an object: the operator's entries of `metadata.managedFields`. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;

/// Field manager of everything that the operator applies.
pub const FIELD_MANAGER: &str = "jetwright";

/// Whether an entry is of the operator's applies to the object itself, and not to a subresource.
#[must_use]
pub fn is_own_apply(entry: &ManagedFieldsEntry) -> bool {
    is_own(entry, "Apply")
}

/// Whether an entry is of the operator's other writes to the object itself.
#[must_use]
pub fn is_own_update(entry: &ManagedFieldsEntry) -> bool {
    is_own(entry, "Update")
}

fn is_own(entry: &ManagedFieldsEntry, operation: &str) -> bool {
    entry.manager.as_deref() == Some(FIELD_MANAGER)
        && entry.operation.as_deref() == Some(operation)
        && entry.subresource.as_ref().is_none_or(String::is_empty)
}
