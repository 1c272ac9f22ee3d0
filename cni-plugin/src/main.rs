//! `millrace-cni`, the CNI plugin: thin, quick and without a runtime of its own.
//!
//! It turns `CNI_*` variables and a configuration on stdin into a veth pair and a few messages to the agent, which
//! decides everything: addresses, names, MTU, policy. See [`cni_plugin::rpc`] for the conversation and
//! [`cni_plugin::config`] for the configuration.
//!
//! # The order of an ADD
//!
//! | step | where | undone by |
//! |---|---|---|
//! | refuse what can be refused, open the namespace, connect | | |
//! | ADD of a delegated IPAM plugin | | its DEL |
//! | `allocate` | agent | `release`, or the end of the connection |
//! | veth pair, pod's end born in the pod, both Ethernet addresses given | kernel | its removal by name |
//! | addresses, gateways as permanent neighbours, routes; pod's end up | pod | the pair's removal |
//! | `program`: maps and programs, policy included | agent | `release` |
//! | host's end up, pod as permanent neighbour, routes to the pod | host | the pair's removal |
//! | result | stdout | |
//! | `finish` | agent | DEL: until then, the end of the connection is `release` |
//!
//! The pod's end comes up before the host's because the kernel takes no route through a link that is down. Nothing
//! passes a pair whose other end is down, so no packet precedes the policy.
//!
//! What a killed ADD has left is found by its file in [`cni_plugin::underway`], which is there from before the allocation
//! until `finish`: an agent that begins takes the endpoint back, and the next ADD for the same container removes the pair
//! and starts anew. Any other interface that bears the wanted name is left alone and fails the ADD.

mod cmd;
mod fault;
mod ipam;
mod kernel;
mod log;

use cmd::{Answer, Failure};
use cni_plugin::{CniError, SpecVersion, code, environment::Environment};
use serde_json::{Value, json};
use std::{
    io::{self, IsTerminal, Read, Write},
    panic,
    process::ExitCode,
};

/// More than any runtime sends; a stream without an end is refused instead of filling the memory.
const MAX_STDIN: u64 = 16 << 20;

fn main() -> ExitCode {
    let argument = std::env::args_os().nth(1);
    match argument.as_ref().and_then(|argument| argument.to_str()) {
        Some("--version" | "-V") => explain(&mut io::stdout(), &one_line(), ExitCode::SUCCESS),
        Some("--help" | "-h") => explain(&mut io::stdout(), &about(), ExitCode::SUCCESS),
        _ if !is_called_by_a_runtime() => explain(&mut io::stderr(), &about(), ExitCode::from(2)),
        _ => serve(),
    }
}

fn is_called_by_a_runtime() -> bool {
    std::env::vars_os().any(|(name, _)| name.as_encoded_bytes().starts_with(b"CNI_"))
}

fn explain(stream: &mut impl Write, text: &str, code: ExitCode) -> ExitCode {
    // Whoever closed the stream does not want to know.
    let _ = writeln!(stream, "{text}");
    code
}

fn one_line() -> String {
    format!("millrace-cni {}", env!("CARGO_PKG_VERSION"))
}

fn about() -> String {
    let versions = SpecVersion::ALL.map(SpecVersion::as_str).join(", ");
    format!(
        "{}: the Millrace CNI plugin, for CNI {versions}\n\n\
         A container runtime runs it, with CNI_COMMAND (ADD, CHECK, DEL, GC, STATUS or VERSION) and other CNI_*\n\
         variables in the environment and a network configuration on stdin. It needs the agent `millrace` on this\n\
         node. A configuration list for /etc/cni/net.d/05-millrace.conflist:\n\n  \
         {{\"cniVersion\": \"1.1.0\", \"name\": \"millrace\", \"plugins\": [{{\"type\": \"millrace-cni\"}}]}}\n\n\
         To try it by hand use cnitool: CNI_PATH=/opt/cni/bin cnitool add millrace /run/netns/NAME",
        one_line()
    )
}

/// Answers a runtime: one JSON object on stdout, and a failure in the exit status.
fn serve() -> ExitCode {
    // A panic is a defect, but the runtime shall have its JSON even so.
    let outcome = panic::catch_unwind(|| {
        let environment = Environment::read(|name| std::env::var_os(name))?;
        cmd::run(&environment, &read_stdin()?)
    });
    let outcome = outcome.unwrap_or_else(|_| {
        Err(CniError::new(code::INTERNAL, "millrace-cni failed internally")
            .with_details("see its stderr")
            .into())
    });
    let succeeded = match outcome {
        Ok(Answer::Nothing) => true,
        Ok(Answer::Known(answer)) => print(&answer),
        Ok(Answer::Added(added)) => print(&added.result) && added.finish(),
        Err(failure) => {
            print(&render(&failure));
            false
        }
    };
    if succeeded {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// False if nobody reads it.
fn print(answer: &Value) -> bool {
    writeln!(io::stdout(), "{answer:#}").is_ok()
}

fn render(failure: &Failure) -> Value {
    let mut value = json!({
        "cniVersion": failure.version.as_str(),
        "code": failure.error.code,
        "msg": failure.error.msg,
    });
    if !failure.error.details.is_empty() {
        value["details"] = json!(failure.error.details);
    }
    value
}

fn read_stdin() -> Result<Vec<u8>, CniError> {
    let mut bytes = Vec::new();
    // Somebody who tries CNI_COMMAND=VERSION at a prompt has nothing to type.
    if io::stdin().is_terminal() {
        return Ok(bytes);
    }
    let read = io::stdin().lock().take(MAX_STDIN + 1).read_to_end(&mut bytes);
    read.map_err(|error| {
        CniError::new(code::IO, "cannot read the network configuration").with_details(error)
    })?;
    if bytes.len() as u64 > MAX_STDIN {
        let limit = format!("it is longer than {MAX_STDIN} bytes");
        return Err(CniError::new(code::DECODE, "the network configuration is too long").with_details(limit));
    }
    Ok(bytes)
}
