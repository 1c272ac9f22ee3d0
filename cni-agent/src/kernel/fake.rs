//! A kernel in memory, with faults on demand.
#![allow(dead_code, reason = "each test needs another part of it")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use cni_ebpf::abi::Config;

use super::{Kernel, KernelError, Scope};
use crate::{
    desired::{
        Desired, HostRoute, LinkKey, LinkState, NeighbourKey, Observed, RouteKey, SocketPrograms, Table,
        Tables, VethState, Vxlan,
    },
    model::{Device, DeviceKind},
    reconcile::Change,
};

/// What the fake holds. Refuses what the real kernel refuses.
#[derive(Debug, Default)]
pub(crate) struct FakeState {
    pub(crate) config: Option<Config>,
    pub(crate) tables: Tables,
    pub(crate) vxlan: Option<Vxlan>,
    pub(crate) veths: BTreeMap<String, VethState>,
    pub(crate) links: BTreeMap<LinkKey, LinkState>,
    pub(crate) sockets: SocketPrograms,
    pub(crate) routes: BTreeMap<RouteKey, HostRoute>,
    pub(crate) neighbours: BTreeMap<NeighbourKey, [u8; 6]>,
    pub(crate) pacing: BTreeSet<u32>,
    pub(crate) sysctls: BTreeMap<String, String>,
    /// Everything that was applied, in order.
    pub(crate) log: Vec<Change>,
    /// Changes whose text begins so fail.
    pub(crate) faults: Vec<String>,
    /// Devices that the next list of all lacks, though they are there.
    pub(crate) overlooked: Vec<String>,
    /// How many rounds looked at everything.
    pub(crate) whole_looks: u32,
}

/// Index of the fake's tunnel device.
pub(crate) const TUNNEL_IFINDEX: u32 = 900;

/// Cloned, it is the same kernel: what outlives an agent.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeKernel(Arc<Mutex<FakeState>>);

impl FakeKernel {
    pub(crate) fn lock(&self) -> MutexGuard<'_, FakeState> {
        self.0.lock().unwrap()
    }

    /// What a new process finds: everything but the programs that only the old one had loaded.
    pub(crate) fn restart(&self) {
        let mut state = self.lock();
        state.config = None;
        for link in state.links.values_mut() {
            link.current = false;
        }
        state.age_sockets();
    }

    pub(crate) fn add_veth(&self, name: &str, ifindex: u32) {
        self.lock()
            .veths
            .insert(name.to_owned(), VethState { ifindex, up: false });
    }

    /// A device goes, and what hangs on it.
    pub(crate) fn remove_veth(&self, name: &str) {
        let mut state = self.lock();
        let Some(veth) = state.veths.remove(name) else {
            return;
        };
        state
            .routes
            .retain(|_, route| route.ifindex() != Some(veth.ifindex));
        state.neighbours.retain(|key, _| key.ifindex != veth.ifindex);
        for link in state
            .links
            .values_mut()
            .filter(|link| link.ifindex == veth.ifindex)
        {
            link.ifindex = 0;
        }
    }

    /// Nothing that bears Millrace's mark.
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.lock();
        let empty_maps = state.tables.is_empty() && state.sockets == SocketPrograms::Absent;
        empty_maps && state.veths.is_empty() && state.links.is_empty() && state.routes.is_empty()
    }

    pub(crate) fn device(name: &str, ifindex: u32, addresses: &[&str]) -> Device {
        Device {
            name: name.into(),
            ifindex,
            mac: Some(cni_plugin::Mac([2, 0, 0, 0, 0, ifindex as u8])),
            mtu: 1500,
            up: true,
            master: None,
            kind: DeviceKind::Physical,
            addresses: addresses
                .iter()
                .map(|address| crate::model::DeviceAddress {
                    network: address.parse().unwrap(),
                    global: true,
                    avoid: false,
                })
                .collect(),
            default_route: true,
            paces: false,
        }
    }

    pub(crate) fn tunnel_device() -> Device {
        Device {
            kind: DeviceKind::Vxlan,
            mtu: 1450,
            ..Self::device("millrace.vx", TUNNEL_IFINDEX, &[])
        }
    }
}

