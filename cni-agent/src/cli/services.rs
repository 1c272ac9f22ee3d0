//! `millrace services` and `millrace backends`.

mod tables;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use cni_ebpf::abi::{self, Dialled, Flow, FlowKey};
use serde::Serialize;

use super::{Context, Failure, Outcome, ask, print_json};
use crate::{
    kernel::{Pins, maps},
    observe::{
        admin::{Request, Response},
        counters,
    },
    services::{Back, Description},
};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// NAMESPACE/NAME, or NAME in any namespace; all Services if it is left out
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// How much there is for each number of a Service, or of a backend.
type Count = BTreeMap<u32, u64>;

/// Those whose packets are translated, and sockets that dialled: no packet of those is, so that no connection bears the
/// Service's number.
#[derive(Default)]
struct Connections {
    of_service: Count,
    of_backend: Count,
    sockets_of_service: Count,
    sockets_of_backend: Count,
    /// All that have begun, of both kinds.
    opened: Count,
}

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    service: Description,
    /// To all of its frontends.
    connections: u64,
    sockets: u64,
    opened: u64,
}

#[derive(Serialize)]
struct BackRow {
    #[serde(flatten)]
    backend: Back,
    services: Vec<String>,
    connections: u64,
    sockets: u64,
}

pub(crate) fn run(context: &Context, options: &Options) -> Outcome {
    let services = services(context, options)?;
    let connections = connections(&context.pins())?;
    if context.json {
        let rows = services.into_iter().map(|service| Row {
            connections: of_service(&service, &connections.of_service),
            sockets: of_service(&service, &connections.sockets_of_service),
            opened: of_service(&service, &connections.opened),
            service,
        });
        print_json(&rows.collect::<Vec<_>>())?;
    } else {
        let text = tables::services(&services, options.name.is_some(), &connections);
        io::stdout().write_all(text.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn run_backends(context: &Context, options: &Options) -> Outcome {
    let services = services(context, options)?;
    let rows = back_rows(&services, &connections(&context.pins())?);
    if context.json {
        print_json(&rows)?;
    } else {
        io::stdout().write_all(tables::backends(&rows).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// By their numbers, each with those of these whose it is.
fn back_rows(services: &[Description], connections: &Connections) -> Vec<BackRow> {
    let mut rows: BTreeMap<u32, BackRow> = BTreeMap::new();
    for service in services {
        for backend in &service.backends {
            rows.entry(backend.number)
                .or_insert_with(|| BackRow {
                    backend: *backend,
                    services: Vec::new(),
                    connections: of(&connections.of_backend, backend.number),
                    sockets: of(&connections.sockets_of_backend, backend.number),
                })
                .services
                .push(service.name.to_string());
        }
    }
    rows.into_values().collect()
}

/// Those that are asked for. It is a failure if one is named, and none by that name is served.
fn services(context: &Context, options: &Options) -> Result<Vec<Description>, Failure> {
    let wanted = options.name.as_deref().unwrap_or_default();
    let services = ask_for(context, wanted)?;
    if wanted.is_empty() || services.iter().any(|service| service.unserved.is_none()) {
        return Ok(services);
    }
    let reasons: Vec<String> = services.iter().filter_map(tables::why_unserved).collect();
    if reasons.is_empty() {
        return Err(format!(
            "this node's agent knows of no Service {wanted}; `millrace services` shows those that it serves, `millrace status` \
             whether it hears of all"
        )
        .into());
    }
    Err(reasons.join("\n").into())
}

/// Names are the agent's knowledge; `millrace dump services` shows the kernel's part without one.
fn ask_for(context: &Context, name: &str) -> Result<Vec<Description>, Failure> {
    let mut conversation = ask::Conversation::begin(&context.config.paths.admin_socket)?;
    conversation.ask(Request::Services {
        name: name.to_owned(),
    })?;
    let mut services: Vec<Description> = Vec::new();
    loop {
        match conversation.answer()? {
            // A large one comes in parts.
            Some(Response::Service { service }) => match services.last_mut() {
                Some(last) if last.name == service.name => last.join(*service),
                _ => services.push(*service),
            },
            Some(Response::End) => return Ok(services),
            Some(_) => {
                return Err("the agent answered something else; use the command line of its release".into());
            }
            None => return Err("the agent ended the connection; see its log".into()),
        }
    }
}

fn connections(pins: &Pins) -> Result<Connections, Failure> {
    let mut connections = Connections {
        opened: counters::opened(pins)?,
        ..Connections::default()
    };
    for map in ["conntrack", "conntrack_new"] {
        maps::open_existing(pins, map)?.for_each(|key, value| {
            let flow = abi::from_bytes::<FlowKey>(key).and_then(|_| abi::from_bytes::<Flow>(value));
            if let Some(flow) = flow.filter(|flow| flow.service != 0) {
                *connections.of_service.entry(flow.service).or_default() += 1;
                *connections.of_backend.entry(flow.backend).or_default() += 1;
            }
        })?;
    }
    maps::open_existing(pins, "sockets")?.for_each(|_, value| {
        if let Some(dialled) = abi::from_bytes::<Dialled>(value) {
            *connections.sockets_of_service.entry(dialled.service).or_default() += 1;
            *connections.sockets_of_backend.entry(dialled.backend).or_default() += 1;
        }
    })?;
    Ok(connections)
}

fn of(count: &Count, number: u32) -> u64 {
    count.get(&number).copied().unwrap_or(0)
}

fn of_service(service: &Description, count: &Count) -> u64 {
    let mut numbers: Vec<u32> = service.frontends.iter().map(|front| front.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.iter().map(|number| of(count, *number)).sum()
}
