//! ADD: an endpoint from the agent, a veth pair between the host and the pod, both opened last.
//!
//! Everything that can be refused is refused before anything is changed. From the allocation on, a failure undoes
//! what was done, in the reverse order; after a kill, the closed connection makes the agent undo the allocation, and
//! the next ADD or DEL removes the pair, whose name it knows.

mod outcome;

use super::{Call, del};
use crate::{
    fault,
    ipam::Delegate,
    kernel::{failed, host, netlink::Netlink, pod::Pod},
};
use cni_plugin::{
    Attachment, CniError, code,
    environment::Arguments,
    queue,
    result::AddResult,
    rpc::{Allocate, Allocated, Client, Finish, Program, Release, Route},
};
use serde_json::Value;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(60);

pub(crate) fn run(call: &Call<'_>, attachment: &Attachment, netns: &str) -> Result<Value, CniError> {
    let arguments = Arguments::parse(&call.environment.args)?;
    let request = call.config.allocate(attachment, netns, &arguments)?;
    let previous = call.config.previous_result()?.unwrap_or_default();
    if previous
        .interfaces
        .iter()
        .any(|known| known.name == attachment.ifname && !known.sandbox.is_empty())
    {
        return Err(host::already_there(&attachment.ifname));
    }
    let ipam = call.config.ipam()?;
    let delegate = call.delegate(&ipam)?;
    let mut wiring = Wiring {
        pod: Pod::open(netns)?,
        host: Netlink::open()?,
        attachment,
    };
    wiring.clear_the_way()?;
    let mut agent = call.agent(MOST)?;
    fault::at("connected")?;
    let delegated = delegate.as_ref().map(Delegate::add).transpose()?;
    let added = attach(call, &mut agent, &mut wiring, request, delegated.as_ref());
    match added {
        Ok(endpoint) => {
            let result = outcome::extend(previous, &endpoint, attachment, netns, dns(call, delegated));
            Ok(result.render(call.config.version))
        }
        Err(error) => {
            if let Some(delegate) = &delegate {
                delegate.give_back();
            }
            Err(error)
        }
    }
}

fn dns(call: &Call<'_>, delegated: Option<AddResult>) -> Option<Value> {
    call.config.dns().or_else(|| delegated?.dns)
}

/// From the allocation to an endpoint that carries traffic.
fn attach(
    call: &Call<'_>,
    agent: &mut Client,
    wiring: &mut Wiring<'_>,
    mut request: Allocate,
    delegated: Option<&AddResult>,
) -> Result<Allocated, CniError> {
    fault::at("ipam")?;
    if let Some(delegated) = delegated {
        request.delegated_ips = outcome::addresses(delegated)?;
        // The delegated plugin has seen the runtime's wishes and has granted what it could.
        request.requested_ips.clear();
    }
    let network = request.network.clone();
    let mut endpoint = agent.allocate(request)?;
    let wired = fault::at("allocated")
        .and_then(|()| route_as_delegated(&mut endpoint, delegated))
        .and_then(|()| forget_queued(call, wiring.attachment))
        .and_then(|()| wiring.wire(agent, &endpoint));
    wired.map_err(|error| undo(call, agent, wiring.attachment, network, error))?;
    Ok(endpoint)
}

/// Routes of a delegated IPAM plugin replace the agent's; their gateways do not, for ours is the only one there is.
fn route_as_delegated(endpoint: &mut Allocated, delegated: Option<&AddResult>) -> Result<(), CniError> {
    let routes: Vec<Route> = delegated.map(outcome::routes).transpose()?.unwrap_or_default();
    if !routes.is_empty() {
        let reachable = |route: &Route| {
            endpoint
                .gateways
                .iter()
                .any(|gateway| gateway.is_ipv4() == route.dst.is_ipv4())
        };
        endpoint.routes = routes.into_iter().filter(reachable).collect();
    }
    Ok(())
}

/// A queued deletion of an earlier attachment of this name would delete this one when the agent starts next.
fn forget_queued(call: &Call<'_>, attachment: &Attachment) -> Result<(), CniError> {
    let release = Release {
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
        ..Release::default()
    };
    queue::forget(&call.config.state_dir, &release)
        .map_err(|error| failed("cannot remove a queued deletion of this container", error))
}

/// Takes back what ADD did. The runtime hears of the first error; what could not be taken back is in its details.
fn undo(
    call: &Call<'_>,
    agent: &mut Client,
    attachment: &Attachment,
    network: String,
    mut error: CniError,
) -> CniError {
    let release = Release {
        network,
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
    };
    let removed = call.remove_pair(&attachment.host_ifname());
    let released = agent.release(release).or_else(|_| del::release(call, attachment));
    for problem in [removed, released].into_iter().filter_map(Result::err) {
        error
            .details
            .push_str(&format!("; undoing it failed too: {problem}"));
    }
    error
}

/// The two ends and the sockets to configure them with.
struct Wiring<'a> {
    pod: Pod,
    host: Netlink,
    attachment: &'a Attachment,
}

impl Wiring<'_> {
    /// Makes sure that the interface's name is free. A pair of an ADD that was cut short is removed.
    fn clear_the_way(&mut self) -> Result<(), CniError> {
        let ifname = &self.attachment.ifname;
        if self.pod.link(ifname)?.is_none() {
            return Ok(());
        }
        let host_ifname = self.attachment.host_ifname();
        if host::is_unfinished(&mut self.host, &host_ifname) {
            host::remove_pair(&host_ifname)?;
            if self.pod.link(ifname)?.is_none() {
                return Ok(());
            }
        }
        Err(host::already_there(ifname))
    }

    fn wire(&mut self, agent: &mut Client, endpoint: &Allocated) -> Result<(), CniError> {
        if endpoint.host_ifname != self.attachment.host_ifname() {
            return Err(CniError::new(
                code::PROTOCOL,
                "the Millrace agent named the host's end otherwise than DEL will",
            )
            .with_details(format!(
                "{} is not {}",
                endpoint.host_ifname,
                self.attachment.host_ifname()
            )));
        }
        let ifname = &self.attachment.ifname;
        let host_ifindex = host::create_pair(&mut self.host, &self.pod.namespace, ifname, endpoint)?;
        fault::at("link")?;
        self.pod.configure(ifname, endpoint)?;
        fault::at("pod")?;
        agent.program(Program {
            endpoint_id: endpoint.endpoint_id,
            host_ifindex,
            finishes: true,
        })?;
        fault::at("programmed")?;
        host::bring_up(&mut self.host, host_ifindex, endpoint)?;
        fault::at("up")?;
        // An agent that is older, or gone by now, has nothing left to do.
        let _ = agent.finish(Finish {
            endpoint_id: endpoint.endpoint_id,
        });
        Ok(())
    }
}
