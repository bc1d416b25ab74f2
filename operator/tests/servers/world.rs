//! What a test has: a NATS server, a namespace of its own, and the operator that looks after it.

use std::{fmt::Debug, path::Path, time::Duration};

use async_nats::jetstream;
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{
    ControlPlane, Namespace, NatsCluster, NatsServer, Process, ProcessBuilder, await_until, binary, free_port,
};
use k8s_openapi::{
    NamespaceResourceScope, api::events::v1::Event, apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Resource,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::OnceCell;

/// How long a test waits for what should take far less than a second.
pub const SOON: Duration = Duration::from_secs(15);

/// The definitions are the control plane's, and every test's.
static DEFINITIONS: OnceCell<()> = OnceCell::const_new();

pub struct World<N = NatsServer> {
    pub nats: N,
    pub namespace: Namespace<'static>,
    pub operator: Process,
    pub jetstream: jetstream::Context,
    pub admin: u16,
    /// Where the operator connects.
    url: String,
}

/// The control plane, with the definitions in it.
pub async fn control_plane() -> &'static ControlPlane {
    let control_plane = ControlPlane::shared().await;
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/manifests");
    DEFINITIONS.get_or_init(|| control_plane.apply(manifests)).await;
    control_plane
}

/// The operator's arguments that every test has.
pub fn arguments(nats_url: &str, namespace: &str, admin: u16) -> Vec<String> {
    let namespaces = format!("--namespaces={namespace}");
    let admin = format!("--admin-address=127.0.0.1:{admin}");
    ["--nats-url", nats_url, "--leader-elect=false", "--cluster-name=test", &namespaces, &admin]
        .map(str::to_owned)
        .to_vec()
}

/// Starts an operator.
pub fn operator(control_plane: &ControlPlane, arguments: &[String]) -> Process {
    operator_of(&binary("jetwright-operator"), control_plane, arguments)
}

/// Starts the operator of another version.
pub fn operator_of(program: &Path, control_plane: &ControlPlane, arguments: &[String]) -> Process {
    Process::builder(program).env("KUBECONFIG", control_plane.kubeconfig()).args(arguments).start()
}

/// A kind of objects in namespaces.
pub trait Kind:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned
{
}

impl<K> Kind for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
{
}

/// An object with a spec in YAML.
pub fn manifest<K: Kind>(name: &str, spec: &str) -> serde_json::Value {
    let spec: serde_json::Value = serde_saphyr::from_str(spec).unwrap();
    serde_json::json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name}, "spec": spec,
    })
}

/// Applies a spec as a user's tool does, whole.
pub async fn apply<K: Kind>(api: &Api<K>, name: &str, spec: &str) -> K {
    let object = manifest::<K>(name, spec);
    api.patch(name, &PatchParams::apply("user"), &Patch::Apply(object)).await.unwrap()
}

impl World {
    pub async fn start() -> Self {
        Self::with(NatsServer::start().await, &[]).await
    }

    /// A world on this NATS server, whose operator has more arguments.
    pub async fn with(nats: NatsServer, more: &[&str]) -> Self {
        let jetstream = nats.jetstream().await;
        Self::on(nats, jetstream, more).await
    }

    /// A world whose operator is this program.
    pub async fn by(program: &Path, nats: NatsServer) -> Self {
        let builder = Process::builder(program);
        Self::of(builder, nats).await
    }

    /// A world whose operator is started so, with the arguments that every test has.
    pub async fn of(program: ProcessBuilder, nats: NatsServer) -> Self {
        let jetstream = nats.jetstream().await;
        let control_plane = control_plane().await;
        let namespace = control_plane.namespace("operator").await;
        let admin = free_port();
        let program = program.env("KUBECONFIG", control_plane.kubeconfig());
        let operator = program.args(arguments(nats.url(), namespace.name(), admin)).start();
        let url = nats.url().to_owned();
        Self { nats, namespace, operator, jetstream, admin, url }
    }

