//! Flags and environment, parsed once.

use std::{collections::BTreeSet, ffi::OsString, net::SocketAddr, path::PathBuf};

use clap::{ArgAction, Args as ArgGroup, FromArgMatches, Parser, Subcommand, error::ErrorKind};
use jetwright_crds::{Duration, duration::ParseDurationError};
use jetwright_nats::{AddressError, parse_addresses};

use crate::{
    connection,
    context::Settings,
    namespaces::Namespaces,
    stats::Sampling,
    workload::{desired::WorkloadSettings, pod_security},
};

/// Keeps JetStream streams, consumers and their workloads as EventStream and EventConsumer resources declare them.
///
/// Outside a cluster it takes the cluster and the user from KUBECONFIG:
///
///   jetwright-operator --nats-url nats://127.0.0.1:4222 --leader-elect=false
#[derive(Clone, Debug, Parser)]
#[command(version, verbatim_doc_comment, args_override_self = true)]
pub struct Args {
    /// NATS, as the operator reaches it.
    #[command(flatten, next_help_heading = "NATS")]
    pub nats: NatsArgs,
    /// What the pods of workloads are given.
    #[command(flatten, next_help_heading = "Workloads")]
    pub workloads: WorkloadArgs,
    /// What is looked after, and how.
    #[command(flatten, next_help_heading = "Controllers")]
    pub controllers: ControllerArgs,
    /// Which of several operators acts.
    #[command(flatten, next_help_heading = "Leader election")]
    pub leader: LeaderArgs,

    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "JETWRIGHT_ADMIN_ADDRESS", default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    pub admin_address: SocketAddr,
}

/// NATS, as the operator reaches it.
#[derive(Clone, Debug, ArgGroup)]
pub struct NatsArgs {
    /// Addresses of the servers, separated by commas, such as nats://nats.nats.svc:4222.
    #[arg(long, env = "JETWRIGHT_NATS_URL", value_name = "URL", value_parser = servers)]
    nats_url: String,
    /// Folder of files with what identifies the operator to NATS, as a mounted Secret: user.creds, username with password, token, or
    /// nkey; and, if need be, ca.crt, tls.crt with tls.key, and inbox-prefix. They are read again at every connect.
    #[arg(long, env = "JETWRIGHT_NATS_CREDENTIALS_FOLDER", value_name = "FOLDER")]
    nats_credentials_folder: Option<PathBuf>,
    /// How long to wait for an answer of JetStream.
    #[arg(long, env = "JETWRIGHT_JETSTREAM_TIMEOUT", default_value = "5s", value_name = "DURATION", value_parser = at_least_a_second)]
    pub jetstream_timeout: Duration,
}

/// What the pods of workloads are given.
#[derive(Clone, Debug, ArgGroup)]
pub struct WorkloadArgs {
    /// Addresses of the servers as pods reach them. Default: --nats-url.
    #[arg(long, env = "JETWRIGHT_WORKLOAD_NATS_URL", value_name = "URL", value_parser = servers)]
    workload_nats_url: Option<String>,
    /// Where pods send their traces by OTLP over HTTP. Default: nowhere.
    #[arg(long, env = "JETWRIGHT_WORKLOAD_OTLP_ENDPOINT", value_name = "URL")]
    workload_otlp_endpoint: Option<String>,
    /// The most that pods may be allowed: a level of the Pod Security Standards. Templates beyond it are refused, in every namespace.
    #[arg(
        long = "workload-pod-security",
        env = "JETWRIGHT_WORKLOAD_POD_SECURITY",
        default_value = "restricted",
        value_name = "LEVEL"
    )]
    pod_security: pod_security::Level,
}

