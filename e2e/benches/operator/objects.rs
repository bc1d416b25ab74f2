//! The objects that are measured.

use std::fmt::Debug;

use futures::{StreamExt, stream};
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_e2e::objects::object;
use kube::{Api, api::PostParams};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::world::World;

/// Requests to the API server under way at once while objects are made.
pub const WRITERS: usize = 16;
/// Environment variables of a workload.
const VARIABLES: usize = 40;

pub fn stream_name(number: usize) -> String {
    format!("s{number}")
}

pub fn event_stream(name: &str, deletion_policy: &str) -> EventStream {
    object(name, &json!({"subjects": [format!("{name}.>")], "deletionPolicy": deletion_policy}))
}

pub fn event_consumer(name: &str, stream: &str) -> EventConsumer {
    object(name, &json!({"streamRef": {"name": stream}}))
}

/// An EventConsumer whose pods have many environment variables.
pub fn workload(name: &str, stream: &str) -> EventConsumer {
    let variables: Vec<_> = (0..VARIABLES)
        .map(|number| json!({"name": format!("VARIABLE_{number}"), "value": format!("the value of variable {number}")}))
        .collect();
    let containers = json!([{"name": "app", "image": "shop/app:1", "env": variables}]);
    object(
        name,
        &json!({
            "streamRef": {"name": stream},
            "workload": {"template": {"spec": {"containers": containers}}},
        }),
    )
}

/// Creates objects, [`WRITERS`] at a time.
pub async fn create<K>(api: &Api<K>, objects: impl Iterator<Item = K>)
where
    K: Clone + Debug + Serialize + DeserializeOwned,
{
    let created = stream::iter(objects).map(async |object| {
        api.create(&PostParams::default(), &object).await.unwrap();
    });
    created.buffer_unordered(WRITERS).collect::<()>().await;
}

pub fn event_streams(count: usize, deletion_policy: &str) -> impl Iterator<Item = EventStream> {
    (0..count).map(move |number| event_stream(&stream_name(number), deletion_policy))
}

impl World {
    pub async fn create_streams(&self, count: usize) {
        create(&self.streams(), event_streams(count, "Retain")).await;
    }

    pub async fn create_consumers(&self, objects: impl Iterator<Item = EventConsumer>) {
        create(&self.api(), objects).await;
    }
}
