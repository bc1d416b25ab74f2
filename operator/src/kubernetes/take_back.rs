//! In: an object of ours that refuses what is applied, since another writer gave it what excludes that (a variable's value beside its
//! source, one probe beside another). Out: the object without it. Reads from Kubernetes and writes to it.
//!
//! An apply adds to what others set and never takes it away, so that part of the object is replaced whole.

use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Map, Value, json};

use super::{
    field_manager::{FIELD_MANAGER, is_own_update},
    kinds::OwnedKind,
};

/// Makes the part of an object that is declared what is desired; false where there is no such part.
///
/// # Errors
///
/// When Kubernetes refuses, as it does where what is desired cannot be.
pub async fn take_back<K: OwnedKind>(
    api: &Api<K>,
    name: &str,
    uid: &str,
    desired: &Value,
) -> Result<bool, kube::Error> {
    let Some(wanted) = desired.pointer(K::DECLARED) else { return Ok(false) };
    let found = api.get(name).await?;
    let version = found.resource_version();
    let found = serde_json::to_value(&found).map_err(kube::Error::SerdeError)?;
    let mut change = replacement(found.pointer(K::DECLARED).unwrap_or(&Value::Null), wanted);
    for field in K::DECLARED.rsplit('/').filter(|field| !field.is_empty()) {
        change = json!({ field: change });
    }
    change["metadata"] = json!({"uid": uid, "resourceVersion": version});
    api.patch(name, &own_update(), &Patch::Merge(change)).await?;
    Ok(true)
}

/// Parameters of a write that is no apply.
pub fn own_update() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

/// Leaves the operator's applies the only owner of what it sets. Another write makes it an owner once more, who would keep a field that is
/// taken out of the declaration later.
///
/// # Errors
///
/// When Kubernetes refuses, as where the object changed meanwhile.
pub async fn disown_updates<K: OwnedKind>(api: &Api<K>, object: K) -> Result<K, kube::Error> {
    let (own, others): (Vec<_>, Vec<_>) = object.managed_fields().iter().cloned().partition(is_own_update);
    if own.is_empty() {
        return Ok(object);
    }
    let version = object.resource_version();
    let metadata = json!({"uid": object.uid(), "resourceVersion": version, "managedFields": others});
    api.patch(&object.name_any(), &own_update(), &Patch::Merge(json!({"metadata": metadata}))).await
}

/// The JSON merge patch (RFC 7386) that makes one value of another.
fn replacement(found: &Value, wanted: &Value) -> Value {
    let (Value::Object(found), Value::Object(wanted)) = (found, wanted) else { return wanted.clone() };
    let gone = found.keys().filter(|key| !wanted.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let set = wanted
        .iter()
        .map(|(key, value)| (key.clone(), replacement(found.get(key).unwrap_or(&Value::Null), value)));
    Value::Object(gone.chain(set).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_wanted_is_taken_out_and_lists_are_whole() {
        let found = json!({"a": {"b": 1, "c": 2}, "d": [{"e": 1}], "f": 1});
        let wanted = json!({"a": {"b": 3}, "d": [{"g": 1}], "h": {"i": 1}});
        let expected = json!({"a": {"b": 3, "c": null}, "d": [{"g": 1}], "f": null, "h": {"i": 1}});
        assert_eq!(replacement(&found, &wanted), expected);
    }
}
