//! The life of the operator: connect, become ready, lead, reconcile, stop.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use jetwright_process::{admin, health::Health, metrics as process_metrics, shutdown::Shutdown};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt, runtime::events::Reporter};
use prometheus_client::registry::Registry;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    args::Args,
    connection::{self, Identity},
    context::Context,
    controllers::{self, Declared},
    jetstream::{
        advisories::Intervals,
        cache::Cache,
        connections::{Connection, Connections},
        ownership::ClusterNames,
        repartition::{resumed::Resumed, unchanged::Unchanged},
    },
    kubernetes::{apply::Applying, client, events::Events, owned::OwnedObjects, scopes::Scopes},
    leader::Leadership,
    metrics::Metrics,
    object_state::ObjectStates,
    partitions::{self, registry::Partitions},
    pods::cache::PodCache,
    rate_limit::RateLimit,
    readiness::Readiness,
    scale_down::registry::ScaleDowns,
    scaling::{self, registry::Autoscalers},
    stats::{self, Exporter},
};

/// How long reconciles may go on after the signal to stop; less than the grace that Kubernetes gives by default (30 s).
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);
/// Least time after which streams and consumers that nothing declares leave the cache; longer than any pause before a retry.
const MIN_CACHE_IDLE: Duration = Duration::from_mins(15);
/// Time between two looks for states of objects that are gone.
const EVICTION_INTERVAL: Duration = Duration::from_mins(10);
/// Most statuses that say Disconnected a second.
const DISCONNECT_WRITES_PER_SECOND: u32 = 20;
/// Most statuses a second in which only live figures change.
const STATS_WRITES_PER_SECOND: u32 = 20;
/// Most statuses that come to say JetStreamUnavailable, or no longer do, a second.
const AVAILABILITY_WRITES_PER_SECOND: u32 = 100;
/// Most owned objects that are applied a second after a start, when nothing is known of what was applied before.
const STARTUP_APPLIES_PER_SECOND: u32 = 20;
/// How long the API server may take to say the uid of kube-system, and the delay before it is asked again.
const CLUSTER_UID_TIMEOUT: Duration = Duration::from_secs(5);
const CLUSTER_UID_RETRY: Duration = Duration::from_secs(1);

/// Runs until a signal, or until leadership is lost.
///
/// # Errors
///
/// When the operator cannot start, or has to be restarted.
pub async fn run(args: Args) -> Result<()> {
    let shutdown = Shutdown::on_signals()?;
    let mut registry = Registry::default();
    process_metrics::register(&mut registry, "jetwright-operator");
    let metrics = Metrics::register(&mut registry);
    let exporter = Exporter::register(&mut registry, |encoder, context| {
        scaling::export::encode(encoder, context)?;
        partitions::export::encode(encoder, context)
    });
    let health = Health::new();
    let admin = admin::bind(args.admin_address)
        .await
        .with_context(|| format!("failed to bind --admin-address {}", args.admin_address))?;
    tracing::info!(address = %admin.local_address()?, "serving /livez, /readyz and /metrics");
    let admin_stop = CancellationToken::new();
    let served = tokio::spawn(admin.serve(health.clone(), Arc::new(registry), admin_stop.clone()));

    let result = operate(&args, (&metrics, &exporter), &health, &shutdown.token()).await;
    health.stop("shutting down");
    admin_stop.cancel();
    served.await??;
    result
}

/// Connects, waits for what is needed, and reconciles for as long as this process leads.
async fn operate(
    args: &Args,
    (metrics, exporter): (&Metrics, &Exporter),
    health: &Health,
    stop: &CancellationToken,
) -> Result<()> {
    let readiness = Readiness::new(health);
    let client = client::client(metrics)
        .await
        .context("Kubernetes cannot be found: run in a cluster, or set KUBECONFIG")?;
    let nats = connect(args, &client, metrics).await?;
    let reached = {
        let (nats, gate) = (nats.clone(), readiness.nats);
        tokio::spawn(async move { gate.open_when_reached(&nats).await })
    };
    let namespaces = &args.controllers.namespaces;
    let Some(()) =
        stop.run_until_cancelled(readiness.definitions.open_when_served(&client, namespaces)).await
    else {
        return Ok(());
    };
    let Some(context) = stop.run_until_cancelled(context(args, client, nats, metrics.clone())).await else {
        return Ok(());
    };
    let context = Arc::new(context?);
    let result = lead(args, &context, exporter, stop).await;
    context.events.flush().await;
    reached.abort();
    result
}

/// The connection to NATS, which is named by the cluster. Where that has no name and Kubernetes does not answer, NATS does not wait for it.
async fn connect(args: &Args, client: &Client, metrics: &Metrics) -> Result<jetwright_nats::Connection> {
    let cluster = match &args.controllers.cluster_name {
        Some(name) => Some(name.clone()),
        None => tokio::time::timeout(CLUSTER_UID_TIMEOUT, uid_of_kube_system(client))
            .await
            .ok()
            .transpose()
            .ok()
            .flatten(),
    };
    let identity = Identity {
        cluster: cluster.as_deref().unwrap_or("unnamed"),
        namespace: client.default_namespace(),
        pod: &std::env::var("HOSTNAME").unwrap_or_else(|_| "operator".to_owned()),
    };
    Ok(connection::open(&args.connection()?, &identity, metrics).await?)
}

