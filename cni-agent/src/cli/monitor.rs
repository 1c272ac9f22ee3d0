//! `millrace monitor`.

use std::{
    io::{self, Write},
    net::IpAddr,
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use cni_ebpf::abi::Reason;

use super::{Context, Outcome, ask::Conversation};
use crate::observe::{
    admin::{Request, Response},
    event::{Filter, protocol_name, protocol_number},
};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only events of this kind; may be given more than once
    #[arg(long)]
    kind: Vec<Kind>,
    /// Only drops for this reason, as `millrace drops` names it
    #[arg(long, value_parser = reason)]
    reason: Vec<String>,
    /// Only events about this endpoint
    #[arg(long, value_name = "ID")]
    endpoint: Option<u32>,
    /// Only packets from or to this address
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<IpAddr>,
    /// Only packets from or to this port
    #[arg(long)]
    port: Option<u16>,
    /// Only this protocol: tcp, udp, sctp, icmp, icmpv6 or a number
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol_number)]
    proto: Option<u8>,
    /// End after so many events
    #[arg(long, value_name = "NUMBER")]
    count: Option<u64>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Drop,
    New,
    Close,
    Flags,
}

fn reason(text: &str) -> Result<String, String> {
    if Reason::ALL.iter().any(|reason| reason.name() == text) {
        return Ok(text.to_owned());
    }
    let names: Vec<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    Err(format!("no such reason; use one of {}", names.join(", ")))
}

impl Options {
    fn filter(&self) -> Filter {
        let kind = |kind: &Kind| kind.to_possible_value().map(|value| value.get_name().to_owned());
        Filter {
            kinds: self.kind.iter().filter_map(kind).collect(),
            reasons: self.reason.clone(),
            endpoint: self.endpoint,
            address: self.ip,
            port: self.port,
            protocol: self.proto.map(protocol_name),
        }
    }
}

pub(crate) fn run(context: &Context, options: Options) -> Outcome {
    let mut conversation = Conversation::begin(&context.config.paths.admin_socket)?;
    conversation.ask(Request::Monitor {
        filter: options.filter(),
    })?;
    let mut seen = 0;
    while options.count.is_none_or(|count| seen < count) {
        let mut out = io::stdout().lock();
        match conversation.answer()? {
            Some(Response::Event { event }) => {
                seen += 1;
                if context.json {
                    serde_json::to_writer(&mut out, &event)?;
                    writeln!(out)?;
                } else {
                    writeln!(out, "{event}")?;
                }
            }
            Some(Response::Lost { events }) if context.json => {
                writeln!(out, "{}", serde_json::json!({"kind": "lost", "events": events}))?;
            }
            Some(Response::Lost { events }) => {
                writeln!(
                    out,
                    "... {events} events came faster than they were read; use filters"
                )?;
            }
            Some(_) => {}
            None => return Err("the agent ended; start this again when it is back".into()),
        }
    }
    Ok(ExitCode::SUCCESS)
}