    /// The same on a server that asks who one is; in `jetstream` the test itself may do everything.
    pub async fn on(nats: NatsServer, jetstream: jetstream::Context, more: &[&str]) -> Self {
        let url = nats.url().to_owned();
        Self::at(nats, url, jetstream, more).await
    }
}

impl World<NatsCluster> {
    /// A world on a cluster of so many NATS servers.
    pub async fn clustered(size: usize, more: &[&str]) -> Self {
        let nats = NatsCluster::start(size).await;
        let (url, jetstream) = (nats.url().to_owned(), nats.jetstream().await);
        Self::at(nats, url, jetstream, more).await
    }
}

impl<N> World<N> {
    async fn at(nats: N, url: String, jetstream: jetstream::Context, more: &[&str]) -> Self {
        let control_plane = control_plane().await;
        let namespace = control_plane.namespace("operator").await;
        let admin = free_port();
        let mut arguments = arguments(&url, namespace.name(), admin);
        arguments.extend(more.iter().map(ToString::to_string));
        let operator = operator(control_plane, &arguments);
        Self { nats, namespace, operator, jetstream, admin, url }
    }

    /// Another world on the same NATS: a namespace and an operator of its own.
    pub async fn beside(&self, more: &[&str]) -> World<()> {
        World::at((), self.url.clone(), self.jetstream.clone(), more).await
    }

    /// Another operator process for the same namespace and NATS.
    pub fn another_operator(&self, more: &[&str]) -> Process {
        let mut arguments = arguments(&self.url, self.namespace.name(), free_port());
        arguments.extend(more.iter().map(ToString::to_string));
        operator(self.namespace.control_plane(), &arguments)
    }

    /// Stops the operator.
    pub async fn stop(&self) {
        self.operator.signal("TERM");
        self.operator.wait_exit(SOON).await;
    }

    /// Starts another operator in the place of one that was stopped.
    pub fn start_again(&mut self, more: &[&str]) {
        self.admin = free_port();
        let mut arguments = arguments(&self.url, self.namespace.name(), self.admin);
        arguments.extend(more.iter().map(ToString::to_string));
        self.operator = operator(self.namespace.control_plane(), &arguments);
    }

    pub fn streams(&self) -> Api<EventStream> {
        self.namespace.api()
    }

    pub fn consumers(&self) -> Api<EventConsumer> {
        self.namespace.api()
    }

    /// Applies a spec as a user's tool does, whole.
    pub async fn declare<K: Kind>(&self, name: &str, spec: &str) -> K {
        apply(&self.namespace.api(), name, spec).await
    }

    pub async fn stream(&self, name: &str, spec: &str) -> EventStream {
        self.declare(name, spec).await
    }

    pub async fn consumer(&self, name: &str, spec: &str) -> EventConsumer {
        self.declare(name, spec).await
    }

    pub async fn delete<K>(&self, name: &str)
    where
        K: Kind,
    {
        let api: Api<K> = self.namespace.api();
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }

    pub async fn await_gone<K>(&self, name: &str)
    where
        K: Kind,
    {
        let api: Api<K> = self.namespace.api();
        await_until(&format!("{name} is gone"), SOON, || async {
            match api.get_opt(name).await.map_err(|error| error.to_string())? {
                Some(object) => {
                    Err(format!("it is still there: {}", serde_json::to_string(&object).unwrap()))
                }
                None => Ok(()),
            }
        })
        .await;
    }

    /// Waits until the newest generation of an object has a condition with this status and reason; its message.
    pub async fn await_condition<K>(&self, name: &str, type_: &str, status: &str, reason: &str) -> String
    where
        K: Kind,
    {
        self.await_condition_within::<K>(SOON, name, (type_, status, reason)).await
    }

