//! The life of the operator: connect, become ready, lead, reconcile, stop.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use jetwright_nats::Connection;
use jetwright_process::{admin, health::Health, metrics as process_metrics, shutdown::Shutdown};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, ResourceExt,
    runtime::events::{Recorder, Reporter},
};
use prometheus_client::registry::Registry;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::Arguments,
    connection,
    context::Context,
    controller,
    jetstream::{Mirror, watch},
    leader::Leadership,
    memory::{Applied, Deletions, Failures, Remade, Repairs, Written},
    metrics::Metrics,
    readiness::Readiness,
    workload::Pods,
};

/// How long reconciles may go on after the signal to stop; less than the grace that Kubernetes gives by default (30 s).
const FINISH: Duration = Duration::from_secs(20);
/// Least time after which JetStream's streams and consumers that nothing declares are forgotten; longer than any pause before a retry.
const FORGET_AFTER: Duration = Duration::from_mins(15);
/// Time between two looks for what is remembered of objects that are gone.
const FORGET_EVERY: Duration = Duration::from_mins(10);

/// Runs until a signal, or until leadership is lost.
///
/// # Errors
///
/// When the operator cannot start, or has to be started anew.
pub async fn run(arguments: Arguments) -> Result<()> {
    let shutdown = Shutdown::on_signals()?;
    let mut registry = Registry::default();
    process_metrics::register(&mut registry, "jetwright-operator");
    let metrics = Metrics::register(&mut registry);
    let health = Health::new();
    let admin = admin::bind(arguments.admin_address)
        .await
        .with_context(|| format!("--admin-address {}: it cannot be listened on", arguments.admin_address))?;
    tracing::info!(address = %admin.local_address()?, "serving /livez, /readyz and /metrics");
    let admin_stop = CancellationToken::new();
    let served = tokio::spawn(admin.serve(health.clone(), Arc::new(registry), admin_stop.clone()));

    let result = operate(&arguments, &metrics, &health, &shutdown.token()).await;
    health.stop("shutting down");
    admin_stop.cancel();
    served.await??;
    result
}

/// Connects, waits for what is needed, and reconciles for as long as this process leads.
async fn operate(
    arguments: &Arguments,
    metrics: &Metrics,
    health: &Health,
    stop: &CancellationToken,
) -> Result<()> {
    let readiness = Readiness::new(health);
    let client = Client::try_default()
        .await
        .context("Kubernetes cannot be found: run in a cluster, or set KUBECONFIG")?;
    let nats = connection::open(&arguments.connection()?, metrics).await?;
    let reached = {
        let (nats, gate) = (nats.clone(), readiness.nats);
        tokio::spawn(async move { gate.open_when_reached(&nats).await })
    };
    let namespaces = &arguments.controllers.namespaces;
    let Some(()) =
        stop.run_until_cancelled(readiness.definitions.open_when_served(&client, namespaces)).await
    else {
        return Ok(());
    };
    let context = Arc::new(context(arguments, client.clone(), nats, metrics.clone()).await?);
    let result = lead(arguments, &context, stop).await;
    reached.abort();
    result
}

async fn context(
    arguments: &Arguments,
    client: Client,
    nats: Connection,
    metrics: Metrics,
) -> Result<Context> {
    let cluster_name = match &arguments.controllers.cluster_name {
        Some(name) => name.clone(),
        None => uid_of_kube_system(&client)
            .await
            .context("the cluster's name is the uid of namespace kube-system, which cannot be read: set --cluster-name")?,
    };
    let timeout = arguments.nats.jetstream_timeout.into();
    let api = connection::api(&nats, timeout, metrics.clone());
    let reporter =
        Reporter { controller: "jetwright-operator".to_owned(), instance: std::env::var("HOSTNAME").ok() };
    Ok(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        mirror: Mirror::new(api),
        nats,
        metrics,
        cluster_name,
        settings: arguments.settings(),
        failures: Failures::default(),
        written: Written::default(),
        deletions: Deletions::default(),
        repairs: Repairs::default(),
        remade: Remade::default(),
        applied: Applied::default(),
        pods: Pods::default(),
        running: TaskTracker::new(),
    })
}

async fn uid_of_kube_system(client: &Client) -> Result<String> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.get_metadata("kube-system").await?.uid().context("it has no uid")
}

/// Waits for leadership where there is an election, and reconciles until `stop`.
async fn lead(arguments: &Arguments, context: &Arc<Context>, stop: &CancellationToken) -> Result<()> {
    if !arguments.leader.leader_elect {
        return reconcile(arguments, context, stop).await;
    }
    let acquired = Leadership::acquire(context.client.clone(), &arguments.leader, stop).await?;
    let Some(mut leadership) = acquired else { return Ok(()) };
    let result = tokio::select! {
        result = reconcile(arguments, context, stop) => result,
        () = leadership.lost() => bail!("leadership was lost; ending at once, since another process may act now"),
    };
    leadership.release().await;
    result
}

async fn reconcile(arguments: &Arguments, context: &Arc<Context>, stop: &CancellationToken) -> Result<()> {
    tracing::info!(cluster = context.cluster_name, "reconciling");
    context.metrics.leads(true);
    let interval = watch::Interval {
        compare: arguments.controllers.compare_interval.into(),
        // Every object is reconciled once in this time, and holds its entries.
        forget: (context.settings.resync * 4).max(FORGET_AFTER),
    };
    let (mirror, nats) = (context.mirror.clone(), context.nats.clone());
    let advisories = watch::advisories(&nats).await;
    let watching = watch::run(advisories, mirror, nats, interval, stop.clone());
    let controllers = controller::run(
        context.clone(),
        &arguments.controllers.namespaces,
        arguments.controllers.concurrency,
        stop.clone(),
    );
    // A controller whose first list did not arrive yet would wait for it for ever, so the end is that of the reconciles.
    let finished = async {
        stop.cancelled().await;
        context.running.close();
        tokio::time::timeout(FINISH, context.running.wait()).await
    };
    tokio::select! {
        _ = async { tokio::join!(watching, controllers, forget_old(context, stop)) } => {}
        finished = finished => if finished.is_err() {
            tracing::warn!("reconciles did not finish in time; what they left is taken up at the next start");
        },
    }
    context.metrics.leads(false);
    Ok(())
}

async fn forget_old(context: &Context, stop: &CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(FORGET_EVERY)).await.is_some() {
        context.forget_old();
    }
}
