//! `millrace endpoints`.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::IpAddr,
    process::ExitCode,
};

use cni_ebpf::abi::{Addr, Endpoint, endpoint_flags};
use serde::Serialize;

use super::{Context, Outcome, ask, print_json, table};
use crate::kernel::maps;

#[derive(Serialize)]
struct Row {
    id: u32,
    /// Namespace and name, where an agent runs that knows them.
    pod: Option<String>,
    addresses: Vec<IpAddr>,
    device: String,
    mac: String,
    mtu: u32,
    via_stack: bool,
}

pub(crate) fn run(context: &Context) -> Outcome {
    let pins = context.pins();
    let endpoints = maps::read::<u32, Endpoint>(&maps::open_existing(&pins, "endpoints")?)?;
    let addresses = maps::read::<Addr, u32>(&maps::open_existing(&pins, "addresses")?)?;
    let there = endpoints.values().filter(|endpoint| endpoint.id != 0);
    let mut rows: BTreeMap<u32, Row> = there.map(|endpoint| (endpoint.id, row(endpoint))).collect();
    for (address, id) in addresses {
        if let Some(row) = rows.get_mut(&id) {
            row.addresses.push(address.into());
        }
    }
    // Names are the agent's knowledge; without one the kernel's part is shown.
    if let Ok(status) = ask::status(&context.config.paths.admin_socket) {
        for endpoint in &status.endpoints {
            if let Some(row) = rows.get_mut(&endpoint.id) {
                row.pod = endpoint.pod.as_ref().map(ToString::to_string);
            }
        }
    }
    let rows: Vec<Row> = rows.into_values().collect();
    if context.json {
        print_json(&rows)?;
    } else {
        let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
        let header = ["ID", "POD", "ADDRESSES", "DEVICE", "MAC", "MTU", "VIA"];
        io::stdout().write_all(table::text(&header, &cells).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(endpoint: &Endpoint) -> Row {
    let device = nix::net::if_::if_indextoname(endpoint.ifindex);
    Row {
        id: endpoint.id,
        pod: None,
        addresses: Vec::new(),
        device: device.map_or_else(
            |_| format!("{} (gone)", endpoint.ifindex),
            |name| name.to_string_lossy().into_owned(),
        ),
        mac: cni_plugin::Mac(endpoint.mac).to_string(),
        mtu: endpoint.mtu,
        via_stack: endpoint.flags & endpoint_flags::VIA_STACK != 0,
    }
}

fn cells(row: &Row) -> Vec<String> {
    let addresses: Vec<String> = row.addresses.iter().map(ToString::to_string).collect();
    vec![
        row.id.to_string(),
        row.pod.clone().unwrap_or_else(|| "-".to_owned()),
        addresses.join(","),
        row.device.clone(),
        row.mac.clone(),
        row.mtu.to_string(),
        if row.via_stack { "stack" } else { "peer" }.to_owned(),
    ]
}