/// What is looked after, and how.
#[derive(Clone, Debug, ArgGroup)]
pub struct ControllerArgs {
    /// Namespaces to look after, separated by commas; * for all.
    #[arg(long, env = "JETWRIGHT_NAMESPACES", default_value = "*", value_name = "NAMES", value_parser = namespaces)]
    pub namespaces: Namespaces,
    /// Namespaces that the operator's own connection to NATS serves, separated by commas; * for all, empty for none.
    #[arg(
        long,
        env = "JETWRIGHT_DEFAULT_CONNECTION_NAMESPACES",
        default_value = "*",
        value_name = "NAMES",
        value_parser = namespaces_or_none
    )]
    pub default_connection_namespaces: Namespaces,
    /// Name of this Kubernetes cluster, kept in JetStream with what the operator makes; it tells clusters apart that share a NATS
    /// account. Default: the uid of the namespace kube-system.
    #[arg(long, env = "JETWRIGHT_CLUSTER_NAME", value_name = "NAME", value_parser = cluster_name)]
    pub cluster_name: Option<String>,
    /// Other names that this cluster had, separated by commas, such as that of a cluster that was rebuilt: what was made under them is
    /// its own.
    #[arg(long, env = "JETWRIGHT_FORMER_CLUSTER_NAMES", value_name = "NAMES", value_delimiter = ',', value_parser = cluster_name)]
    pub former_cluster_names: Vec<String>,
    /// How often everything in JetStream is compared with what is known of it, beside the advisories; the messages, lag and other
    /// figures in statuses are at most that and --status-stats-interval old.
    #[arg(long, env = "JETWRIGHT_COMPARE_INTERVAL", default_value = "1m", value_name = "DURATION", value_parser = at_least_a_second)]
    pub jetstream_resync_interval: Duration,
    /// Least time between two writes of a status in which only messages, lag and the like changed.
    #[arg(long, env = "JETWRIGHT_FIGURES_INTERVAL", default_value = "1m", value_name = "DURATION", value_parser = at_least_a_second)]
    status_stats_interval: Duration,
    /// Time in which the figures of every stream and consumer are read once, for the metrics. It grows where more than 50 requests a second
    /// would be needed.
    #[arg(long, env = "JETWRIGHT_STATS_INTERVAL", default_value = "30s", value_name = "DURATION", value_parser = at_least_a_second)]
    stats_interval: Duration,
    /// Whether the metrics say how far each server that keeps a copy of a stream is behind: a series for each stream and server.
    #[arg(
        long,
        env = "JETWRIGHT_PEER_METRICS",
        default_value_t = false,
        action = ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "BOOL"
    )]
    peer_metrics: bool,
    /// How often every object is reconciled although nothing seemed to change.
    #[arg(long, env = "JETWRIGHT_RESYNC_INTERVAL", default_value = "10m", value_name = "DURATION", value_parser = at_least_a_second)]
    pub resync_interval: Duration,
    /// How long a deletion is tried while NATS cannot be reached, before the finalizer is removed and the stream or consumer stays.
    #[arg(long, env = "JETWRIGHT_DELETION_TIMEOUT", default_value = "10m", value_name = "DURATION", value_parser = at_least_a_second)]
    deletion_timeout: Duration,
    /// Reconciles of each kind at once; with --namespaces, in each of them.
    #[arg(
        long,
        env = "JETWRIGHT_CONCURRENCY",
        default_value_t = 16,
        value_name = "COUNT",
        value_parser = clap::value_parser!(u16).range(1..=1000)
    )]
    pub concurrency: u16,
}

/// Which of several operators acts.
#[derive(Clone, Debug, ArgGroup)]
pub struct LeaderArgs {
    /// Whether several operators agree by a Lease which one acts; false for a single one, as outside a cluster.
    #[arg(
        long,
        env = "JETWRIGHT_LEADER_ELECT",
        default_value_t = true,
        action = ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "BOOL"
    )]
    pub leader_elect: bool,
    /// Namespace of the Lease. Default: the one of the pod, or of KUBECONFIG's context.
    #[arg(long, env = "JETWRIGHT_LEASE_NAMESPACE", value_name = "NAME")]
    pub leader_elect_namespace: Option<String>,
    /// Name of the Lease.
    #[arg(long, env = "JETWRIGHT_LEASE_NAME", default_value = "jetwright-operator", value_name = "NAME")]
    pub lease_name: String,
    /// Who this process is in the Lease. Default: the host's name, with something random.
    #[arg(long, env = "JETWRIGHT_IDENTITY", value_name = "NAME")]
    pub leader_elect_identity: Option<String>,
}

