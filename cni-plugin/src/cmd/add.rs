//! ADD: an endpoint from the agent, a veth pair between the host and the pod, both opened last.
//!
//! Everything that can be refused is refused before anything is changed. From the allocation on, a failure undoes
//! what was done, in the reverse order; after a kill, the closed connection makes the agent undo the allocation, or the
//! file of the ADD its successor, and the next ADD or DEL removes the pair, whose name it knows.

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
    underway::{self, Underway},
};
use serde_json::Value;
use std::{io, time::Duration};

const MOST: Duration = Duration::from_secs(60);

/// An endpoint that is complete, and whose runtime does not know it yet.
pub(crate) struct Added {
    pub(crate) result: Value,
    endpoint_id: u32,
    agent: Client,
    underway: Underway,
}

impl Added {
    /// The result is printed. Whatever ends this process before has failed the ADD, and the endpoint is taken back. False
    /// if it will be even so.
    pub(crate) fn finish(mut self) -> bool {
        let kept = fault::at("printed").and_then(|()| {
            let cannot = |error| failed("the ADD cannot be taken off the list of those that go on", error);
            self.underway.end().map_err(cannot)
        });
        match kept {
            Ok(()) => {
                // An agent that is older, or gone by now, has nothing left to do.
                let _ = self.agent.finish(Finish {
                    endpoint_id: self.endpoint_id,
                });
                true
            }
            Err(error) => {
                tracing::error!(%error, "the endpoint is not kept");
                false
            }
        }
    }
}

pub(crate) fn run(call: &Call<'_>, attachment: &Attachment, netns: &str) -> Result<Added, CniError> {
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
        left: false,
    };
    wiring.clear_the_way(call)?;
    let mut agent = call.agent(MOST)?;
    let underway = begin(call, attachment)?;
    match add(call, &mut agent, &mut wiring, request, delegate.as_ref()) {
        Ok((endpoint, delegated)) => {
            let result = outcome::extend(previous, &endpoint, attachment, netns, dns(call, delegated));
            Ok(Added {
                result: result.render(call.config.version),
                endpoint_id: endpoint.endpoint_id,
                agent,
                underway,
            })
        }
        Err(error) => {
            if !wiring.left
                && let Err(error) = underway.end()
            {
                tracing::warn!(%error, "the failed ADD stays on the list of those that go on");
            }
            Err(error)
        }
    }
}

fn begin(call: &Call<'_>, attachment: &Attachment) -> Result<Underway, CniError> {
    let state = &call.config.state_dir;
    Underway::begin(state, attachment).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => CniError::new(
            code::TRY_AGAIN_LATER,
            "another ADD of this interface goes on in this container",
        ),
        _ => failed(
            format!("the ADD cannot be noted in {}", underway::folder(state).display()),
            error,
        ),
    })
}

/// With the delegated IPAM plugin's result, if there is one.
fn add(
    call: &Call<'_>,
    agent: &mut Client,
    wiring: &mut Wiring<'_>,
    request: Allocate,
    delegate: Option<&Delegate<'_>>,
) -> Result<(Allocated, Option<AddResult>), CniError> {
    fault::at("connected")?;
    let delegated = delegate.map(Delegate::add).transpose()?;
    match attach(call, agent, wiring, request, delegated.as_ref()) {
        Ok(endpoint) => Ok((endpoint, delegated)),
        Err(error) => {
            if let Some(delegate) = delegate {
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
    wired.map_err(|error| undo(call, agent, wiring, network, error))?;
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
    wiring: &mut Wiring<'_>,
    network: String,
    mut error: CniError,
) -> CniError {
    let attachment = wiring.attachment;
    let release = Release {
        network,
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
    };
    let removed = call.remove_pair(&attachment.host_ifname());
    let released = agent.release(release).or_else(|_| del::release(call, attachment));
    for problem in [removed, released].into_iter().filter_map(Result::err) {
        wiring.left = true;
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
    /// Something could not be undone.
    left: bool,
}

impl Wiring<'_> {
    /// Makes sure that the interface's name is free. A pair of an ADD that was cut short is removed.
    fn clear_the_way(&mut self, call: &Call<'_>) -> Result<(), CniError> {
        let ifname = &self.attachment.ifname;
        if self.pod.link(ifname)?.is_none() {
            return Ok(());
        }
        let host_ifname = self.attachment.host_ifname();
        // One of a release that noted nothing is known by its host's end, which it set up last.
        let was_cut_short = matches!(
            underway::cut_short(&call.config.state_dir, self.attachment),
            Ok(Some(_))
        );
        if was_cut_short || host::is_unfinished(&mut self.host, &host_ifname) {
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
        self.pod.wait_until_it_sends(ifname)?;
        fault::at("up")
    }
}
