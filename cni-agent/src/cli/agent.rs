//! `millrace agent`.

use std::{process::ExitCode, sync::Arc, time::Duration};

use clap::{Args, ValueEnum};
use tokio::sync::mpsc;

use super::{AgentSettings, Context, Failure, Outcome};
use crate::{
    agent::Agent,
    capabilities,
    config::{Config, LogConfig, LogFormat, Overrides, Proxy},
    conflist::Conflist,
    kernel::{
        Linux,
        devices::Watch,
        host::{Check, State, kube_proxy},
        links::{self, Attachment},
    },
    memory,
    model::{Event, Source},
    observe::{admin, health, http, ports::Ports, ring::Ring, tables::Cache},
    source::inspect,
};

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    settings: AgentSettings,
    /// How programs are attached; `auto` finds out what the kernel can do
    #[arg(long, default_value = "auto", env = "MILLRACE_ATTACH")]
    attach: AttachArgument,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AttachArgument {
    Auto,
    Tcx,
    Clsact,
}

impl Options {
    pub(crate) fn overrides(&self) -> Overrides {
        self.settings.overrides()
    }

    fn attachment(&self) -> Option<Attachment> {
        match self.attach {
            AttachArgument::Auto => None,
            AttachArgument::Tcx => Some(Attachment::Tcx),
            AttachArgument::Clsact => Some(Attachment::Clsact),
        }
    }
}

pub(crate) fn run(context: Context, options: &Options) -> Outcome {
    let problems = context.config.check();
    if !problems.is_empty() {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return Err(format!("the configuration is not good:\n  {}", lines.join("\n  ")).into());
    }
    log(&context.config.log)?;
    // Before there are threads: capabilities belong to each.
    capabilities::reduce()?;
    let kernel = Linux::open(&context.config)?.with_attachment(options.attachment());
    memory::share_the_heap();
    // One thread for the owner of the state, and one for all who listen: more would only wake each other, for each event.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let result = runtime.block_on(serve(context.config, kernel));
    // What still reads a map or waits on a socket is not waited for.
    runtime.shutdown_timeout(Duration::from_millis(200));
    result.map(|()| ExitCode::SUCCESS)
}

fn log(config: &LogConfig) -> Result<(), Failure> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.filter)
        .map_err(|error| format!("log.filter: {error}; write it like `info` or `info,cni_agent=debug`"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => {
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(terminal).try_init()
        }
    }
}

async fn serve(config: Config, kernel: Linux) -> Result<(), Failure> {
    let pins = kernel.pins().clone();
    let listener = http::bind(config.http).await?;
    let admin_listener = admin::bind(&config.paths.admin_socket).map_err(|error| {
        let path = config.paths.admin_socket.display();
        format!("listen on {path}: {error}; make its folder writable for root, or set paths.adminSocket")
    })?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = config.node_name,
        "the agent begins"
    );
    let conflist = Conflist::new(&config);
    let serves = config.services.proxy == Proxy::Millrace;
    let health_address = config.services.health.filter(|_| serves);
    let metrics_address = config.services.metrics.filter(|_| serves);
    let other_proxy = serves.then(|| config.clone());
    let (agent, handle) = Agent::new(config, kernel)?;
    let events = Arc::new(Ring::new(pins.clone()));
    let pages = http::Pages {
        status: handle.status.clone(),
        pins: pins.clone(),
        fills: Arc::new(Cache::default()),
        latency: handle.latency,
        services: handle.inquiries.clone(),
    };
    let published = handle.status.clone();
    let desk = admin::Desk {
        status: handle.status,
        events: events.clone(),
        services: handle.inquiries,
    };
    let ports = Ports::default();
    tokio::spawn(ports.clone().tell(handle.events.clone()));
    if let Some(address) = health_address {
        tokio::spawn(health::serve(handle.health.clone(), ports.clone()));
        tokio::spawn(health::serve_proxy(address, handle.health, ports.clone()));
    }
    if let Some(address) = metrics_address {
        tokio::spawn(http::serve_as_proxy(address, pages.clone(), ports));
    }
    tokio::spawn(http::serve(listener, pages));
    tokio::spawn(admin::serve(admin_listener, desk));
    tokio::spawn(async move { events.read().await });
    tokio::spawn(watch_links(handle.events.clone()));
    tokio::spawn(conflist.clone().keep(published, handle.events.clone()));
    if let Some(config) = other_proxy {
        tokio::spawn(watch_kube_proxy(config, handle.events.clone()));
    }
    tokio::spawn(watch_devices(handle.events));
    agent.run(ended()).await?;
    conflist.leave();
    tracing::info!("the agent ends; pods keep their network");
    Ok(())
}

/// Tells the agent of the host's devices, for ever.
async fn watch_devices(events: mpsc::Sender<Event>) {
    let mut synced = false;
    loop {
        if let Err(error) = watch_once(&events, &mut synced).await {
            tracing::warn!(%error, "the host's devices cannot be watched; trying again");
            let problem = format!("the host's devices cannot be watched: {error}");
            if events
                .send(Event::Problems(Source::Devices, vec![problem]))
                .await
                .is_err()
            {
                return;
            }
        }
        if events.is_closed() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn watch_once(events: &mpsc::Sender<Event>, synced: &mut bool) -> std::io::Result<()> {
    let mut watch = Watch::begin()?;
    let mut first = true;
    loop {
        let devices = watch.next().await?;
        let mut said = events.send(Event::Devices(devices)).await.is_ok();
        if first {
            first = false;
            said &= events
                .send(Event::Problems(Source::Devices, Vec::new()))
                .await
                .is_ok();
        }
        if !*synced {
            *synced = true;
            said &= events.send(Event::Synced(Source::Devices)).await.is_ok();
        }
        if !said {
            return Ok(());
        }
    }
}

/// Tells the agent when something of its own may be gone. The audit every minute makes up for what is missed here.
async fn watch_links(events: mpsc::Sender<Event>) {
    loop {
        let mut watch = match links::Watch::begin() {
            Ok(watch) => watch,
            Err(error) => {
                return tracing::warn!(%error, "filters that others remove are noticed by the audit only");
            }
        };
        while let Ok(()) = watch.next().await {
            if events.send(Event::Disturbed).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Tells the agent of a kube-proxy beside it, or of what one has left.
async fn watch_kube_proxy(config: Config, events: mpsc::Sender<Event>) {
    const LOOK: Duration = Duration::from_secs(60);
    let config = Arc::new(config);
    let look = || {
        let config = Arc::clone(&config);
        async move {
            let check = tokio::task::spawn_blocking(move || kube_proxy::check(&config)).await;
            let trouble = check.ok().flatten().filter(|check| check.state != State::Ok);
            trouble.iter().map(Check::problem).collect()
        }
    };
    inspect(Source::KubeProxy, LOOK, events, look).await;
}

async fn ended() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without handlers a signal ends the process, which is as good: nothing has to be put away.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
