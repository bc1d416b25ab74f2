//! Objects that an object of ours controls, or that were made for it: applied by server-side apply, removed, and never touched where
//! they are another's. Writes to Kubernetes where something differs, and reads from it what no watch has brought.
//!
//! As long as we want what we applied last, and what is ours in the object is what it was then, there is nothing to do.

use std::{fmt::Debug, sync::Arc};

use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions, ValidationDirective},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    field_manager::FIELD_MANAGER,
    kinds::{Kind, OwnedKind},
    owned::{Owned, OwnedObjects},
    take_back::{disown_updates, own_update, take_back},
};
use crate::{
    error::{ErrorClass, ReconcileError},
    hash::hash_of,
    object_state::{Fingerprint, ObjectKey, ObjectStates},
    rate_limit::RateLimit,
};

/// Why an object could not be applied or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{kind} {name} exists and is not owned by this {owner}")]
    Foreign { kind: &'static str, name: String, owner: String },
    #[error("{kind} {name}")]
    Kubernetes { kind: &'static str, name: String, source: kube::Error },
}

impl Error {
    /// Whether the API server finds what would become of the object invalid.
    fn is_invalid(&self) -> bool {
        matches!(self, Self::Kubernetes { source: kube::Error::Api(status), .. } if status.code == 422)
    }
}

impl ReconcileError for Error {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Foreign { .. } => ErrorClass::Terminal,
            Self::Kubernetes { source, .. } => ErrorClass::of_kubernetes(source),
        }
    }
}

/// What applying takes, whatever object it is for.
pub struct Applying {
    pub client: Client,
    /// What the watches brought.
    pub owned: OwnedObjects,
    /// Bounds what is applied after a start, when nothing is known of what was applied before.
    pub startup: RateLimit,
}

/// Applies objects for the object that owns them.
pub struct Applier<'a> {
    applying: &'a Applying,
    pub states: &'a ObjectStates,
    kind: String,
    namespace: String,
    uid: String,
}

impl<'a> Applier<'a> {
    /// For an object that was read from Kubernetes.
    pub fn new<O: Resource<DynamicType = ()>>(
        applying: &'a Applying,
        states: &'a ObjectStates,
        owner: &O,
    ) -> Self {
        Self {
            applying,
            states,
            kind: O::kind(&()).into_owned(),
            namespace: owner.namespace().unwrap_or_default(),
            uid: owner.uid().unwrap_or_default(),
        }
    }

    /// Brings an object to what is desired, and returns what is kept of it then.
    ///
    /// # Errors
    ///
    /// When it is another's, or Kubernetes refuses.
    pub async fn apply<K: OwnedKind>(
        &self,
        name: &str,
        object: &impl Serialize,
    ) -> Result<Arc<Owned>, Error> {
        let key = self.key::<K>(name);
        let desired = desired::<K>(object).map_err(|source| failed(&key, source))?;
        let hash = hash_of(&desired.to_string());
        let last = self.states.applied(&key);
        if let Some(known) = self.known::<K>(name)
            && last == Some(Fingerprint { desired: hash, observed: known.managed })
        {
            return Ok(known);
        }
        let current = self.get_controlled::<K>(name).await?;
        if last.is_none() && current.is_some() {
            self.applying.startup.acquire().await;
        }
        self.states.set_applied(&key, None);
        let applied: K = Box::pin(self.apply_or_take_back(&key, desired, current.as_deref())).await?;
        let applied =
            disown_updates(&self.api(), applied).await.map_err(|source| failed(&key, source))?.keep();
        self.states.set_applied(&key, Some(Fingerprint { desired: hash, observed: applied.managed }));
        self.applying.owned.insert(key.clone(), applied.clone());
        Ok(self.applying.owned.get(&key).unwrap_or_else(|| Arc::new(applied)))
    }

    /// The same of an object that nothing owns, and of which the caller knows how it is: None where it does not exist.
    ///
    /// # Errors
    ///
    /// When Kubernetes refuses, as it does where there is another object meanwhile.
    pub async fn apply_unowned<K: Kind>(
        &self,
        object: &K,
        current: Option<&Arc<K>>,
    ) -> Result<Arc<K>, Error> {
        let key = self.key::<K>(&object.name_any());
        let desired = desired::<K>(object).map_err(|source| failed(&key, source))?;
        let observe = |current: &K| {
            let whole = serde_json::to_value(current).unwrap_or_default();
            hash_of(&(current.uid(), projection(&desired, &whole).to_string()))
        };
        let hash = hash_of(&desired.to_string());
        if let Some(current) = current
            && self.states.applied(&key) == Some(Fingerprint { desired: hash, observed: observe(current) })
        {
            return Ok(current.clone());
        }
        if self.states.applied(&key).is_none() && current.is_some() {
            self.applying.startup.acquire().await;
        }
        self.states.set_applied(&key, None);
        let applied: K = self.patch(&key, desired.clone(), current.and_then(|current| current.uid())).await?;
        self.states.set_applied(&key, Some(Fingerprint { desired: hash, observed: observe(&applied) }));
        Ok(Arc::new(applied))
    }

    async fn apply_or_take_back<K: OwnedKind>(
        &self,
        key: &ObjectKey,
        desired: Value,
        current: Option<&Owned>,
    ) -> Result<K, Error> {
        let Some(uid) = current.map(|current| &current.uid) else {
            return self.patch(key, desired, None).await;
        };
        match self.patch(key, desired.clone(), Some(uid.clone())).await {
            Err(error) if error.is_invalid() => {
                match take_back(&self.api::<K>(), &key.name, uid, &desired).await {
                    Ok(true) => self.patch(key, desired, Some(uid.clone())).await,
                    Err(source) if ErrorClass::of_kubernetes(&source) != ErrorClass::Terminal => {
                        Err(failed(key, source))
                    }
                    // What is declared cannot be: the first answer says why.
                    Ok(false) | Err(_) => Err(error),
                }
            }
            applied => applied,
        }
    }

