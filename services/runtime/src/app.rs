//! The program around a service: configuration that reports every mistake, telemetry, signals, probes and metrics, the connection,
//! and an orderly end. So `main` contains only the service.

use std::{io, mem, net::SocketAddr, process::ExitCode, sync::Arc};

use anyhow::Context;
use axum::Router;
use jetwright_process::{
    admin,
    configuration::Problems,
    health::Health,
    http::{self, Drain, Server},
    metrics,
    shutdown::Shutdown,
    telemetry::Telemetry,
};
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{Environment, Service, ServiceError};

/// A service's program.
///
/// ```no_run
/// use std::process::ExitCode;
///
/// use jetwright_runtime::{App, Handler, HandlerError, Metadata};
/// # #[derive(Clone, PartialEq, prost::Message)] pub struct UserCreated { #[prost(string, tag = "2")] email: String }
/// # impl prost::Name for UserCreated { const NAME: &'static str = "UserCreated"; const PACKAGE: &'static str = "events.v1"; }
///
/// struct Greet;
///
/// impl Handler for Greet {
///     type Event = UserCreated;
///
///     async fn handle(&self, user: UserCreated, _: &Metadata) -> Result<(), HandlerError> {
///         tracing::info!(user.email, "hello");
///         Ok(())
///     }
/// }
///
/// #[tokio::main]
/// async fn main() -> ExitCode {
///     let app = App::new("greeter", &["greetings"]);
///     app.run(Ok(()), async |setup, ()| setup.service.handle("greetings", Greet).map(drop)).await
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct App {
    name: &'static str,
    event_consumers: &'static [&'static str],
}

/// What a program adds its handlers, routes and tasks to. It connects in the background, and begins to consume when it runs.
pub struct Setup {
    /// Takes handlers and projections; gives publishers, aggregates and views.
    pub service: Service,
    /// For metrics of the service's own.
    pub registry: Registry,
    /// For readiness gates of the service's own.
    pub health: Health,
    http: Option<(Server, Router)>,
    background: JoinSet<()>,
}

impl App {
    /// A program that handles the events of these EventConsumers. `name` is its name in telemetry, unless `OTEL_SERVICE_NAME` says
    /// another.
    #[must_use]
    pub const fn new(name: &'static str, event_consumers: &'static [&'static str]) -> Self {
        Self { name, event_consumers }
    }

    /// Runs the service until SIGTERM or SIGINT, and then stops it gracefully; a second signal ends the program at once. `setup` gets
    /// the program's own settings, once all settings are right.
    ///
    /// The exit code is 0 after a signal; 1 if an error ended the service, which is logged; 2 if settings are wrong, all of which are
    /// printed to standard error.
    pub async fn run<S, E: Into<anyhow::Error>>(
        self,
        settings: Result<S, Problems>,
        setup: impl AsyncFnOnce(&mut Setup, S) -> Result<(), E>,
    ) -> ExitCode {
        let settings = Problems::zip(settings, Environment::from_env(self.event_consumers));
        let settings = Problems::zip(settings, admin::address());
        match Problems::zip(settings, Telemetry::start(self.name)) {
            Ok((((settings, environment), admin_address), telemetry)) => {
                let setup = async |parts: &mut Setup| setup(parts, settings).await.map_err(Into::into);
                telemetry.finish(self.serve(environment, admin_address, setup).await)
            }
            Err(problems) => problems.report(),
        }
    }

    /// Runs one command of the program and ends, such as a rebuild. The exit codes are those of [`run`](Self::run).
    pub async fn run_command<S, E: Into<anyhow::Error>>(
        self,
        settings: Result<S, Problems>,
        command: impl AsyncFnOnce(Setup, S) -> Result<(), E>,
    ) -> ExitCode {
        let settings = Problems::zip(settings, Environment::from_env(self.event_consumers));
        match Problems::zip(settings, Telemetry::start(self.name)) {
            Ok(((settings, environment), telemetry)) => {
                let done = async {
                    let setup = Setup::connect(environment).await?;
                    // A command may be large.
                    Box::pin(command(setup, settings)).await.map_err(Into::into)
                };
                telemetry.finish(done.await)
            }
            Err(problems) => problems.report(),
        }
    }

    async fn serve(
        self,
        environment: Environment,
        admin_address: SocketAddr,
        prepare: impl AsyncFnOnce(&mut Setup) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let shutdown = Shutdown::on_signals().context("failed to listen for signals")?;
        let admin = admin::bind(admin_address).await;
        let admin = admin.with_context(|| format!("failed to bind {admin_address}"))?;
        let mut setup = Setup::connect(environment).await?;
        metrics::register(&mut setup.registry, self.name);
        prepare(&mut setup).await?;
        let http = setup.http_address().transpose()?.map(tracing::field::display);
        tracing::info!(http, admin = %admin.local_address()?, "serving");

        let (health, registry) = (setup.health.clone(), Arc::new(mem::take(&mut setup.registry)));
        let ended = CancellationToken::new();
        // Probes and metrics stop last.
        let probes = tokio::spawn(admin.serve(health, registry, ended.clone()));
        let result = setup.run(shutdown.token(), Drain::BEHIND_SERVICE).await;
        ended.cancel();
        probes.await?.context("failed to serve probes")?;
        result
    }
}

impl Setup {
    /// Begins to connect.
    ///
    /// # Errors
    ///
    /// The connection's options are refused.
    pub async fn connect(environment: Environment) -> Result<Self, ServiceError> {
        let (mut registry, health) = (Registry::default(), Health::new());
        let service = Service::connect(environment, &health, &mut registry).await?;
        Ok(Self { service, registry, health, http: None, background: JoinSet::new() })
    }

    /// Lets the service answer HTTP requests too. The address is bound now, and served when the service runs; port 0 takes a free
    /// port.
    ///
    /// # Errors
    ///
    /// The address cannot be bound.
    pub async fn serve_http(&mut self, address: SocketAddr, router: Router) -> anyhow::Result<()> {
        let server = http::bind(address).await.with_context(|| format!("failed to bind {address}"))?;
        self.http = Some((server, router));
        Ok(())
    }

    /// The address for HTTP requests.
    #[must_use]
    pub fn http_address(&self) -> Option<io::Result<SocketAddr>> {
        self.http.as_ref().map(|(server, _)| server.local_address())
    }

    /// Runs a task beside the service; it is cancelled when the service ends.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.background.spawn(task);
    }

    /// Runs the service until `shutdown` is cancelled, and then ends it: HTTP drains while delivered events are handled and settled.
    ///
    /// # Errors
    ///
    /// A part ended by itself; the other is stopped too, and only a restart repairs it.
    pub async fn run(self, shutdown: CancellationToken, drain: Drain) -> anyhow::Result<()> {
        let Self { service, http, background: _background, .. } = self;
        let serving = async {
            let Some((server, router)) = http else { return Ok(()) };
            let _stops_the_other = shutdown.clone().drop_guard();
            server.serve(router, shutdown.clone(), drain).await
        };
        let consuming = async {
            let _stops_the_other = shutdown.clone().drop_guard();
            service.run(shutdown.clone()).await
        };
        let (http_ended, consuming_ended) = tokio::join!(serving, consuming);
        http_ended.context("failed to serve HTTP")?;
        consuming_ended.context("failed to consume")
    }
}
