//! What the plugin asks for: addresses, an endpoint in the kernel, and both of them gone again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cni_plugin::{
    Attachment, CniError, code, queue,
    rpc::{Allocate, Check, Checked, Collected, Gc, Program, Release, Response},
};
use ipnetwork::IpNetwork;
use tokio::sync::oneshot;

use super::Agent;
use crate::{
    compile,
    desired::{Desired, Veth},
    kernel::{Kernel, Scope},
    model::{Endpoint, Phase},
    reconcile::{Removals, diff},
    source::plugin::{Ask, Question},
};

/// How long an ADD waits for an agent that is starting; less than any runtime's patience.
const PATIENCE: Duration = Duration::from_secs(15);

/// An ADD that came too early.
#[derive(Debug)]
pub(super) struct Waiting {
    request: Box<Allocate>,
    answer: oneshot::Sender<Response>,
    pub(super) until: Instant,
}

impl<K: Kernel> Agent<K> {
    /// Answers in order, but neighbouring requests of one kind share a look at the kernel.
    pub(super) async fn answer(&mut self, batch: Vec<Question>) {
        let mut programs: Vec<(Program, oneshot::Sender<Response>)> = Vec::new();
        let mut releases: Vec<(Release, oneshot::Sender<Response>)> = Vec::new();
        for question in batch {
            let Question { request, answer } = question;
            if !matches!(request, Ask::Program(_)) {
                self.program(std::mem::take(&mut programs)).await;
            }
            if !matches!(request, Ask::Release(_)) {
                self.release_all(std::mem::take(&mut releases)).await;
            }
            match request {
                Ask::Program(program) => programs.push((program, answer)),
                Ask::Release(release) => releases.push((release, answer)),
                Ask::Allocate(request) => {
                    let attachment = request.attachment();
                    self.waiting.push(Waiting {
                        request,
                        answer,
                        until: Instant::now() + PATIENCE,
                    });
                    self.replace_waiting().await;
                    self.forget_cut_short(&attachment);
                }
                Ask::Check(check) => reply(answer, self.check(&check).await),
                Ask::Status(_) => reply(answer, self.serves().map(|()| Response::Done)),
                Ask::Gc(gc) => reply(answer, self.gc(&gc).await),
                Ask::Abandon { endpoint_id } => {
                    let endpoint = self.state.endpoints.get(&endpoint_id);
                    let attachment = endpoint.map(|endpoint| endpoint.attachment.clone());
                    self.undo(endpoint_id).await;
                    attachment.inspect(|attachment| self.forget_cut_short(attachment));
                    reply(answer, Ok(Response::Done));
                }
            }
        }
        self.program(programs).await;
        self.release_all(releases).await;
    }

    /// The same attachment again: the older one is dead, and its device bears the name that the new one needs.
    async fn replace_waiting(&mut self) {
        let Some(attachment) = self.waiting.last().map(|waiting| waiting.request.attachment()) else {
            return;
        };
        if let Some(id) = self.state.endpoint_of(&attachment).map(|endpoint| endpoint.id) {
            self.undo(id).await;
        }
        self.serve_waiting();
    }

