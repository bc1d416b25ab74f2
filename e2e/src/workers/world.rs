//! Pods as processes, with an operator and servers of their own.

use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{ControlPlane, NatsServer, await_until};
use serde_json::{Value, json};

use super::{CONSUMER, SETTLED, Workers};
use crate::{Operator, objects::declare, path};

const NAMESPACE: &str = "shop";

/// All that there is but the load.
#[derive(Debug)]
pub struct World {
    /// The pods.
    pub workers: Workers,
    /// The NATS server.
    pub nats: NatsServer,
    /// The operator.
    pub operator: Operator,
    control_plane: ControlPlane,
}

impl World {
    /// Starts all of it, without an object.
    ///
    /// # Panics
    ///
    /// When the namespace cannot be made.
    pub async fn start() -> Self {
        let (control_plane, nats) = tokio::join!(ControlPlane::start(), NatsServer::start());
        control_plane.apply(path("../crds/manifests")).await;
        let created = control_plane.kubectl(["create", "namespace", NAMESPACE]);
        created.unwrap_or_else(|error| panic!("no namespace: {error}"));
        let workers = Workers::start(&control_plane, NAMESPACE).await;
        let operator = Operator::start(&control_plane, &nats, NAMESPACE);
        let world = Self { workers, nats, operator, control_plane };
        world.await_operator().await;
        world
    }

    /// Starts the operator again.
    pub async fn restart_operator(&mut self) {
        self.operator.process.signal("TERM");
        self.operator.process.wait_exit(SETTLED).await;
        self.operator = Operator::start(&self.control_plane, &self.nats, NAMESPACE);
        self.await_operator().await;
    }

    async fn await_operator(&self) {
        let ready = format!("{}/readyz", self.operator.admin_url);
        await_until("the operator is ready", SETTLED, async || {
            reqwest::get(&ready).await.and_then(reqwest::Response::error_for_status)
        })
        .await;
    }

    /// Declares the stream with so many partitions, and waits until it is there.
    pub async fn declare_stream(&self, partitions: u32) {
        let spec = json!({"subjects": ["orders.*.*"], "partitions": {"count": partitions, "keyTokens": [2]}});
        declare(&self.workers.api::<EventStream>(), "orders", &spec).await;
        let jetstream = self.nats.jetstream().await;
        await_until("the stream", SETTLED, async || jetstream.get_stream("orders").await.map(drop)).await;
    }

    /// Declares the consumer, whose container gets these variables.
    pub async fn declare_consumer(&self, mut workload: Value, variables: &[(&str, u64)]) {
        let mut container = Workers::container();
        let variables =
            variables.iter().map(|(name, value)| json!({"name": name, "value": value.to_string()}));
        container["env"] = variables.collect();
        workload["template"] = json!({"spec": {"containers": [container]}});
        let spec = json!({"streamRef": {"name": "orders"}, "ordering": "PerKey", "workload": workload});
        declare(&self.workers.api::<EventConsumer>(), CONSUMER, &spec).await;
    }
}
