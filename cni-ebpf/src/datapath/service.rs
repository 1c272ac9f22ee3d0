//! Services: from a frontend to one of its backends.

use super::headers::proto;
use super::{Tables, Work};
use crate::abi::{Backend, Reason, ServiceKey, SlotKey, service_flags, service_scope};

/// A Service that a new connection dialled, and the backend chosen for it.
pub(super) struct Chosen<'t> {
    pub service: u32,
    pub backend: u32,
    pub target: &'t Backend,
}

/// The backend for the destination of `work.tuple`, if it is a Service's frontend.
#[inline(always)]
pub(super) fn choose<'t, T: Tables>(tables: &'t T, work: &Work) -> Result<Option<Chosen<'t>>, Reason> {
    let config = tables.config();
    let tuple = &work.tuple;
    if config.has_services() == 0 || !matches!(tuple.proto, proto::TCP | proto::UDP | proto::SCTP) {
        return Ok(None);
    }
    let key = ServiceKey {
        addr: tuple.dst,
        port: tuple.dst_port,
        proto: tuple.proto,
        scope: service_scope::CLUSTER,
        pad: 0,
    };
    let Some(service) = tables.service(&key) else {
        return Ok(None);
    };
    if service.flags & service_flags::DROP != 0 {
        return Err(Reason::ServiceNotLocal);
    }
    // A slot that is gone between two look-ups was just removed; the frontend's count follows.
    let slot = tables
        .random()
        .checked_rem(service.slots)
        .ok_or(Reason::ServiceNoBackend)?;
    let backend = *tables
        .slot(&SlotKey {
            service: service.id,
            slot,
        })
        .ok_or(Reason::ServiceNoBackend)?;
    let target = tables.backend(&backend).ok_or(Reason::ServiceNoBackend)?;
    Ok(Some(Chosen {
        service: service.id,
        backend,
        target,
    }))
}