/// What the program is asked for.
#[derive(Clone, Debug)]
pub enum Cli {
    /// To be the operator.
    Run(Box<Args>),
    /// To do one thing and end.
    Command(Command),
}

/// What the program does instead of being the operator.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Check that an installation works: make an EventStream in memory, wait until it is ready, and delete it again.
    VerifyInstall {
        /// Where to make it; a namespace that the operator and its connection serve. Default: the one of the pod, or of KUBECONFIG's
        /// context.
        #[arg(long, value_name = "NAME")]
        namespace: Option<String>,
        /// How long to wait, up to 5m.
        #[arg(long, default_value = "60s", value_name = "DURATION", value_parser = up_to_5_minutes)]
        timeout: Duration,
    },
    /// Check that no EventStream or EventConsumer needs the operator to be deleted, before it is uninstalled.
    VerifyUninstall {
        /// Namespaces to look in, separated by commas; * for all.
        #[arg(long, env = "JETWRIGHT_NAMESPACES", default_value = "*", value_name = "NAMES", value_parser = namespaces)]
        namespaces: Namespaces,
    },
}

impl Cli {
    /// Reads the command line; a wrong one, and one that asks for help, ends the program.
    #[must_use]
    pub fn parse() -> Self {
        Self::try_parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    fn try_parse_from(
        line: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        // A command needs none of the operator's flags, which the derived parser would require of it all the same.
        let line: Vec<OsString> = line.into_iter().map(Into::into).collect();
        let mut program = Self::command();
        if let Some((old, new)) = renamed(&line) {
            return Err(program.error(ErrorKind::UnknownArgument, format!("{old} is named {new} now")));
        }
        let matches = program.try_get_matches_from_mut(line)?;
        let cli = if matches.subcommand().is_some() {
            Command::from_arg_matches(&matches).map(Self::Command)
        } else {
            Args::from_arg_matches(&matches).map(|args| Self::Run(Box::new(args)))
        };
        cli.map_err(|error| error.format(&mut program))
    }

    fn command() -> clap::Command {
        // In this order, since each sets what the program is said to be.
        Args::augment_args(Command::augment_subcommands(clap::Command::new(env!("CARGO_PKG_NAME"))))
            .subcommand_required(false)
            .arg_required_else_help(false)
            .args_conflicts_with_subcommands(true)
            .subcommand_negates_reqs(true)
            .disable_help_subcommand(true)
    }
}

impl Args {
    /// The connection to NATS.
    ///
    /// # Errors
    ///
    /// An address, of the pods' too, has a user or a password in it. (The parser would repeat it in its message.)
    pub fn connection(&self) -> Result<connection::Settings, connection::Error> {
        if let Some(url) = &self.workloads.workload_nats_url {
            connection::servers("--workload-nats-url", url)?;
        }
        Ok(connection::Settings {
            servers: connection::servers("--nats-url", &self.nats.nats_url)?,
            credentials: self.nats.nats_credentials_folder.clone(),
        })
    }

    /// How JetStream is sampled.
    #[must_use]
    pub fn sampling(&self) -> Sampling {
        let ControllerArgs { stats_interval, peer_metrics, .. } = &self.controllers;
        Sampling { interval: (*stats_interval).into(), with_peers: *peer_metrics }
    }

    /// How the controllers behave.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let WorkloadArgs { workload_nats_url, workload_otlp_endpoint, pod_security } = self.workloads.clone();
        Settings {
            workloads: WorkloadSettings {
                nats_url: workload_nats_url.unwrap_or_else(|| self.nats.nats_url.clone()),
                otlp_endpoint: workload_otlp_endpoint,
            },
            pod_security,
            resync: self.controllers.resync_interval.into(),
            status_stats_interval: self.controllers.status_stats_interval.into(),
            deletion_timeout: self.controllers.deletion_timeout.into(),
        }
    }
}

