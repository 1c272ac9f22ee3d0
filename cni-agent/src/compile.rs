//! From what is known to what should be in the kernel: pure functions, no clock, no I/O.

mod address;
mod device;
mod endpoint;
mod host;
mod pod;
mod route;
pub mod service;
mod topology;

use cni_ebpf::abi::socket_lb;

use crate::{
    config::Config,
    desired::{Desired, Veth},
    model::Endpoint,
    state::State,
};

pub use pod::{Part, changed_pods};
pub use topology::Topology;

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compiled {
    pub desired: Desired,
    /// False while something that everything hangs on is still missing, like the tunnel device: what is there may be
    /// applied, and nothing may be concluded from what is not.
    pub complete: bool,
    pub problems: Vec<String>,
}

/// The whole of what the kernel should hold.
pub fn compile(config: &Config, state: &State) -> Compiled {
    let topology = Topology::new(config, state);
    let mut problems = topology.problems();
    let mut desired = Desired::default();
    host::sysctls(&topology, &mut desired);
    desired.vxlan = host::vxlan(&topology);
    for endpoint in state.endpoints.values() {
        desired.veths.insert(endpoint.host_ifname(), Veth::Reserved);
    }
    let Some(constants) = host::constants(&topology) else {
        return Compiled {
            desired,
            complete: false,
            problems,
        };
    };
    desired.config = Some(constants);
    desired.sockets = constants.socket_lb != socket_lb::OFF;
    host::settings(&topology, &mut desired);
    device::devices(&topology, &mut desired);
    route::routes(&topology, &mut desired, &mut problems);
    pod::routes(&topology, state, &mut desired);
    address::peers(&topology, state, &mut desired);
    problems.extend(address::unmanaged(&topology, state));
    for endpoint in state.endpoints.values() {
        endpoint::endpoint(&topology, endpoint, &mut desired);
    }
    Compiled {
        desired,
        complete: true,
        problems,
    }
}

/// What must be in the kernel before the devices of these endpoints go up, which the plugin does, with their routes and
/// neighbours. `None` while the whole would not be complete.
pub fn before_up<'a>(
    config: &Config,
    state: &State,
    endpoints: impl IntoIterator<Item = &'a Endpoint>,
) -> Option<Desired> {
    let mut desired = compile_endpoints(config, state, endpoints)?;
    desired.routes.clear();
    desired.neighbours.clear();
    desired.pacing.clear();
    for veth in desired.veths.values_mut() {
        *veth = Veth::Reserved;
    }
    Some(desired)
}

/// Only what these endpoints need: a part of the whole. `None` while the whole would not be complete.
pub fn compile_endpoints<'a>(
    config: &Config,
    state: &State,
    endpoints: impl IntoIterator<Item = &'a Endpoint>,
) -> Option<Desired> {
    let topology = Topology::new(config, state);
    let constants = host::constants(&topology)?;
    let mut desired = Desired {
        config: Some(constants),
        ..Desired::default()
    };
    for endpoint in endpoints {
        endpoint::endpoint(&topology, endpoint, &mut desired);
    }
    Some(desired)
}

/// What goes when these endpoints go. An address that a Pod object still names stays known as a pod's.
pub fn endpoint_keys<'a>(
    config: &Config,
    state: &State,
    endpoints: impl IntoIterator<Item = &'a Endpoint>,
) -> Desired {
    let topology = Topology::new(config, state);
    let mut gone = Desired::default();
    for endpoint in endpoints {
        endpoint::endpoint(&topology, endpoint, &mut gone);
    }
    gone.tables
        .peers
        .retain(|addr, _| state.pods.at((*addr).into()).is_empty());
    gone
}

#[cfg(test)]
mod tests;
