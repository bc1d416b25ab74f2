//! One NATS server.

use crate::folder::Folder;
use crate::port::free_port;
use crate::process::{NotReady, Process, ProcessBuilder, on_free_ports};
use crate::program::Program;
use anyhow::{Context, Result, anyhow, ensure};
use async_nats::{Client, ConnectOptions, jetstream};
use serde::de::DeserializeOwned;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;

/// It usually answers within 100 ms; a machine that builds something meanwhile takes longer.
const START: Duration = Duration::from_secs(20);
/// A member of a cluster has to catch up with the others before it is well.
const CATCH_UP: Duration = Duration::from_mins(1);
/// A member of a cluster hands over what it leads when it is stopped.
const STOP: Duration = Duration::from_secs(20);

/// File of what a test adds to the configuration.
const ADDED: &str = "added.conf";

/// A NATS server with JetStream, on ports and with a store of its own.
#[derive(Debug)]
pub struct NatsServer {
    name: String,
    port: u16,
    url: String,
    monitoring_url: String,
    start: ProcessBuilder,
    added: PathBuf,
    process: Mutex<Arc<Process>>,
}

/// How a NATS server is started: see [`NatsServer::builder`].
#[derive(Debug, Clone, Default)]
pub struct NatsServerBuilder {
    config: String,
    program: Option<PathBuf>,
}

/// Where a member of a cluster is in it.
pub(crate) struct Membership<'a> {
    pub(crate) name: &'a str,
    pub(crate) cluster: &'a str,
    pub(crate) routes: &'a [u16],
    pub(crate) route: u16,
}

impl NatsServerBuilder {
    /// Adds to the server's configuration file, in its own format: accounts, authorization, limits. What is set twice has
    /// the value given here.
    #[must_use]
    pub fn config(mut self, config: &str) -> Self {
        self.config.push_str(config);
        self.config.push('\n');
        self
    }

    /// Takes this program, of another version for instance, instead of what [`Program::path`] finds.
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = Some(program.into());
        self
    }

    /// Starts it, and returns when JetStream answers.
    pub async fn start(self) -> NatsServer {
        let started = on_free_ports(async || {
            let server = self.spawn(None)?;
            server.await_ready().await?;
            Ok(server)
        });
        started.await.unwrap_or_else(|error| panic!("nats-server: {error:#}"))
    }

    /// Starts it, and does not wait.
    pub(crate) fn spawn(&self, membership: Option<&Membership<'_>>) -> Result<NatsServer> {
        let program = self.program.clone().map_or_else(|| Program::NatsServer.try_path(), Ok)?;
        let (port, monitoring) = (free_port(), free_port());
        let name = format!("{}-{port}", membership.map_or("nats", |membership| membership.name));
        let folder = Folder::try_new("nats-server")?;
        let path = folder.path().join("nats-server.conf");
        let added = folder.path().join(ADDED);
        fs::write(&added, &self.config)?;
        let config = format!(
            "server_name: {name}\nlisten: 127.0.0.1:{port}\nhttp: 127.0.0.1:{monitoring}\n\
             jetstream {{ store_dir: \"{}\", max_memory_store: 1GB, max_file_store: 10GB }}\n{}include {ADDED}\n",
            folder.path().join("store").display(),
            membership.map(Membership::config).unwrap_or_default(),
        );
        fs::write(&path, config)?;
        let start = Process::builder(program).name(&name).folder(&folder).arg("--config").arg(path);
        Ok(NatsServer {
            process: Mutex::new(Arc::new(start.clone().try_start()?)),
            name,
            port,
            url: format!("nats://127.0.0.1:{port}"),
            monitoring_url: format!("http://127.0.0.1:{monitoring}"),
            start,
            added,
        })
    }
}

impl Membership<'_> {
    fn config(&self) -> String {
        let routes: Vec<_> = self.routes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        format!(
            "cluster {{ name: {}, listen: 127.0.0.1:{}, routes: [{}] }}\n",
            self.cluster,
            self.route,
            routes.join(", ")
        )
    }
}

impl NatsServer {
    /// Starts a server, and returns when JetStream answers.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// How to start a server that needs more than the defaults.
    #[must_use]
    pub fn builder() -> NatsServerBuilder {
        NatsServerBuilder::default()
    }

