//! Waiting for what an object's status says.

use std::{fmt::Debug, time::Duration};

use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::await_until;
use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{Resource, ResourceExt, api::ListParams};
use serde::de::DeserializeOwned;

use super::Cluster;

impl Cluster {
    /// Waits until the newest generation of an object has a condition with this status, and returns the condition.
    pub async fn await_condition<K>(
        &self,
        (namespace, name): (&str, &str),
        (type_, status): (&str, &str),
        bound: Duration,
    ) -> Condition
    where
        K: HasConditions,
    {
        let api = self.api::<K>(namespace);
        await_until(&format!("{} {namespace}/{name} has {type_}={status}", K::kind(&())), bound, async || {
            let object = api.get(name).await.map_err(|error| error.to_string())?;
            let conditions = object.conditions();
            let found = conditions.iter().find(|condition| {
                let newest = condition.observed_generation == object.meta().generation;
                newest && condition.type_ == type_ && condition.status == status
            });
            found.cloned().ok_or_else(|| format!("{conditions:#?}"))
        })
        .await
    }

    /// Waits until every EventStream and EventConsumer of a namespace is Ready.
    pub async fn await_all_ready(&self, namespace: &str, bound: Duration) {
        self.await_each_ready::<EventStream>(namespace, bound).await;
        self.await_each_ready::<EventConsumer>(namespace, bound).await;
    }

    async fn await_each_ready<K: HasConditions>(&self, namespace: &str, bound: Duration) {
        let objects = self.api::<K>(namespace).list(&ListParams::default()).await;
        for object in objects.unwrap_or_else(|error| panic!("{} of {namespace}: {error}", K::kind(&()))) {
            self.await_condition::<K>((namespace, &object.name_any()), ("Ready", "True"), bound).await;
        }
    }
}

/// A kind of ours.
pub trait HasConditions:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned
{
    /// The conditions of its status.
    fn conditions(&self) -> Vec<Condition>;
}

impl HasConditions for EventStream {
    fn conditions(&self) -> Vec<Condition> {
        self.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default()
    }
}

impl HasConditions for EventConsumer {
    fn conditions(&self) -> Vec<Condition> {
        self.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default()
    }
}
