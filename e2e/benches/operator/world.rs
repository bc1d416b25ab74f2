//! An operator with servers of its own, and what is read of them.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use jetwright_crds::EventStream;
use jetwright_e2e::{Operator, metrics::sum_of, path};
use jetwright_testing::{ControlPlane, NatsServer, await_until, memory_bytes, processor_seconds};
use kube::{Api, Client, Resource};

/// What is not done by then never will be.
pub const BOUND: Duration = Duration::from_mins(10);
/// How long the operator is left alone before its memory is read.
const IDLE: Duration = Duration::from_secs(30);
/// How long its processor time is counted.
const MINUTE: Duration = Duration::from_mins(1);
/// How long nothing has to change for all to be quiet.
const QUIET: Duration = Duration::from_secs(2);
/// The namespace of the objects.
pub const NAMESPACE: &str = "figures";

/// An operator that looks after one namespace and one NATS server.
pub struct World {
    pub control_plane: ControlPlane,
    pub nats: NatsServer,
    pub jetstream: jetstream::Context,
    pub client: Client,
    pub operator: Operator,
}

impl World {
    pub async fn start() -> Self {
        let (control_plane, nats) = tokio::join!(ControlPlane::start(), NatsServer::start());
        control_plane.apply(path("../crds/manifests")).await;
        control_plane.kubectl(["create", "namespace", NAMESPACE]).unwrap();
        let operator = Operator::start(&control_plane, &nats, NAMESPACE);
        let (jetstream, client) = (nats.jetstream().await, control_plane.client().await);
        let world = Self { control_plane, nats, jetstream, client, operator };
        world.await_operator().await;
        world
    }

    /// Waits until the operator is ready.
    pub async fn await_operator(&self) {
        let ready = format!("{}/readyz", self.operator.admin_url);
        await_until("the operator is ready", BOUND, async || {
            reqwest::get(&ready).await.and_then(reqwest::Response::error_for_status)
        })
        .await;
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub fn streams(&self) -> Api<EventStream> {
        self.api()
    }

    /// The sum of the operator's metrics whose lines begin so.
    pub async fn metric(&self, prefix: &str) -> u64 {
        let text =
            reqwest::get(format!("{}/metrics", self.operator.admin_url)).await.unwrap().text().await.unwrap();
        sum_of(&text, |line| line.starts_with(prefix))
    }

    pub async fn counts(&self) -> Counts {
        let kubernetes = async |verb: &str| {
            self.metric(&format!("jetwright_operator_kubernetes_requests_total{{verb=\"{verb}\"")).await
        };
        Counts {
            reconciles: self.metric("jetwright_operator_reconciles_total").await,
            reads: kubernetes("get").await,
            creates: kubernetes("create").await,
            patches: kubernetes("patch").await,
            others: kubernetes("delete").await + kubernetes("other").await,
            jetstream: self.metric("jetwright_operator_jetstream_api_requests_total").await,
            samples: self.metric("jetwright_operator_stats_requests_total").await,
            seconds: self.processor_seconds(),
        }
    }

    /// Waits until the operator neither reconciles nor asks for anything, and returns what it has done.
    pub async fn quiet(&self) -> Counts {
        let begun = Instant::now();
        let mut before = self.counts().await;
        loop {
            tokio::time::sleep(QUIET).await;
            let now = self.counts().await;
            if now.since(&before).is_nothing() {
                return now;
            }
            assert!(begun.elapsed() < BOUND, "the operator does not come to rest: {:?}", now.since(&before));
            before = now;
        }
    }

    /// Prints what the operator costs while nothing happens.
    pub async fn print_idle(&self, of_what: &str) {
        // Time is what is measured here, so this is not a wait for something.
        tokio::time::sleep(IDLE).await;
        println!("operator, {IDLE:?} idle with {of_what}: {:.1} MiB resident", self.resident_mib());
        let before = self.processor_seconds();
        tokio::time::sleep(MINUTE).await;
        let spent = self.processor_seconds() - before;
        println!("operator, idle with {of_what}: {spent:.2} CPU seconds per minute");
    }

    /// Prints what memory the operator holds after a while, and then again after all watches had to list everything.
    pub async fn print_memory(&mut self, of_what: &str) {
        tokio::time::sleep(IDLE).await;
        println!("operator, with {of_what}: {:.1} MiB resident", self.resident_mib());
        let lists = self.metric("jetwright_operator_kubernetes_requests_total{verb=\"get\"").await;
        // What watches saw last must be older than what the new server begins with.
        self.control_plane.kubectl(["create", "configmap", "later", "-n", NAMESPACE]).unwrap();
        self.control_plane.restart_api_server().await;
        await_until("all watches have listed again", BOUND, async || {
            let now = self.metric("jetwright_operator_kubernetes_requests_total{verb=\"get\"").await;
            if now >= lists + 2 { Ok(()) } else { Err(format!("{} lists", now - lists)) }
        })
        .await;
        self.quiet().await;
        tokio::time::sleep(IDLE).await;
        println!(
            "operator, with {of_what}, after every watch listed again: {:.1} MiB resident, {:.1} at most",
            self.resident_mib(),
            self.peak_mib()
        );
    }

    fn memory_mib(&self, what: &str) -> f64 {
        let kibibytes = memory_bytes(self.operator.process.pid(), what) / 1024;
        f64::from(u32::try_from(kibibytes).unwrap()) / 1024.0
    }

    pub fn resident_mib(&self) -> f64 {
        self.memory_mib("VmRSS")
    }

    pub fn peak_mib(&self) -> f64 {
        self.memory_mib("VmHWM")
    }

    fn processor_seconds(&self) -> f64 {
        processor_seconds(self.operator.process.pid())
    }
}

/// What the operator has done. Requests to Kubernetes are without its watches, and those to JetStream without its samples of figures.
#[derive(Clone, Debug)]
pub struct Counts {
    pub reconciles: u64,
    pub reads: u64,
    pub creates: u64,
    pub patches: u64,
    pub others: u64,
    pub jetstream: u64,
    pub samples: u64,
    pub seconds: f64,
}

impl Counts {
    pub fn since(&self, before: &Self) -> Self {
        Self {
            reconciles: self.reconciles - before.reconciles,
            reads: self.reads - before.reads,
            creates: self.creates - before.creates,
            patches: self.patches - before.patches,
            others: self.others - before.others,
            jetstream: self.jetstream - before.jetstream,
            samples: self.samples - before.samples,
            seconds: self.seconds - before.seconds,
        }
    }

    /// Requests to Kubernetes.
    pub fn kubernetes(&self) -> u64 {
        self.reads + self.creates + self.patches + self.others
    }

    fn is_nothing(&self) -> bool {
        (self.reconciles, self.kubernetes(), self.jetstream) == (0, 0, 0)
    }
}