async fn context(
    args: &Args,
    client: Client,
    nats: jetwright_nats::Connection,
    metrics: Metrics,
) -> Result<Context> {
    let api = connection::api(&nats, args.nats.jetstream_timeout.into(), metrics.clone());
    let serves = args.controllers.default_connection_namespaces.clone();
    let reporter =
        Reporter { controller: "jetwright-operator".to_owned(), instance: std::env::var("HOSTNAME").ok() };
    Ok(Context {
        cluster: Arc::new(cluster_names(args, &client).await?),
        events: Events::start(client.clone(), reporter, metrics.clone()),
        connections: Connections::of(Connection { nats, cache: Cache::new(api), serves }),
        metrics,
        settings: args.settings(),
        scopes: Scopes::new(&args.controllers.namespaces),
        applying: Applying {
            client: client.clone(),
            owned: OwnedObjects::default(),
            startup: RateLimit::new(STARTUP_APPLIES_PER_SECOND),
        },
        client,
        pods: PodCache::default(),
        autoscalers: Autoscalers::default(),
        partitions: Partitions::default(),
        scale_downs: ScaleDowns::default(),
        states: ObjectStates::default(),
        disconnect_writes: RateLimit::new(DISCONNECT_WRITES_PER_SECOND),
        stats_writes: RateLimit::new(STATS_WRITES_PER_SECOND),
        availability_writes: RateLimit::new(AVAILABILITY_WRITES_PER_SECOND),
        unchanged: Unchanged::default(),
        resumed: Resumed::default(),
        availability_wakeups: RateLimit::new(AVAILABILITY_WRITES_PER_SECOND),
        running: TaskTracker::new(),
    })
}

/// The names of this cluster: that of the flag, else the uid of the namespace kube-system, which counts where there is a flag too, so that
/// a cluster can be named without losing what it made before.
async fn cluster_names(args: &Args, client: &Client) -> Result<ClusterNames> {
    let mut others = args.controllers.former_cluster_names.clone();
    let Some(name) = &args.controllers.cluster_name else {
        let current = uid_of_kube_system(client).await.context(
            "the cluster's name is the uid of namespace kube-system, which cannot be read: set --cluster-name",
        )?;
        return Ok(ClusterNames { current, others });
    };
    others.extend(former_uid(client).await);
    Ok(ClusterNames { current: name.clone(), others })
}

/// The uid of the namespace kube-system; None where it may not be read. An API server that does not answer is asked again: without the uid,
/// all that was made under it would count as another cluster's.
async fn former_uid(client: &Client) -> Option<String> {
    loop {
        match tokio::time::timeout(CLUSTER_UID_TIMEOUT, uid_of_kube_system(client)).await {
            Ok(Ok(uid)) => return Some(uid),
            Ok(Err(error)) if is_final(&error) => {
                tracing::info!(
                    error = format!("{error:#}"),
                    "the uid of namespace kube-system is no name of this cluster"
                );
                return None;
            }
            Ok(Err(error)) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "failed to read the uid of namespace kube-system, will retry"
                );
            }
            Err(_) => tracing::warn!("reading the uid of namespace kube-system took too long, will retry"),
        }
        tokio::time::sleep(CLUSTER_UID_RETRY).await;
    }
}

/// Whether the API server said that it may not be read, or does not exist.
fn is_final(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(kube::Error::Api(status)) if matches!(status.code, 403 | 404))
}

async fn uid_of_kube_system(client: &Client) -> Result<String> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.get_metadata("kube-system").await?.uid().context("it has no uid")
}

/// Waits for leadership where there is an election, and reconciles until `stop`.
async fn lead(
    args: &Args,
    context: &Arc<Context>,
    exporter: &Exporter,
    stop: &CancellationToken,
) -> Result<()> {
    if !args.leader.leader_elect {
        return reconcile(args, context, exporter, stop).await;
    }
    let acquired = Leadership::acquire(context.client.clone(), &args.leader, stop).await?;
    let Some(mut leadership) = acquired else { return Ok(()) };
    let result = tokio::select! {
        result = reconcile(args, context, exporter, stop) => result,
        () = leadership.lost() => bail!("leadership was lost; ending at once, since another process may act now"),
    };
    leadership.release().await;
    result
}

async fn reconcile(
    args: &Args,
    context: &Arc<Context>,
    exporter: &Exporter,
    stop: &CancellationToken,
) -> Result<()> {
    tracing::info!(cluster = context.cluster.current, "reconciling");
    context.metrics.leads(true);
    let intervals = Intervals {
        resync: args.controllers.jetstream_resync_interval.into(),
        // Every object is reconciled once in this time, and locks its entries.
        idle: (context.settings.resync * 4).max(MIN_CACHE_IDLE),
    };
    let declared: Vec<_> =
        context.connections.all().map(|connection| Declared { context, connection }).collect();
    let connections = futures::future::join_all(
        declared.iter().map(|declared| declared.connection.run(&context.metrics, intervals, declared, stop)),
    );
    let sampler = stop.run_until_cancelled(stats::run(context, args.sampling(), exporter.begin(context)));
    let scaling = stop.run_until_cancelled(scaling::sampler::run(context));
    let partitions = stop.run_until_cancelled(partitions::driver::run(context));
    let controllers = controllers::run(context, args.controllers.concurrency, stop);
    // A controller whose first list did not arrive yet would wait for it for ever, so the end is that of the reconciles.
    let finished = async {
        stop.cancelled().await;
        context.running.close();
        tokio::time::timeout(SHUTDOWN_TIMEOUT, context.running.wait()).await
    };
    tokio::select! {
        _ = async { tokio::join!(connections, controllers, sampler, scaling, partitions, evict_idle(context, stop)) } => {}
        finished = finished => if finished.is_err() {
            tracing::warn!("reconciles did not finish in time; the next start takes up what they left");
        },
    }
    exporter.end();
    context.metrics.leads(false);
    Ok(())
}

async fn evict_idle(context: &Context, stop: &CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(EVICTION_INTERVAL)).await.is_some() {
        context.states.evict_idle();
    }
}
