//! The command line.
//!
//! What only needs the kernel's maps reads the pins and works with the agent dead; what needs the agent asks its admin
//! socket. Everything prints a table for people and, with `--json`, one JSON value (events: one a line).

mod agent;
mod ask;
mod conntrack;
mod crds;
mod drops;
mod dump;
mod endpoints;
mod install;
mod kube_proxy;
mod monitor;
mod services;
mod status;
mod table;
mod uninstall;

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use ipnetwork::IpNetwork;

use crate::{
    config::{CONFIG_FILE, Config, Families, KubernetesMode, LogFormat, Overrides, Routing},
    kernel::Pins,
};

/// The eBPF network of a Kubernetes node: its agent, and what to ask it
///
/// Commands that read connections, counters and maps work on what is pinned in the kernel, also while no agent runs.
/// Every command takes its settings from the agent's configuration file, so that both look at the same places.
#[derive(Debug, Parser)]
#[command(name = "millrace", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Settings {
    /// The configuration file; may be absent if it is not named
    #[arg(long, global = true, value_name = "FILE", env = "MILLRACE_CONFIG")]
    config: Option<PathBuf>,
    /// Where maps and links are pinned
    #[arg(long, global = true, value_name = "FOLDER", env = "MILLRACE_BPFFS")]
    bpffs: Option<PathBuf>,
    /// The root of the node's cgroups
    #[arg(long, global = true, value_name = "FOLDER", env = "MILLRACE_CGROUP")]
    cgroup: Option<PathBuf>,
    /// Where kernel settings are written
    #[arg(long, global = true, value_name = "FOLDER", env = "MILLRACE_PROC_SYS")]
    proc_sys: Option<PathBuf>,
    /// The kernel's switch for quick grace periods
    #[arg(long, global = true, value_name = "FILE", env = "MILLRACE_RCU_EXPEDITED")]
    rcu_expedited: Option<PathBuf>,
    /// The socket on which a running agent answers
    #[arg(long, global = true, value_name = "PATH", env = "MILLRACE_ADMIN_SOCKET")]
    admin_socket: Option<PathBuf>,
    /// Where state that outlives a reboot is kept
    #[arg(long, global = true, value_name = "FOLDER", env = "MILLRACE_STATE")]
    state: Option<PathBuf>,
    /// The socket that the CNI plugin speaks to
    #[arg(long, global = true, value_name = "PATH", env = "MILLRACE_AGENT_SOCKET")]
    agent_socket: Option<PathBuf>,
    /// Print JSON instead of tables
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent of this node; this is what the DaemonSet does
    Agent(Box<agent::Options>),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// What works, what does not, and what to do about it
    ///
    /// Exit status: 0 everything works; 1 it works, with warnings; 2 something fails without which pods have no network, or
    /// no agent runs.
    Status,
    /// The pods of this node with their addresses
    Endpoints,
    /// Services: where they answer, by which endpoints, and how many connections there are
    ///
    /// CONNECTIONS are those whose packets are translated. SOCKETS are those that `services.socketLb` connected to an
    /// endpoint without any translation, also some that have ended: the kernel keeps the latest.
    ///
    /// With a name its endpoints follow as `backends` shows them, then who may use its load balancer's addresses, and
    /// what is answered on its health check node port. The exit status is 1 if no Service of that name is served here.
    Services(services::Options),
    /// The endpoints of Services that answer
    ///
    /// CONNECTIONS and SOCKETS are counted as for `services`.
    Backends(services::Options),
    /// Connections and their translations
    #[command(subcommand)]
    Conntrack(conntrack::Command),
    /// Packets dropped, by reason and direction
    Drops(drops::Options),
    /// The entries of a map, field by field
    Dump(dump::Options),
    /// Events as they happen: drops, new and closed connections
    Monitor(monitor::Options),
    /// Put the CNI plugin where the container runtime looks for it
    ///
    /// The plugin comes from beside this program. It is copied aside, tried, and renamed, so that pods which start
    /// meanwhile have the old one or the new one. Nothing happens if it is there already.
    Install(install::Options),
    /// What a kube-proxy has left on this node
    #[command(subcommand)]
    KubeProxy(kube_proxy::Command),
    /// Remove everything of Millrace from this node
    Uninstall(uninstall::Options),
    /// The definitions of the kinds in group millrace.dev, as YAML for `kubectl apply -f -`
    Crds,
    /// Completions for a shell, on standard output
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say everything that is wrong with it; exit status 1 if something is
    Check,
    /// Print all settings with their values
    Show,
}