    /// Its name, as servers call themselves in JetStream's cluster information.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where clients connect: `nats://127.0.0.1:…`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where it tells about itself: `http://127.0.0.1:…`, with /varz, /jsz, /connz, /healthz.
    #[must_use]
    pub fn monitoring_url(&self) -> &str {
        &self.monitoring_url
    }

    /// A client, which comes back soon after the server does.
    pub async fn client(&self) -> Client {
        self.client_with(ConnectOptions::new()).await
    }

    /// A client with credentials or other options.
    pub async fn client_with(&self, options: ConnectOptions) -> Client {
        connect(&self.url, options).await
    }

    /// A client's JetStream.
    pub async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.client().await)
    }

    /// The running process: for its memory, its log, or a signal such as STOP and CONT, or USR2 for lame duck mode.
    #[must_use]
    pub fn process(&self) -> Arc<Process> {
        Arc::clone(&self.current())
    }

    /// Stops it as an administrator would (SIGTERM), and waits until it has ended. Its store stays.
    pub async fn stop(&self) {
        let process = self.process();
        process.signal("TERM");
        process.wait_exit(STOP).await;
    }

    /// Kills it (SIGKILL). Its store stays.
    pub fn kill(&self) {
        self.process().kill();
    }

    /// Starts it again after [`Self::stop`] or [`Self::kill`], with its store and on its ports, and returns when JetStream
    /// answers.
    pub async fn start_again(&self) {
        assert!(self.process().exited().is_some(), "{} still runs: stop or kill it first", self.name);
        let started =
            self.start.clone().try_start().unwrap_or_else(|error| panic!("{}: {error:#}", self.name));
        *self.current() = Arc::new(started);
        match self.await_ready_within(CATCH_UP).await {
            Ok(()) => {}
            Err(NotReady::PortTaken) => {
                panic!("another process took the port of {} while it was stopped", self.name)
            }
            Err(NotReady::Other(error)) => panic!("{error:#}"),
        }
    }

    /// Gives the configuration what is added to it here, for the next start, in place of what it had beside the defaults.
    pub fn reconfigure(&self, config: &str) {
        fs::write(&self.added, config).unwrap_or_else(|error| panic!("{}: {error}", self.added.display()));
    }

    /// What the monitoring port tells at a path such as `/jsz?streams=true`.
    ///
    /// # Errors
    ///
    /// When it does not answer, or not with JSON of this type.
    pub async fn monitor<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let url = format!("{}{path}", self.monitoring_url);
        let answer = reqwest::get(&url).await?.error_for_status()?;
        answer.json().await.with_context(|| format!("what {url} answered"))
    }

    /// Waits until the server itself answers on its port, and JetStream is well.
    pub(crate) async fn await_ready(&self) -> Result<(), NotReady> {
        self.await_ready_within(START).await
    }

    async fn await_ready_within(&self, bound: Duration) -> Result<(), NotReady> {
        let ask = async || {
            self.greets().await?;
            self.monitor::<serde_json::Value>("/healthz").await
        };
        self.process().await_ready(bound, || async { ask().await.map(drop) }).await
    }

    /// Checks that it is this server that listens on the port: a server says its name to whoever connects.
    async fn greets(&self) -> Result<()> {
        let mut greeting = String::new();
        BufReader::new(TcpStream::connect(("127.0.0.1", self.port)).await?).read_line(&mut greeting).await?;
        let info =
            greeting.strip_prefix("INFO ").ok_or_else(|| anyhow!("no NATS server but '{greeting}'"))?;
        let info: serde_json::Value = serde_json::from_str(info)?;
        ensure!(
            info["server_name"] == self.name.as_str(),
            "another server, {}, is on its port",
            info["server_name"]
        );
        Ok(())
    }

    fn current(&self) -> MutexGuard<'_, Arc<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        // Others may hold the process still.
        self.kill();
    }
}

/// A client that tries to come back every 50 ms, so that tests need not wait for its backoff.
pub(crate) async fn connect(urls: &str, options: ConnectOptions) -> Client {
    let options = options.reconnect_delay_callback(|_| Duration::from_millis(50));
    let servers: Vec<_> = urls.split(',').collect();
    options.connect(servers).await.unwrap_or_else(|error| panic!("could not connect to {urls}: {error}"))
}
