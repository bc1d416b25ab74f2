//! The objects that are measured.

use futures::{StreamExt, stream};
use jetwright_crds::{EventConsumer, EventStream};
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::world::World;

/// Requests to the API server under way at once while objects are made.
pub const WRITERS: usize = 16;
/// Environment variables of a workload.
const VARIABLES: usize = 40;

pub fn stream_name(number: usize) -> String {
    format!("s{number}")
}

fn object<K: serde::de::DeserializeOwned>(kind: &str, name: &str, spec: &Value) -> K {
    let object = json!({"apiVersion": "jetwright.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    serde_json::from_value(object).unwrap()
}

pub fn event_stream(name: &str, deletion_policy: &str) -> EventStream {
    object(
        "EventStream",
        name,
        &json!({"subjects": [format!("{name}.>")], "deletionPolicy": deletion_policy}),
    )
}

pub fn event_consumer(name: &str, stream: &str) -> EventConsumer {
    object("EventConsumer", name, &json!({"streamRef": {"name": stream}}))
}

/// An EventConsumer whose pods have many environment variables.
pub fn workload(name: &str, stream: &str) -> EventConsumer {
    let variables: Vec<_> = (0..VARIABLES)
        .map(|number| json!({"name": format!("VARIABLE_{number}"), "value": format!("the value of variable {number}")}))
        .collect();
    let containers = json!([{"name": "app", "image": "shop/app:1", "env": variables}]);
    object(
        "EventConsumer",
        name,
        &json!({
            "streamRef": {"name": stream},
            "workload": {"template": {"spec": {"containers": containers}}},
        }),
    )
}

impl World {
    pub async fn create_streams(&self, count: usize) {
        let created = stream::iter(0..count).map(async |number| {
            let object = event_stream(&stream_name(number), "Retain");
            self.streams().create(&PostParams::default(), &object).await.unwrap();
        });
        created.buffer_unordered(WRITERS).collect::<()>().await;
    }

    pub async fn create_consumers(&self, objects: impl Iterator<Item = EventConsumer>) {
        let api = self.api::<EventConsumer>();
        let created = stream::iter(objects).map(async |object| {
            api.create(&PostParams::default(), &object).await.unwrap();
        });
        created.buffer_unordered(WRITERS).collect::<()>().await;
    }
}
