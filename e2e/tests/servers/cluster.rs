//! The shop in a cluster, whose nodes and controllers the test stands in for.

use std::fmt::Debug;

use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{Namespace, await_until};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Service},
    },
    apimachinery::pkg::{apis::meta::v1::Condition, util::intstr::IntOrString},
};
use kube::{
    Api, Resource,
    api::{ListParams, Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::{pod::Pod, shop::SOON};

/// Waits until the operator has made everything that the chart declares; only the pods are missing then.
pub async fn await_declared(namespace: &Namespace<'_>) {
    let streams: Api<EventStream> = namespace.api();
    for stream in streams.list(&ListParams::default()).await.unwrap() {
        await_condition::<EventStream>(namespace, &stream.metadata.name.unwrap(), "Ready", "True").await;
    }
    let consumers: Api<EventConsumer> = namespace.api();
    for consumer in consumers.list(&ListParams::default()).await.unwrap() {
        let name = consumer.metadata.name.unwrap();
        await_condition::<EventConsumer>(namespace, &name, "ConsumerReady", "True").await;
    }
    let config_maps: Api<ConfigMap> = namespace.api();
    await_until("the order service's bindings name all its consumers", SOON, async || {
        let bindings =
            config_maps.get("order-fulfilment-bindings").await.map_err(|error| error.to_string())?;
        let text = bindings.data.unwrap_or_default().remove("bindings.yaml").unwrap_or_default();
        let named = ["order-fulfilment:", "order-compensation:", "order-users:"]
            .iter()
            .all(|name| text.contains(name));
        if named { Ok(()) } else { Err(text) }
    })
    .await;
    for consumer in ["user-directory", "order-fulfilment", "order-compensation", "order-users"] {
        await_condition::<EventConsumer>(namespace, consumer, "WorkloadReady", "False").await;
    }
}

/// Says of a Deployment what a cluster's controllers would once its pods are ready.
pub async fn report_available(namespace: &Namespace<'_>, name: &str) {
    let deployments: Api<Deployment> = namespace.api();
    let generation = deployments.get(name).await.unwrap().metadata.generation;
    let status = json!({"status": {
        "observedGeneration": generation, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1, "readyReplicas": 1,
    }});
    deployments.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

/// Where a pod is reached through the port of its Service.
pub async fn service_url(namespace: &Namespace<'_>, name: &str, pod: &Pod) -> String {
    let services: Api<Service> = namespace.api();
    let port = services.get(name).await.unwrap().spec.unwrap().ports.unwrap().remove(0);
    let Some(IntOrString::Int(target)) = port.target_port else { panic!("{port:?}") };
    pod.url(target.try_into().unwrap())
}

/// Waits until the newest generation of an object has a condition with this status.
pub async fn await_condition<K>(namespace: &Namespace<'_>, name: &str, type_: &str, status: &str)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    let api: Api<K> = namespace.api();
    await_until(&format!("{} {name} has {type_}={status}", K::kind(&())), SOON, async || {
        let object = api.get(name).await.map_err(|error| error.to_string())?;
        let generation = object.meta().generation;
        let object = serde_json::to_value(object).unwrap();
        let conditions: Vec<Condition> =
            serde_json::from_value(object["status"]["conditions"].clone()).unwrap_or_default();
        let is_so = conditions.iter().any(|condition| {
            let newest = condition.observed_generation == generation;
            newest && condition.type_ == type_ && condition.status == status
        });
        if is_so { Ok(()) } else { Err(format!("{conditions:?}")) }
    })
    .await;
}