    /// The same, for what takes longer.
    pub async fn await_condition_within<K>(
        &self,
        bound: Duration,
        name: &str,
        (type_, status, reason): (&str, &str, &str),
    ) -> String
    where
        K: Kind,
    {
        let api: Api<K> = self.namespace.api();
        await_until(&format!("{name} has {type_}={status} ({reason})"), bound, || async {
            let object = api.get(name).await.map_err(|error| error.to_string())?;
            let conditions = conditions(&object);
            let found = conditions.iter().find(|condition| condition.type_ == type_);
            let told = found.filter(|condition| {
                let newest = condition.observed_generation == object.meta().generation;
                newest && condition.status == status && condition.reason == reason
            });
            told.map(|told| told.message.clone()).ok_or_else(|| format!("{found:?}"))
        })
        .await
    }

    pub async fn await_ready<K>(&self, name: &str)
    where
        K: Kind,
    {
        self.await_condition::<K>(name, "Ready", "True", "Reconciled").await;
    }

    /// The configuration of a stream in JetStream, once it exists.
    pub async fn config(&self, name: &str) -> jetstream::stream::Config {
        let ask = || self.jetstream.get_stream(name);
        await_until("the stream to answer", SOON, ask).await.cached_info().config.clone()
    }

    /// Waits until a stream's configuration in JetStream is as wanted.
    pub async fn await_config(&self, name: &str, wanted: impl Fn(&jetstream::stream::Config) -> bool) {
        await_until(&format!("stream {name} is as wanted"), SOON, || async {
            let stream = self.jetstream.get_stream(name).await.map_err(|error| error.to_string())?;
            let config = &stream.cached_info().config;
            if wanted(config) { Ok(()) } else { Err(format!("{config:?}")) }
        })
        .await;
    }

    /// Notes of the Kubernetes events with this reason about an object.
    pub async fn events(&self, name: &str, reason: &str) -> Vec<String> {
        let api: Api<Event> = self.namespace.api();
        let events = api.list(&ListParams::default()).await.unwrap();
        let about = events.items.into_iter().filter(|event| {
            let regarding = event.regarding.as_ref().and_then(|object| object.name.as_deref());
            regarding == Some(name) && event.reason.as_deref() == Some(reason)
        });
        about.filter_map(|event| event.note).collect()
    }

    /// Waits until an object has one event with this reason, and it says this.
    pub async fn await_event(&self, name: &str, reason: &str, note: &str) {
        await_until(&format!("{name} has the event {reason}"), SOON, || async {
            let notes = self.events(name, reason).await;
            if notes == [note] { Ok(()) } else { Err(format!("{notes:?}")) }
        })
        .await;
    }

    /// Waits for the one event of a reason, which is written beside the status.
    pub async fn await_one_event(&self, name: &str, reason: &str) {
        await_until(&format!("{name} has one event {reason}"), SOON, || async {
            let notes = self.events(name, reason).await;
            if notes.len() == 1 { Ok(()) } else { Err(format!("{notes:?}")) }
        })
        .await;
    }

    /// What the operator answers on its admin address; None while it does not.
    pub async fn admin(&self, path: &str) -> Option<(u16, String)> {
        let answer = reqwest::get(format!("http://127.0.0.1:{}{path}", self.admin)).await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    /// The value of a metric, whose line begins with this.
    pub async fn metric(&self, line: &str) -> Option<f64> {
        let (_, text) = self.admin("/metrics").await?;
        text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok())
    }
}

pub fn conditions(object: &impl Serialize) -> Vec<Condition> {
    let object = serde_json::to_value(object).unwrap();
    serde_json::from_value(object["status"]["conditions"].clone()).unwrap_or_default()
}

/// A condition of an object.
pub fn condition(object: &impl Serialize, type_: &str) -> Option<Condition> {
    conditions(object).into_iter().find(|condition| condition.type_ == type_)
}

/// The sum of an operator's metrics whose lines begin so.
pub async fn metrics_sum(admin: u16, start: &str) -> f64 {
    let answer = reqwest::get(format!("http://127.0.0.1:{admin}/metrics")).await.unwrap();
    let text = answer.text().await.unwrap();
    let lines = text.lines().filter(|line| line.starts_with(start));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}