    /// Answers the ADDs that wait, if it is known now what to answer.
    pub(super) fn serve_waiting(&mut self) {
        let now = Instant::now();
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.answer.is_closed() {
                continue;
            }
            let starting = self.rounds.error.is_none() && !self.is_ready();
            if starting && waiting.until > now {
                self.waiting.push(waiting);
                continue;
            }
            let result = self.allocate(&waiting.request);
            if let Err(Response::Allocated(allocated)) = waiting.answer.send(Response::from(result)) {
                // Nobody is there to use it.
                self.forget(allocated.endpoint_id);
            }
        }
    }

    /// Whether an ADD could be served now.
    fn serves(&self) -> Result<(), CniError> {
        if !self.is_ready() {
            return Err(self.not_ready());
        }
        if !self.pool.has_ranges() {
            return Err(
                CniError::new(code::NOT_AVAILABLE, "this node has no range of pod addresses")
                    .with_details("give its Node object spec.podCIDRs, or set podCIDRs"),
            );
        }
        match self.exhausted() {
            Some(text) => Err(CniError::new(code::NOT_AVAILABLE, text)),
            None => Ok(()),
        }
    }

    pub(super) fn not_ready(&self) -> CniError {
        let unsynced: Vec<String> = self.state.unsynced().iter().map(ToString::to_string).collect();
        let details = match &self.rounds.error {
            Some(error) => error.clone(),
            None if !unsynced.is_empty() => format!("waiting for {}", unsynced.join(", ")),
            None => "the programs are not loaded yet; see millrace status".to_owned(),
        };
        // While the kernel refuses, what changes elsewhere does not reach the pods that are here.
        let impaired = self.rounds.error.is_some() && self.state.programmed().next().is_some();
        let code = match impaired {
            true => code::NOT_AVAILABLE_IMPAIRED,
            false => code::NOT_AVAILABLE,
        };
        CniError::new(code, "the Millrace agent is not ready").with_details(details)
    }

    /// Puts endpoints into the kernel. The answer goes out when they are there, and on the disk.
    async fn program(&mut self, programs: Vec<(Program, oneshot::Sender<Response>)>) {
        let mut ready = Vec::new();
        for (program, answer) in programs {
            let phase = Phase::Programmed {
                ifindex: program.host_ifindex,
            };
            match self.state.endpoints.get_mut(&program.endpoint_id) {
                Some(endpoint) => {
                    endpoint.phase = phase;
                    ready.push((endpoint.clone(), answer));
                }
                None => reply(answer, Err(unknown(program.endpoint_id))),
            }
        }
        if ready.is_empty() {
            return;
        }
        let endpoints: Vec<Endpoint> = ready.iter().map(|(endpoint, _)| endpoint.clone()).collect();
        // Whichever comes first: the answer needs both, and an agent that ends in between leaves what the next one
        // takes away.
        let (writer, records) = (self.ledger.writer(), endpoints.clone());
        let saving = tokio::task::spawn_blocking(move || writer.save(&records));
        let programmed = self.program_in_kernel(&endpoints).await;
        let saved = saving
            .await
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(|error| {
                CniError::new(code::IO, "the endpoint could not be written to disk")
                    .with_details(format!("{}: {error}", self.config.paths.state.display()))
            });
        let alone = endpoints.len() == 1;
        for (endpoint, answer) in ready {
            let result = match (&saved, &programmed) {
                (Err(error), _) => Err(error.clone()),
                // One bad endpoint must not fail its neighbours.
                (Ok(()), Err(_)) if !alone => self.program_in_kernel(std::slice::from_ref(&endpoint)).await,
                (Ok(()), programmed) => programmed.clone(),
            };
            if result.is_ok() {
                // A deletion of an earlier container of this name must not come for this one.
                let release = release_of(&endpoint);
                if let Err(error) = queue::forget(&self.config.paths.state, &release) {
                    tracing::warn!(%error, "an older queued deletion could not be taken back");
                }
            }
            reply(answer, result.map(|()| Response::Done));
        }
    }

    async fn program_in_kernel(&mut self, endpoints: &[Endpoint]) -> Result<(), CniError> {
        let failed = |details: String| {
            CniError::new(code::TRY_AGAIN_LATER, "the endpoint could not be programmed").with_details(details)
        };
        let config = Arc::clone(&self.config);
        let desired = compile::before_up(&config, &self.state, endpoints)
            .ok_or_else(|| failed("the tunnel device does not exist yet".to_owned()))?;
        let outcome = self
            .reconciler
            .converge_keys(&desired)
            .await
            .map_err(|error| failed(error.to_string()))?;
        self.rounds.add(&outcome);
        if outcome.serves() {
            Ok(())
        } else {
            Err(failed(outcome.text()))
        }
    }

    async fn release_all(&mut self, releases: Vec<(Release, oneshot::Sender<Response>)>) {
        let (asked, answers): (Vec<Release>, Vec<_>) = releases.into_iter().unzip();
        if asked.is_empty() {
            return;
        }
        let result = self.release(&asked).await;
        for answer in answers {
            reply(answer, result.clone().map(|()| Response::Done));
        }
    }

    /// Takes attachments out of the kernel and gives their addresses back. One that is not known may still have left a
    /// device.
    pub(super) async fn release(&mut self, releases: &[Release]) -> Result<(), CniError> {
        let mut gone = Desired::default();
        let mut endpoints = Vec::new();
        for release in releases {
            let attachment = release.attachment();
            gone.veths.insert(attachment.host_ifname(), Veth::Reserved);
            endpoints.extend(self.state.endpoint_of(&attachment).map(|endpoint| endpoint.id));
        }
        self.remove(&endpoints, gone).await
    }

    pub(super) async fn undo(&mut self, id: u32) {
        if let Err(error) = self.remove(&[id], Desired::default()).await {
            tracing::warn!(endpoint = id, %error, "an endpoint could not be undone at once");
        }
    }

    pub(super) async fn remove(&mut self, ids: &[u32], mut gone: Desired) -> Result<(), CniError> {
        let config = Arc::clone(&self.config);
        let leaving: Vec<Endpoint> = ids
            .iter()
            .filter_map(|id| self.state.endpoints.get(id).cloned())
            .collect();
        let parts = compile::endpoint_keys(&config, &self.state, &leaving);
        // Also of one that was only reserved: its plugin may have made the device already.
        gone.veths.extend(
            leaving
                .iter()
                .map(|endpoint| (endpoint.host_ifname(), Veth::Reserved)),
        );
        let gone = Desired {
            veths: gone.veths,
            ..parts
        };
        for endpoint in &leaving {
            self.forget(endpoint.id);
        }
        match self.reconciler.remove_keys(&gone, &Desired::default()).await {
            Ok(outcome) => {
                self.rounds.add(&outcome);
                if !outcome.is_complete() {
                    // The next round over everything finds what is left.
                    self.rounds.mark_dirty();
                }
                Ok(())
            }
            Err(error) => {
                self.rounds.mark_dirty();
                Err(CniError::new(code::TRY_AGAIN_LATER, "the kernel could not be read").with_details(error))
            }
        }
    }

    /// Out of the state, the pool and the records; not out of the kernel.
    pub(super) fn forget(&mut self, id: u32) {
        let Some(endpoint) = self.state.endpoints.remove(&id) else {
            return;
        };
        let rests = endpoint.phase != Phase::Reserved && !endpoint.delegated;
        if rests {
            self.pool.release(id, &endpoint.addresses, Instant::now());
        } else {
            self.pool.abandon(id, &endpoint.addresses);
        }
        let rests = rests && self.config.ipam.quarantine_seconds != 0;
        if let Err(error) = self.ledger.release(&endpoint, rests) {
            tracing::warn!(endpoint = id, %error, "the record of a released endpoint could not be moved");
        }
    }

    async fn check(&mut self, check: &Check) -> Result<Response, CniError> {
        let attachment = Attachment::new(&check.container_id, &check.ifname);
        let differs = |details: String| {
            CniError::new(code::CHECK_FAILED, "the endpoint is not as ADD left it").with_details(details)
        };
        let endpoint = self
            .state
            .endpoint_of(&attachment)
            .filter(|endpoint| endpoint.phase != Phase::Reserved)
            .cloned()
            .ok_or_else(|| CniError::new(code::UNKNOWN_CONTAINER, "the agent has no such endpoint"))?;
        let config = Arc::clone(&self.config);
        let desired = compile::compile_endpoints(&config, &self.state, [&endpoint])
            .ok_or_else(|| differs("the tunnel device is gone".to_owned()))?;
        let observed = self
            .reconciler
            .observe(&desired, Scope::Keys)
            .await
            .map_err(|error| differs(error.to_string()))?;
        let missing: Vec<String> = diff(&desired, &observed, Removals::Held)
            .iter()
            .map(ToString::to_string)
            .collect();
        if !observed.veths.contains_key(&endpoint.host_ifname()) {
            return Err(differs(format!("device {} is gone", endpoint.host_ifname())));
        }
        if !missing.is_empty() {
            self.rounds.mark_dirty();
            return Err(differs(format!("missing: {}", missing.join(", "))));
        }
        Ok(Response::Checked(Box::new(Checked {
            endpoint_id: endpoint.id,
            host_ifname: endpoint.host_ifname(),
            mac: endpoint.mac,
            addresses: endpoint.addresses.iter().map(|ip| IpNetwork::from(*ip)).collect(),
        })))
    }

    /// An ADD that is under way is not in the runtime's list yet, so reservations stay.
    async fn gc(&mut self, gc: &Gc) -> Result<Response, CniError> {
        let stale: Vec<Endpoint> = self
            .state
            .programmed()
            .filter(|endpoint| endpoint.network == gc.network && !gc.valid.contains(&endpoint.attachment))
            .cloned()
            .collect();
        let ids: Vec<u32> = stale.iter().map(|endpoint| endpoint.id).collect();
        self.remove(&ids, Desired::default()).await?;
        Ok(Response::Collected(Collected {
            released: stale.into_iter().map(|endpoint| endpoint.attachment).collect(),
        }))
    }
}

fn reply(answer: oneshot::Sender<Response>, result: Result<Response, CniError>) {
    // Whoever asked may be gone; its connection sees to the rest.
    let _ = answer.send(Response::from(result));
}

fn unknown(id: u32) -> CniError {
    CniError::new(
        code::TRY_AGAIN_LATER,
        format!("endpoint {id} is not reserved any more"),
    )
    .with_details("the attachment was deleted or made anew meanwhile")
}

fn release_of(endpoint: &Endpoint) -> Release {
    Release {
        network: endpoint.network.clone(),
        container_id: endpoint.attachment.container_id.clone(),
        ifname: endpoint.attachment.ifname.clone(),
    }
}