impl Kernel for FakeKernel {
    async fn observe(&mut self, wanted: &Desired, scope: Scope) -> Result<Observed, KernelError> {
        let mut state = self.lock();
        if scope == Scope::Whole {
            state.whole_looks += 1;
        }
        let whole = scope == Scope::Whole;
        let overlooked = if whole {
            std::mem::take(&mut state.overlooked)
        } else {
            Vec::new()
        };
        let mut tables = Tables::default();
        for table in Table::ALL.iter().filter(|table| table.is_compared()) {
            let keys: Vec<Vec<u8>> = wanted
                .tables
                .entries(*table)
                .into_iter()
                .map(|(key, _)| key)
                .collect();
            for (key, value) in state.tables.entries(*table) {
                if whole || keys.contains(&key) {
                    tables.insert(*table, &key, &value).unwrap();
                }
            }
        }
        Ok(Observed {
            config: state.config,
            tables,
            vxlan: if whole || wanted.vxlan.is_some() {
                state.vxlan.clone()
            } else {
                None
            },
            veths: pick(&state.veths, |name| {
                !overlooked.contains(name) && (whole || wanted.veths.contains_key(name))
            }),
            links: pick(&state.links, |key| whole || wanted.links.contains_key(key)),
            sockets: if whole {
                state.sockets
            } else {
                SocketPrograms::Absent
            },
            routes: pick(&state.routes, |key| whole || wanted.routes.contains_key(key)),
            neighbours: pick(&state.neighbours, |key| wanted.neighbours.contains_key(key)),
            pacing: wanted.pacing.intersection(&state.pacing).copied().collect(),
            sysctls: pick(&state.sysctls, |path| wanted.sysctls.contains_key(path)),
        })
    }

    async fn scan(
        &mut self,
        table: Table,
        each: &mut (dyn FnMut(&[u8], &[u8]) + Send),
    ) -> Result<(), KernelError> {
        let entries = self.lock().tables.entries(table);
        entries.iter().for_each(|(key, value)| each(key, value));
        Ok(())
    }

    async fn apply(&mut self, change: &Change) -> Result<(), KernelError> {
        let text = change.to_string();
        let mut state = self.lock();
        if state.faults.iter().any(|fault| text.starts_with(fault)) {
            return Err(KernelError::new(text, "injected"));
        }
        state.log.push(change.clone());
        state.perform(change, &text)
    }
}

impl FakeState {
    /// They run, and are not those that would be attached.
    fn age_sockets(&mut self) {
        if self.sockets == SocketPrograms::Current {
            self.sockets = SocketPrograms::Partial;
        }
    }

    fn perform(&mut self, change: &Change, text: &str) -> Result<(), KernelError> {
        let refuse = |cause: &str| Err(KernelError::new(text, cause));
        match change.clone() {
            Change::Load(config) => {
                self.config = Some(config);
                self.links.values_mut().for_each(|link| link.current = false);
                self.age_sockets();
            }
            Change::SetVxlan(vxlan) => self.vxlan = Some(vxlan),
            Change::RemoveVxlan(_) => self.vxlan = None,
            Change::SetSysctl { path, value } => {
                self.sysctls.insert(path, value);
            }
            Change::Put { table, key, value } => {
                if self.config.is_none() {
                    return refuse("the maps do not exist");
                }
                self.tables.insert(table, &key, &value).unwrap();
            }
            Change::Delete { table, key } => self.tables.remove(table, &key),
            Change::PutAll { table, keys, values } => {
                if self.config.is_none() {
                    return refuse("the maps do not exist");
                }
                let spec = crate::kernel::maps::spec(table.name())?;
                for (key, value) in keys.chunks(spec.key).zip(values.chunks(spec.value)) {
                    self.tables.insert(table, key, value).unwrap();
                }
            }
            Change::DeleteAll { table, keys } => {
                let spec = crate::kernel::maps::spec(table.name())?;
                keys.chunks(spec.key)
                    .for_each(|key| self.tables.remove(table, key));
            }
            Change::Attach { link, ifindex } => {
                if self.config.is_none() {
                    return refuse("no program is loaded");
                }
                self.links.insert(
                    link,
                    LinkState {
                        ifindex,
                        current: true,
                    },
                );
            }
            Change::Detach(link) => {
                self.links.remove(&link);
            }
            Change::AttachSockets if self.config.is_none() => return refuse("no program is loaded"),
            Change::AttachSockets => self.sockets = SocketPrograms::Current,
            Change::DetachSockets => self.sockets = SocketPrograms::Absent,
            Change::ReleaseSockets | Change::CarryOver => {}
            Change::RaiseVeth { name, ifindex } => match self.veths.get_mut(&name) {
                Some(veth) if veth.ifindex == ifindex => veth.up = true,
                _ => return refuse("no such device"),
            },
            Change::RemoveVeth(name) => {
                self.veths.remove(&name);
            }
            Change::SetRoute { key, route } => {
                if self
                    .veths
                    .values()
                    .any(|veth| Some(veth.ifindex) == route.ifindex() && !veth.up)
                {
                    return refuse("network is down");
                }
                self.routes.insert(key, route);
            }
            Change::RemoveRoute(key) => {
                self.routes.remove(&key);
            }
            Change::Pace(ifindex) => {
                self.pacing.insert(ifindex);
            }
            Change::SetNeighbour { key, mac } => {
                self.neighbours.insert(key, mac);
            }
        }
        Ok(())
    }
}

fn pick<K: Ord + Clone, V: Clone>(map: &BTreeMap<K, V>, wanted: impl Fn(&K) -> bool) -> BTreeMap<K, V> {
    map.iter()
        .filter(|(key, _)| wanted(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}
