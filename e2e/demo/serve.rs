//! The process that all of a demo stands on: it starts the servers and the operator, plays the node, and ends with all that it started.
//!
//! Whoever starts it holds its standard input: when that closes without the line `stay`, the starter is gone, and the demo ends.

use std::{collections::BTreeMap, fs, io::BufRead, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use jetwright_e2e::{
    jaeger::Jaeger,
    node::{Node, Settings},
    prometheus::{Prometheus, Scraped},
};
use jetwright_testing::{
    ControlPlane, Folder, NatsCluster, NatsServer, Process, ProcessBuilder, Program, binary, free_port,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::sleep,
};

use crate::{
    manifests::{SERVICES, SHOP},
    state::{Home, Identity, Observers, Parts},
};

/// The line by which the starter lets it go on alone.
pub const STAY: &str = "stay";
/// The user of NATS for whom nothing is forbidden.
pub const ADMINISTRATOR: &str = "admin";
/// The password of all users: who reaches the loopback network of this machine may use the demo.
pub const PASSWORD: &str = "demo";
/// The services' users of NATS: the Secret `nats-<user>` is what the shop's chart expects.
pub const USERS: [&str; 2] = ["users", "orders"];
/// Controllers of Kubernetes that the demo has. Those of endpoints are not among them: they refuse addresses of the loopback network.
const CONTROLLERS: &str = "deployment-controller,replicaset-controller,garbage-collector-controller,\
                           namespace-controller,disruption-controller,pod-garbage-collector-controller";
const POLL: Duration = Duration::from_secs(1);

/// Servers, operator and node.
struct Demo {
    control_plane: ControlPlane,
    _nats: NatsCluster,
    controllers: Process,
    operator: Process,
    start_operator: ProcessBuilder,
    observers: Option<(Prometheus, Jaeger)>,
}

/// Runs a demo until a signal or its starter ends it, with Prometheus and Jaeger where `observe` is set.
///
/// # Errors
///
/// When a part of it cannot be started, or ends.
pub async fn serve(observe: bool) -> Result<()> {
    let home = Home::open()?;
    let folder = Folder::new("demo");
    let run = folder.path().parent().context("a folder of this run")?;
    home.write("process.json", &Identity::own(run)?)?;
    let left = abandoned();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let demo = async {
        let demo = start(&home, &folder, observe).await?;
        watch(demo, &home).await
    };
    tokio::pin!(demo);
    tokio::pin!(left);
    loop {
        tokio::select! {
            // Its log, which says why, stays.
            ended = &mut demo => return ended,
            _ = &mut left => break,
            _ = terminate.recv() => break,
            // A terminal that closes is no reason to end.
            _ = hangup.recv() => {}
        }
    }
    home.remove()
}

/// Is answered when the starter is gone before it let this process go on alone.
fn abandoned() -> oneshot::Receiver<()> {
    let (gone, told) = oneshot::channel();
    std::thread::spawn(move || {
        let stays = std::io::stdin().lock().lines().map_while(Result::ok).any(|line| line == STAY);
        if stays {
            // Nobody is answered any more, and nothing is to end: the channel stays open.
            std::mem::forget(gone);
        } else {
            let _ = gone.send(());
        }
    });
    told
}

async fn start(home: &Home, folder: &Arc<Folder>, observe: bool) -> Result<Demo> {
    let users = USERS.iter().chain([&ADMINISTRATOR]);
    let users: Vec<_> = users.map(|user| format!("{{user: {user}, password: {PASSWORD}}}")).collect();
    let nats = NatsServer::builder().config(&format!("authorization {{ users: [{}] }}", users.join(", ")));
    let jaeger = async { if observe { Jaeger::try_start().await.map(Some) } else { Ok(None) } };
    let (control_plane, nats, jaeger) =
        tokio::try_join!(ControlPlane::try_start(), NatsCluster::try_start_with(3, nats), jaeger)?;
    let controllers = Process::builder(Program::KubeControllerManager.try_path()?)
        .arg("--kubeconfig")
        .arg(control_plane.kubeconfig())
        .args(["--leader-elect=false", "--secure-port=0"])
        .arg(format!("--controllers={CONTROLLERS}"))
        .try_start()?;
    control_plane.apply(jetwright_e2e::path("../crds/manifests")).await;
    let logs = home.path("logs");
    fs::create_dir_all(&logs)?;
    let settings = Settings { programs: programs(), logs, network: 0, started: None };
    let node = Node::new(control_plane.client().await, settings);
    let questions = TcpListener::bind("127.0.0.1:0").await.context("no free port")?;
    node.register(questions.local_addr()?.port()).await?;
    tokio::spawn(Arc::clone(&node).answer(questions));
    let services = serve_services(&node).await?;
    tokio::spawn(node.run());
    let admin = format!("127.0.0.1:{}", free_port());
    let mut start_operator = operator(&control_plane, &nats, &admin, folder)?;
    if let Some(jaeger) = &jaeger {
        start_operator = observed(start_operator, jaeger.otlp_url());
    }
    let operator = start_operator.clone().try_start()?;
    let mut parts = Parts {
        kubeconfig: home.path("kubeconfig"),
        kubectl: Program::Kubectl.try_path()?,
        nats: nats.url().to_owned(),
        operator: format!("http://{admin}"),
        services,
        observers: None,
    };
    fs::copy(control_plane.kubeconfig(), &parts.kubeconfig)?;
    let observers = match jaeger {
        Some(jaeger) => Some((look_on(&control_plane, &mut parts, &jaeger).await?, jaeger)),
        None => None,
    };
    home.write("demo.json", &parts)?;
    Ok(Demo { control_plane, _nats: nats, controllers, operator, start_operator, observers })
}

/// Starts Prometheus, and notes where it and Jaeger are.
async fn look_on(control_plane: &ControlPlane, parts: &mut Parts, jaeger: &Jaeger) -> Result<Prometheus> {
    let cluster = control_plane.client().await;
    let scraped = Scraped { cluster: &cluster, operator: &parts.operator };
    let prometheus = Prometheus::try_start(scraped).await?;
    parts.observers = Some(Observers {
        prometheus: prometheus.url().to_owned(),
        jaeger: jaeger.url().to_owned(),
        otlp: jaeger.otlp_url().to_owned(),
    });
    Ok(prometheus)
}

/// The operator of a demo with Prometheus and Jaeger: it and the pods send traces, and its intervals are shorter, as the rules' durations are.
fn observed(operator: ProcessBuilder, otlp: &str) -> ProcessBuilder {
    operator.env("OTEL_EXPORTER_OTLP_ENDPOINT", otlp).arg(format!("--workload-otlp-endpoint={otlp}")).args([
        "--stats-interval=1s",
        "--resync-interval=10s",
        "--peer-metrics",
    ])
}

/// Image to program.
fn programs() -> BTreeMap<String, PathBuf> {
    let of = |name: &str| (format!("jetwright/{name}"), binary(&format!("jetwright-{name}")));
    ["user-service", "order-service", "payment-simulator"].map(of).into()
}

/// A port of this machine for each Service of the shop.
async fn serve_services(node: &Arc<Node>) -> Result<BTreeMap<String, String>> {
    let mut urls = BTreeMap::new();
    for name in SERVICES {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port")?;
        urls.insert(name.to_owned(), format!("http://{}", listener.local_addr()?));
        let node = Arc::clone(node);
        tokio::spawn(async move { node.serve(SHOP, name, listener).await });
    }
    Ok(urls)
}

fn operator(
    control_plane: &ControlPlane,
    nats: &NatsCluster,
    admin: &str,
    folder: &Arc<Folder>,
) -> Result<ProcessBuilder> {
    let credentials = folder.path().join("credentials");
    fs::create_dir_all(&credentials)?;
    fs::write(credentials.join("username"), ADMINISTRATOR)?;
    fs::write(credentials.join("password"), PASSWORD)?;
    Ok(Process::builder(binary("jetwright-operator"))
        .folder(folder)
        .env("KUBECONFIG", control_plane.kubeconfig())
        .args(["--nats-url", nats.url(), "--leader-elect=false"])
        .arg(format!("--nats-credentials-folder={}", credentials.display()))
        .arg(format!("--admin-address={admin}"))
        // Figures in a status are seconds old, so that one sees them change.
        .args(["--status-stats-interval=2s", "--jetstream-resync-interval=5s"]))
}

/// Watches over a demo that runs: an operator that ends is started again, as its Deployment would, and where a server ends, or somebody removes
/// the demo's folder, all of it does.
async fn watch(mut demo: Demo, home: &Home) -> Result<()> {
    loop {
        sleep(POLL).await;
        if !home.path("process.json").exists() {
            return Ok(());
        }
        let observers = demo.observers.iter();
        let observers = observers.flat_map(|(prometheus, jaeger)| {
            [("prometheus", prometheus.process()), ("jaeger", jaeger.process())]
        });
        let servers = [
            ("etcd", demo.control_plane.etcd()),
            ("kube-apiserver", demo.control_plane.api_server()),
            ("kube-controller-manager", &demo.controllers),
        ];
        for (name, process) in servers.into_iter().chain(observers) {
            if let Some(status) = process.exited() {
                bail!(
                    "{name} ended ({status}), and the demo with it; its log ends with:\n{}",
                    process.last_lines()
                );
            }
        }
        if demo.operator.exited().is_some() {
            demo.operator = demo.start_operator.clone().try_start()?;
        }
    }
}
