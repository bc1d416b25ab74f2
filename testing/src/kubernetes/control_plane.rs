//! etcd and kube-apiserver.

use super::namespace::Namespace;
use crate::folder::Folder;
use crate::port::free_port;
use crate::process::{Process, on_free_ports};
use crate::program::Program;
use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;

/// It usually takes some seconds; a machine that builds something meanwhile takes longer.
const START: Duration = Duration::from_secs(90);
/// The one user, who may do everything. The server listens on 127.0.0.1 alone and is gone with the test.
const TOKEN: &str = "administrator-of-a-test";

/// A Kubernetes API server with a store of its own. There are no nodes and no controllers: a Deployment is only kept, what
/// an owner reference points at is not deleted with its owner, and a deleted namespace stays `Terminating`.
#[derive(Debug)]
pub struct ControlPlane {
    kubeconfig: PathBuf,
    api_server: Process,
    api_server_args: Vec<String>,
    etcd: Process,
    folder: Arc<Folder>,
}

impl ControlPlane {
    /// Starts one for a test alone. Most tests do with a [`Self::namespace`] of the [`Self::shared`] one.
    pub async fn start() -> Self {
        Self::try_start().await.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// The one that all tests of a test program share, started by the first that asks. It ends with the program.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Result<ControlPlane, String>> = OnceCell::const_new();
        let started =
            SHARED.get_or_init(async || Self::try_start().await.map_err(|error| format!("{error:#}")));
        started.await.as_ref().unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Self::start`], for a program that says why there is none.
    ///
    /// # Errors
    ///
    /// When one of the two servers cannot be started, with the end of its log.
    pub async fn try_start() -> Result<Self> {
        let started = on_free_ports(async || {
            let (control_plane, store) = Self::spawn()?;
            let healthy = async || reqwest::get(&store).await?.error_for_status().map(drop);
            control_plane.etcd.await_ready(START, healthy).await?;
            control_plane.api_server.await_ready(START, async || control_plane.is_ready().await).await?;
            Ok(control_plane)
        });
        started.await.context("a Kubernetes API server")
    }

    /// Starts both, and returns where etcd tells whether it is well.
    fn spawn() -> Result<(Self, String)> {
        let (etcd, api_server) = (Program::Etcd.try_path()?, Program::KubeApiserver.try_path()?);
        let folder = Folder::try_new("control-plane")?;
        let (store, peers, api) = (free_port(), free_port(), free_port());
        fs::write(folder.path().join("tokens.csv"), format!("{TOKEN},admin,admin,system:masters\n"))?;
        let kubeconfig = folder.path().join("kubeconfig");
        fs::write(&kubeconfig, kubeconfig_text(api, &folder.path().join("certificates")))?;
        let etcd = Process::builder(etcd).name("etcd").folder(&folder);
        let etcd = etcd.args(etcd_args(store, peers, &folder.path().join("etcd"))).try_start()?;
        let api_server_args = api_server_args(store, api, folder.path());
        let api_server = Process::builder(api_server).name("kube-apiserver").folder(&folder);
        let api_server = api_server.args(&api_server_args).try_start()?;
        let control_plane = Self { kubeconfig, api_server, api_server_args, etcd, folder };
        Ok((control_plane, format!("http://127.0.0.1:{store}/health")))
    }

    /// Kills the API server, and starts it again on the same store: watches whose last version is older than the store have to list
    /// again.
    pub async fn restart_api_server(&mut self) {
        self.api_server.kill();
        let program = Program::KubeApiserver.path();
        let api_server = Process::builder(program).name("kube-apiserver").folder(&self.folder);
        self.api_server = api_server.args(&self.api_server_args).start();
        let ready = self.api_server.await_ready(START, async || self.is_ready().await).await;
        ready.unwrap_or_else(|error| panic!("the API server did not start again: {error:?}"));
    }

    async fn is_ready(&self) -> Result<()> {
        let client = self.try_client().await?;
        client.request_text(http::Request::get("/readyz").body(Vec::new())?).await?;
        Ok(())
    }

    /// The path of a kubeconfig for its administrator: what KUBECONFIG is set to.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A client for the running test: clients belong to the runtime that they are made in.
    pub async fn client(&self) -> Client {
        self.try_client().await.unwrap_or_else(|error| panic!("no client of the API server: {error:#}"))
    }

    /// A new namespace, named `<prefix>-<number>`.
    pub async fn namespace(&self, prefix: &str) -> Namespace<'_> {
        Namespace::create(self, prefix).await.unwrap_or_else(|error| panic!("no namespace: {error:#}"))
    }

    /// Applies the manifests of a file or folder as `kubectl apply --server-side` does, and waits until CustomResourceDefinitions
    /// among them are served.
    pub async fn apply(&self, path: impl AsRef<Path>) {
        let path = path.as_ref();
        let applied = async { super::manifests::apply(&self.try_client().await?, path).await };
        applied.await.unwrap_or_else(|error| panic!("{} could not be applied: {error:#}", path.display()));
    }

    /// Runs kubectl, and returns what it printed, or what it complained of.
    ///
    /// # Errors
    ///
    /// When kubectl fails, with what it wrote to standard error.
    pub fn kubectl(&self, args: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>) -> Result<String> {
        let mut kubectl = Command::new(Program::Kubectl.try_path()?);
        // HOME is for its cache of what the server serves
        kubectl.args(args).env("KUBECONFIG", &self.kubeconfig).env("HOME", self.folder.path());
        let output = kubectl.output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The process of the API server: for its memory, its log, or signals such as STOP and CONT.
    #[must_use]
    pub fn api_server(&self) -> &Process {
        &self.api_server
    }

    /// The process of etcd.
    #[must_use]
    pub fn etcd(&self) -> &Process {
        &self.etcd
    }

    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    pub(crate) async fn try_client(&self) -> Result<Client> {
        client_of(&self.kubeconfig).await
    }
}

pub(crate) async fn client_of(kubeconfig: &Path) -> Result<Client> {
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &options).await?;
    Ok(Client::try_from(config)?)
}

fn etcd_args(clients: u16, peers: u16, data: &Path) -> Vec<String> {
    let (clients, peers) = (format!("http://127.0.0.1:{clients}"), format!("http://127.0.0.1:{peers}"));
    vec![
        format!("--data-dir={}", data.display()),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=default={peers}"),
        // Nothing needs to outlive a loss of power.
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ]
}

fn api_server_args(store: u16, port: u16, folder: &Path) -> Vec<String> {
    let folder = folder.display();
    vec![
        format!("--etcd-servers=http://127.0.0.1:{store}"),
        "--bind-address=127.0.0.1".into(),
        "--advertise-address=127.0.0.1".into(),
        format!("--secure-port={port}"),
        // It makes a certificate and its key there, and the key is good enough to sign the tokens of service accounts.
        format!("--cert-dir={folder}/certificates"),
        format!("--service-account-key-file={folder}/certificates/apiserver.key"),
        format!("--service-account-signing-key-file={folder}/certificates/apiserver.key"),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--token-auth-file={folder}/tokens.csv"),
        "--authorization-mode=RBAC".into(),
        "--service-cluster-ip-range=10.0.0.0/24".into(),
        // It refuses pods until a controller, which is not there, has made their service account.
        "--disable-admission-plugins=ServiceAccount".into(),
        // As in every cluster: its policies decide.
        "--allow-privileged=true".into(),
        // What a server for a few clients can do without.
        "--endpoint-reconciler-type=none".into(),
        "--enable-priority-and-fairness=false".into(),
        "--profiling=false".into(),
    ]
}

fn kubeconfig_text(port: u16, certificates: &Path) -> String {
    let certificate = certificates.join("apiserver.crt");
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority": certificate,
        }}],
        "users": [{"name": "admin", "user": {"token": TOKEN}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    })
    .to_string()
}