/// Why a command failed, in words for people.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What a command ends with.
pub type Outcome = Result<ExitCode, Failure>;

/// Settings that several commands share.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) json: bool,
}

impl Context {
    pub(crate) fn pins(&self) -> Pins {
        Pins::new(&self.config.paths.bpffs)
    }
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            // A reader that has seen enough (`| head`) is no failure.
            if error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
            {
                return ExitCode::SUCCESS;
            }
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    fn run(self) -> Outcome {
        if let Command::Completions { shell } = self.command {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Self::command(), "millrace", &mut script);
            io::stdout().write_all(&script)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut overrides = match &self.command {
            Command::Agent(options) => options.overrides(),
            _ => Overrides::default(),
        };
        overrides.bpffs = self.settings.bpffs;
        overrides.cgroup = self.settings.cgroup;
        overrides.proc_sys = self.settings.proc_sys;
        overrides.rcu_expedited = self.settings.rcu_expedited;
        overrides.admin_socket = self.settings.admin_socket;
        overrides.state = self.settings.state;
        overrides.agent_socket = self.settings.agent_socket;
        let path = self.settings.config.clone().unwrap_or_else(|| CONFIG_FILE.into());
        let config = Config::load(&path, self.settings.config.is_some(), overrides)?;
        let context = Context {
            config,
            json: self.settings.json,
        };
        match self.command {
            Command::Install(options) => install::run(&context, &options),
            Command::Agent(options) => agent::run(context, &options),
            Command::Config(command) => check_config(&context, &command),
            Command::Status => status::run(&context),
            Command::Endpoints => endpoints::run(&context),
            Command::Services(options) => services::run(&context, &options),
            Command::Backends(options) => services::run_backends(&context, &options),
            Command::Conntrack(command) => conntrack::run(&context, command),
            Command::Drops(options) => drops::run(&context, &options),
            Command::Dump(options) => dump::run(&context, &options),
            Command::Monitor(options) => monitor::run(&context, options),
            Command::KubeProxy(command) => kube_proxy::run(&context, &command),
            Command::Uninstall(options) => uninstall::run(&context, &options),
            Command::Crds => crds::run(),
            Command::Completions { .. } => Ok(ExitCode::SUCCESS),
        }
    }
}

fn check_config(context: &Context, command: &ConfigCommand) -> Outcome {
    if matches!(command, ConfigCommand::Show) {
        print_json(&context.config)?;
        return Ok(ExitCode::SUCCESS);
    }
    let problems = context.config.check();
    if context.json {
        let list: Vec<_> = problems
            .iter()
            .map(|problem| serde_json::json!({"key": problem.key, "text": problem.text, "remedy": problem.remedy}))
            .collect();
        print_json(&list)?;
    } else if problems.is_empty() {
        writeln!(io::stdout(), "the configuration is good")?;
    } else {
        problems
            .iter()
            .try_for_each(|problem| writeln!(io::stdout(), "{problem}"))?;
    }
    Ok(if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Prints a value as JSON.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    Ok(())
}

/// Address families on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum FamiliesArgument {
    Dual,
    V4,
    V6,
}