/// Flags that had another name in an earlier version; their variables did not change.
const RENAMED: [(&str, &str); 4] = [
    ("--compare-interval", "--jetstream-resync-interval"),
    ("--figures-interval", "--status-stats-interval"),
    ("--lease-namespace", "--leader-elect-namespace"),
    ("--identity", "--leader-elect-identity"),
];

/// The first flag by an old name, and its new one.
fn renamed(line: &[OsString]) -> Option<(&'static str, &'static str)> {
    let flag = |word: &OsString| word.to_str().map(|word| word.split('=').next().unwrap_or(word).to_owned());
    let flags: Vec<_> = line.iter().filter_map(flag).collect();
    RENAMED.into_iter().find(|(old, _)| flags.iter().any(|flag| flag == old))
}

/// Takes addresses of NATS servers separated by commas, and refuses what is none.
fn servers(text: &str) -> Result<String, String> {
    for address in parse_addresses(text) {
        match address {
            // The parser would repeat the address, with its password, in its message: it is refused later.
            Ok(_) | Err(AddressError::HasUser) => {}
            Err(error) => return Err(format!("{error}: write it as nats://host:4222")),
        }
    }
    Ok(text.to_owned())
}

/// Takes a name that can stand before /namespace/name.
fn cluster_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains('/') || text.contains(char::is_whitespace) {
        return Err("a name without slashes and blanks is expected".to_owned());
    }
    Ok(text.to_owned())
}

/// Reads a time of at least a second.
fn at_least_a_second(text: &str) -> Result<Duration, String> {
    let duration: Duration = text.parse().map_err(|error: ParseDurationError| error.to_string())?;
    if duration < Duration::from_secs(1) { Err("it has to be 1s at least".to_owned()) } else { Ok(duration) }
}

/// Reads a time that ends before what a check creates counts as left by an earlier one.
fn up_to_5_minutes(text: &str) -> Result<Duration, String> {
    let duration = at_least_a_second(text)?;
    if duration > Duration::from_secs(300) { Err("it has to be 5m at most".to_owned()) } else { Ok(duration) }
}

/// Reads names separated by commas, or * for all.
fn namespaces(text: &str) -> Result<Namespaces, String> {
    if text.trim() == "*" {
        return Ok(Namespaces::All);
    }
    let names: BTreeSet<_> =
        text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if names.is_empty() {
        return Err("name at least one, or write * for all".to_owned());
    }
    match names.iter().find(|name| name.contains('*')) {
        Some(name) => Err(format!("{name:?} is no namespace: write names, or * alone for all")),
        None => Ok(Namespaces::Only(names.into_iter().collect())),
    }
}