    async fn patch<K: Kind>(
        &self,
        key: &ObjectKey,
        mut desired: Value,
        current_uid: Option<String>,
    ) -> Result<K, Error> {
        // Strict, so that a field that Kubernetes does not know is refused rather than dropped.
        let mut params = PatchParams {
            field_validation: Some(ValidationDirective::Strict),
            ..PatchParams::apply(FIELD_MANAGER)
        };
        if let Some(uid) = current_uid {
            // Fields that others took are taken back, of this very object alone.
            desired["metadata"]["uid"] = uid.into();
            params = params.force();
        }
        let patched = self.api::<K>().patch(&key.name, &params, &Patch::Apply(desired)).await;
        patched.map_err(|source| failed(key, source))
    }

    /// Removes an object where it exists and is the owner's. Ours carry the label by which they are watched, so that what no watch has
    /// brought is not ours.
    ///
    /// # Errors
    ///
    /// When Kubernetes refuses.
    pub async fn remove<K: OwnedKind>(&self, name: &str) -> Result<(), Error> {
        let key = self.key::<K>(name);
        let Some(known) = self.known::<K>(name) else { return Ok(()) };
        self.states.set_applied(&key, None);
        let preconditions = Preconditions { uid: Some(known.uid.clone()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        match self.api::<K>().delete(name, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
            Err(source) => Err(failed(&key, source)),
        }
    }

    /// The owner's object of this name, as the watches brought it.
    pub fn known<K: OwnedKind>(&self, name: &str) -> Option<Arc<Owned>> {
        self.applying.owned.get(&self.key::<K>(name)).filter(|known| known.is_controlled_by(&self.uid))
    }

    /// Brings a Deployment to a number of replicas, and leaves everything else of it as it is.
    ///
    /// # Errors
    ///
    /// When Kubernetes refuses.
    pub async fn scale(&self, name: &str, known: Arc<Owned>, replicas: i32) -> Result<Arc<Owned>, Error> {
        let spec = known.deployment.as_deref().and_then(|deployment| deployment.spec.as_ref());
        if spec.is_some_and(|spec| spec.replicas == Some(replicas)) {
            return Ok(known);
        }
        let key = self.key::<Deployment>(name);
        let change = json!({"metadata": {"uid": known.uid}, "spec": {"replicas": replicas}});
        let scaled = self.api::<Deployment>().patch(name, &own_update(), &Patch::Merge(change)).await;
        let scaled = scaled.map_err(|source| failed(&key, source))?.keep();
        self.applying.owned.insert(key.clone(), scaled.clone());
        Ok(self.applying.owned.get(&key).unwrap_or_else(|| Arc::new(scaled)))
    }

    /// The object of this name, if there is one and it is the owner's. What no watch has brought is read: apply would merge into an object
    /// of another owner, which the labelled watch does not show.
    async fn get_controlled<K: OwnedKind>(&self, name: &str) -> Result<Option<Arc<Owned>>, Error> {
        let key = self.key::<K>(name);
        let current = if let Some(known) = self.applying.owned.get(&key) {
            known
        } else {
            let found = self.api::<K>().get_opt(name).await.map_err(|source| failed(&key, source))?;
            let Some(found) = found else { return Ok(None) };
            Arc::new(found.keep())
        };
        if current.is_controlled_by(&self.uid) {
            return Ok(Some(current));
        }
        Err(Error::Foreign { kind: key.kind, name: key.name, owner: self.kind.clone() })
    }

    /// The owner's namespace.
    pub fn api<K: Kind>(&self) -> Api<K> {
        Api::namespaced(self.applying.client.clone(), &self.namespace)
    }

    pub fn key<K: Kind>(&self, name: &str) -> ObjectKey {
        ObjectKey::new::<K>(&self.namespace, name)
    }
}

fn desired<K: Kind>(object: &impl Serialize) -> Result<Value, kube::Error> {
    let mut desired = serde_json::to_value(object).map_err(kube::Error::SerdeError)?;
    desired["apiVersion"] = K::api_version(&()).into();
    desired["kind"] = K::kind(&()).into();
    Ok(desired)
}

/// The part of a value that another one has: of objects the same fields, all else whole.
fn projection(part: &Value, whole: &Value) -> Value {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => Value::Object(
            part.iter()
                .map(|(key, part)| {
                    let field = whole.get(key).map_or(Value::Null, |whole| projection(part, whole));
                    (key.clone(), field)
                })
                .collect(),
        ),
        (_, whole) => whole.clone(),
    }
}

fn failed(key: &ObjectKey, source: kube::Error) -> Error {
    Error::Kubernetes { kind: key.kind, name: key.name.clone(), source }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_desired_of_an_unowned_object_is_observed() {
        let desired = json!({"spec": {"storage": "File", "limits": {"maxMessagesPerSubject": 1}}});
        let found = json!({
            "metadata": {"labels": {"team": "red"}},
            "spec": {"storage": "Memory", "limits": {"maxMessagesPerSubject": 1, "maxAge": "1d"}, "profile": "Critical"},
        });
        let expected = json!({"spec": {"storage": "Memory", "limits": {"maxMessagesPerSubject": 1}}});
        assert_eq!(projection(&desired, &found), expected);
        assert_eq!(projection(&desired, &json!({})), json!({"spec": null}));
    }
}