impl From<FamiliesArgument> for Families {
    fn from(argument: FamiliesArgument) -> Self {
        match argument {
            FamiliesArgument::Dual => Self::Dual,
            FamiliesArgument::V4 => Self::V4,
            FamiliesArgument::V6 => Self::V6,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RoutingArgument {
    Direct,
    Vxlan,
}

impl From<RoutingArgument> for Routing {
    fn from(argument: RoutingArgument) -> Self {
        match argument {
            RoutingArgument::Direct => Self::Direct,
            RoutingArgument::Vxlan => Self::Vxlan,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KubernetesArgument {
    Auto,
    Enabled,
    Disabled,
}

impl From<KubernetesArgument> for KubernetesMode {
    fn from(argument: KubernetesArgument) -> Self {
        match argument {
            KubernetesArgument::Auto => Self::Auto,
            KubernetesArgument::Enabled => Self::Enabled,
            KubernetesArgument::Disabled => Self::Disabled,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormatArgument {
    Text,
    Json,
}

impl From<LogFormatArgument> for LogFormat {
    fn from(argument: LogFormatArgument) -> Self {
        match argument {
            LogFormatArgument::Text => Self::Text,
            LogFormatArgument::Json => Self::Json,
        }
    }
}

/// What overrides the file for the agent.
#[derive(Debug, Args)]
struct AgentSettings {
    /// The name of this node's Node object
    #[arg(long, value_name = "NAME", env = "MILLRACE_NODE_NAME")]
    node_name: Option<String>,
    /// The address families that pods have
    #[arg(long, env = "MILLRACE_FAMILIES")]
    families: Option<FamiliesArgument>,
    /// How pods of other nodes are reached
    #[arg(long, env = "MILLRACE_ROUTING")]
    routing: Option<RoutingArgument>,
    /// Ranges of this node's pod addresses
    #[arg(
        long = "pod-cidr",
        value_name = "CIDR",
        env = "MILLRACE_POD_CIDRS",
        value_delimiter = ','
    )]
    pod_cidrs: Vec<IpNetwork>,
    /// The node's devices, instead of finding them
    #[arg(
        long = "device",
        value_name = "NAME",
        env = "MILLRACE_DEVICES",
        value_delimiter = ','
    )]
    devices: Vec<String>,
    /// The MTU of pods; 0: worked out
    #[arg(long, env = "MILLRACE_MTU")]
    mtu: Option<u32>,
    /// Whether what pods send to the outside gets the node's address
    #[arg(long, value_name = "BOOL", env = "MILLRACE_MASQUERADE")]
    masquerade: Option<bool>,
    /// Whether the cluster's objects come from an API server
    #[arg(long, value_name = "MODE", env = "MILLRACE_KUBERNETES")]
    kubernetes: Option<KubernetesArgument>,
    /// A kubeconfig with servers and credentials
    #[arg(long, value_name = "FILE", env = "MILLRACE_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// API servers to try, in this order
    #[arg(
        long = "api-server",
        value_name = "URL",
        env = "MILLRACE_API_SERVERS",
        value_delimiter = ','
    )]
    api_servers: Vec<String>,
    /// The folder of manifests
    #[arg(long, value_name = "FOLDER", env = "MILLRACE_MANIFESTS")]
    manifests: Option<PathBuf>,
    /// Where health, readiness and metrics are served
    #[arg(long, value_name = "ADDRESS:PORT", env = "MILLRACE_HTTP")]
    http: Option<SocketAddr>,
    /// The form of the log on standard error
    #[arg(long, env = "MILLRACE_LOG_FORMAT")]
    log_format: Option<LogFormatArgument>,
    /// What is logged: `info`, `debug`, `info,cni_agent::kernel=trace`
    #[arg(long, value_name = "FILTER", env = "MILLRACE_LOG")]
    log: Option<String>,
}

impl AgentSettings {
    fn overrides(&self) -> Overrides {
        Overrides {
            node_name: self.node_name.clone(),
            families: self.families.map(Into::into),
            routing: self.routing.map(Into::into),
            pod_cidrs: self.pod_cidrs.clone(),
            devices: self.devices.clone(),
            mtu: self.mtu,
            masquerade: self.masquerade,
            kubernetes: self.kubernetes.map(Into::into),
            kubeconfig: self.kubeconfig.clone(),
            api_servers: self.api_servers.clone(),
            manifests: self.manifests.clone(),
            http: self.http,
            log_format: self.log_format.map(Into::into),
            log_filter: self.log.clone(),
            ..Overrides::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_override_the_file() {
        let cli = Cli::parse_from([
            "millrace",
            "agent",
            "--families",
            "v4",
            "--pod-cidr",
            "10.1.0.0/24,10.2.0.0/24",
        ]);
        let Command::Agent(options) = cli.command else {
            panic!("not the agent")
        };
        let overrides = options.overrides();
        assert_eq!(overrides.families, Some(Families::V4));
        assert_eq!(overrides.pod_cidrs.len(), 2);
    }
}