/// Reads names separated by commas, * for all, or nothing for none.
fn namespaces_or_none(text: &str) -> Result<Namespaces, String> {
    if text.trim().is_empty() { Ok(Namespaces::Only(Vec::new())) } else { namespaces(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(flags: &[&str]) -> Args {
        Args::try_parse_from([&["jetwright-operator"], flags].concat()).unwrap()
    }

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    fn requested(line: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["jetwright-operator"], line].concat())
    }

    #[test]
    fn a_command_takes_its_own_flags_and_none_of_the_operators() {
        let Ok(Cli::Command(Command::VerifyInstall { namespace, timeout })) = requested(&["verify-install"])
        else {
            panic!("it was not understood");
        };
        assert_eq!((namespace, timeout), (None, Duration::from_secs(60)));
        assert!(requested(&["verify-install", "--timeout=6m"]).is_err());
        assert!(requested(&["--nats-url=a", "verify-install"]).is_err());
        let Ok(Cli::Command(Command::VerifyUninstall { namespaces })) =
            requested(&["verify-uninstall", "--namespaces=a,b"])
        else {
            panic!("it was not understood");
        };
        assert_eq!(namespaces, Namespaces::Only(vec!["a".into(), "b".into()]));
    }

    #[test]
    fn without_a_command_it_is_the_operator_and_its_flags_are_required() {
        assert!(matches!(requested(&["--nats-url=a"]), Ok(Cli::Run(_))));
        assert!(requested(&[]).unwrap_err().to_string().contains("--nats-url"));
    }

    #[test]
    fn a_flag_by_its_old_name_is_refused_with_the_new_one() {
        for (old, new) in RENAMED {
            let told = requested(&["--nats-url=a", &format!("{old}=1s")]).unwrap_err().to_string();
            assert!(told.contains(&format!("{old} is named {new} now")), "{told}");
        }
    }

    #[test]
    fn addresses_that_lead_nowhere_are_refused() {
        for url in ["", "nats://", "nats://a,,nats://b", "ftp://a", "a:99999"] {
            assert!(servers(url).is_err(), "{url:?}");
        }
        assert!(servers("nats://a:4222, tls://b").is_ok());
        assert!(cluster_name("a/b").is_err() && cluster_name("east-1").is_ok());
    }

    #[test]
    fn addresses_with_passwords_are_refused_for_the_operator_and_for_pods() {
        for flags in [
            &["--nats-url=nats://op:secret@a:4222"][..],
            &["--nats-url=a", "--workload-nats-url=nats://secret@a:4222"],
        ] {
            let told = parsed(flags).connection().unwrap_err().to_string();
            assert!(told.contains("--nats-credentials-folder") && !told.contains("secret"), "{told}");
        }
        assert_eq!(
            parsed(&["--nats-url=nats://a:4222,nats://b:4222"]).settings().workloads.nats_url,
            "nats://a:4222,nats://b:4222"
        );
    }

    #[test]
    fn namespaces_are_names_or_all() {
        assert_eq!(namespaces("*"), Ok(Namespaces::All));
        assert_eq!(namespaces("a, b"), Ok(Namespaces::Only(vec!["a".into(), "b".into()])));
        assert_eq!(namespaces("b,a,b"), Ok(Namespaces::Only(vec!["a".into(), "b".into()])));
        assert!(namespaces("").is_err() && namespaces("shop-*").is_err());
    }

    #[test]
    fn the_operators_connection_may_serve_no_namespace() {
        let flags = ["--nats-url", "a", "--default-connection-namespaces="];
        assert_eq!(parsed(&flags).controllers.default_connection_namespaces, Namespaces::Only(Vec::new()));
        assert!(namespaces_or_none(",").is_err());
    }

    #[test]
    fn times_that_would_make_it_spin_or_give_up_at_once_are_refused() {
        for flag in
            ["--jetstream-resync-interval", "--resync-interval", "--deletion-timeout", "--jetstream-timeout"]
        {
            assert!(
                Args::try_parse_from(["jetwright-operator", "--nats-url", "a", flag, "0s"]).is_err(),
                "{flag}"
            );
        }
    }

    #[test]
    fn pods_are_restricted_unless_more_is_permitted() {
        let level = |flags: &[&str]| parsed(&[&["--nats-url=a"], flags].concat()).settings().pod_security;
        assert_eq!(level(&[]), pod_security::Level::Restricted);
        assert_eq!(level(&["--workload-pod-security=privileged"]), pod_security::Level::Privileged);
        let wrong = ["jetwright-operator", "--nats-url=a", "--workload-pod-security=none"];
        assert!(Args::try_parse_from(wrong).unwrap_err().to_string().contains("baseline"));
    }

    #[test]
    fn leader_election_is_on_unless_it_is_switched_off() {
        assert!(parsed(&["--nats-url", "a"]).leader.leader_elect);
        assert!(parsed(&["--nats-url", "a", "--leader-elect"]).leader.leader_elect);
        assert!(!parsed(&["--nats-url", "a", "--leader-elect=false"]).leader.leader_elect);
    }
}
