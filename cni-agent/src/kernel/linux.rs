//! The real kernel.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs, io,
    path::{Path, PathBuf},
};

use cni_ebpf::abi::Config as Constants;
use cni_plugin::expedite::Expedite;

use super::{
    Kernel, KernelError, Pins, Scope, devices, links,
    links::{Attachment, Programs},
    loader::{self, Loaded},
    maps::{self, Map},
    netlink::Netlink,
    routes, sockets,
};
use crate::{
    config::{Config, MapSizes, Xdp},
    desired::{
        Desired, HostRoute, LinkKey, Observed, RouteKey, SocketPrograms, Table, Tables, Vxlan, is_vacant,
    },
    reconcile::Change,
};

/// The kernel of this host, in the network namespace of the thread that opened it.
pub struct Linux {
    pins: Pins,
    cgroup: PathBuf,
    proc_sys: PathBuf,
    sizes: MapSizes,
    object: &'static [u8],
    tunnel: String,
    xdp: Xdp,
    netlink: Netlink,
    expedite: Expedite,
    /// Found out at the first attachment, unless it was set.
    attachment: Option<Attachment>,
    loaded: Option<Loaded>,
    /// Maps of an earlier agent, until this one has loaded its programs.
    found: BTreeMap<&'static str, Map>,
    /// Devices that cannot pace; not tried again by this process.
    unable_to_pace: BTreeSet<u32>,
    /// The programs of a process that has loaded none.
    none: Programs,
}

impl Linux {
    pub fn open(config: &Config) -> Result<Self, KernelError> {
        let netlink = Netlink::open().map_err(|error| KernelError::new("open an rtnetlink socket", error))?;
        let expedite = config.paths.expedite();
        if let Err(error) = expedite.recover() {
            tracing::warn!(%error, "an agent that was killed left rcu_expedited set; write 0 to it");
        }
        Ok(Self {
            pins: Pins::new(&config.paths.bpffs),
            cgroup: config.paths.cgroup.clone(),
            proc_sys: config.paths.proc_sys.clone(),
            sizes: config.maps,
            object: loader::OBJECT,
            tunnel: config.vxlan.device.clone(),
            xdp: config.services.xdp,
            netlink,
            expedite,
            attachment: None,
            loaded: None,
            found: BTreeMap::new(),
            unable_to_pace: BTreeSet::new(),
            none: Programs::new(),
        })
    }

    /// Attaches so, without finding out whether the kernel can do better.
    pub fn with_attachment(mut self, attachment: Option<Attachment>) -> Self {
        self.attachment = attachment;
        self
    }

    /// Loads another object than the one in this binary.
    pub fn with_object(mut self, object: &'static [u8]) -> Self {
        self.object = object;
        self
    }

    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    fn programs(&self) -> &Programs {
        self.loaded.as_ref().map_or(&self.none, |loaded| &loaded.programs)
    }

    fn map(&mut self, name: &str) -> Result<Option<&Map>, KernelError> {
        let spec = maps::spec(name)?;
        if let Some(loaded) = &self.loaded {
            return Ok(loaded.maps.get(spec.name));
        }
        match self.found.entry(spec.name) {
            Entry::Occupied(entry) => Ok(Some(entry.into_mut())),
            Entry::Vacant(entry) => Ok(maps::open(&self.pins, spec)?.map(|map| &*entry.insert(map))),
        }
    }

    fn existing_map(&mut self, table: Table) -> Result<&Map, KernelError> {
        self.map(table.name())?.ok_or_else(|| {
            KernelError::new(
                format!("write map {}", table.name()),
                "the maps have not been created yet",
            )
        })
    }

    fn tables(&mut self, wanted: &Tables, scope: Scope) -> Result<Tables, KernelError> {
        let mut tables = Tables::default();
        for table in Table::ALL.iter().copied().filter(|table| table.is_compared()) {
            let Some(map) = self.map(table.name())? else {
                continue;
            };
            let mut malformed = Ok(());
            let mut take = |key: &[u8], value: &[u8]| {
                let absent = table.is_array() && is_vacant(value);
                if !absent && let Err(error) = tables.insert(table, key, value) {
                    malformed = Err(error);
                }
            };
            match scope {
                Scope::Whole => map.for_each(&mut take)?,
                Scope::Keys => {
                    for (key, _) in wanted.entries(table) {
                        if let Some(value) = map.get(&key)? {
                            take(&key, &value);
                        }
                    }
                }
            }
            malformed.map_err(|error| KernelError::new(format!("read map {}", table.name()), error))?;
        }
        Ok(tables)
    }

    fn observe_now(&mut self, wanted: &Desired, scope: Scope) -> Result<Observed, KernelError> {
        let observed = Observed {
            config: self.loaded.as_ref().map(|loaded| loaded.config),
            tables: self.tables(&wanted.tables, scope)?,
            vxlan: self.vxlan(wanted, scope)?,
            veths: self.veths(wanted, scope)?,
            links: self.links(wanted, scope)?,
            sockets: self.sockets(scope)?,
            routes: self.routes(wanted, scope)?,
            neighbours: self.neighbours(wanted)?,
            pacing: self.pacing(wanted)?,
            sysctls: read_sysctls(wanted)?,
        };
        if scope == Scope::Whole {
            self.settle(&observed)?;
        }
        Ok(observed)
    }

    fn sockets(&self, scope: Scope) -> Result<SocketPrograms, KernelError> {
        let none = sockets::Programs::new();
        let programs = self.loaded.as_ref().map_or(&none, |loaded| &loaded.sockets);
        match scope {
            Scope::Whole => sockets::observe(&self.pins, &self.cgroup, programs),
            Scope::Keys => Ok(SocketPrograms::Absent),
        }
    }

    fn attach_sockets(&self) -> Result<(), KernelError> {
        let none = sockets::Programs::new();
        let programs = self.loaded.as_ref().map_or(&none, |loaded| &loaded.sockets);
        sockets::attach(&self.pins, &self.cgroup, programs)
    }

    fn release_sockets(&self) -> Result<(), KernelError> {
        let Some(loaded) = self.loaded.as_ref().filter(|loaded| !loaded.sockets.is_empty()) else {
            return Ok(());
        };
        let map = |name| loaded.maps.get(name);
        let (Some(sockets), Some(services), Some(backends)) =
            (map("sockets"), map("services"), map("backends"))
        else {
            return Ok(());
        };
        let maps = sockets::Maps {
            sockets,
            services,
            backends,
        };
        let count = sockets::release(&maps)?;
        if count > 0 {
            tracing::info!(
                count,
                "connected datagram sockets were told that their backend is gone"
            );
        }
        Ok(())
    }

    fn vxlan(&mut self, wanted: &Desired, scope: Scope) -> Result<Option<Vxlan>, KernelError> {
        if scope == Scope::Keys && wanted.vxlan.is_none() {
            return Ok(None);
        }
        devices::vxlan(&mut self.netlink, &self.tunnel)
            .map_err(|error| KernelError::new(format!("read device {}", self.tunnel), error))
    }

    fn routes(
        &mut self,
        wanted: &Desired,
        scope: Scope,
    ) -> Result<BTreeMap<RouteKey, HostRoute>, KernelError> {
        if scope == Scope::Keys && wanted.routes.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut routes =
            routes::list(&mut self.netlink).map_err(|error| KernelError::new("list the routes", error))?;
        if scope == Scope::Keys {
            routes.retain(|key, _| wanted.routes.contains_key(key));
        }
        Ok(routes)
    }

    fn pacing(&mut self, wanted: &Desired) -> Result<BTreeSet<u32>, KernelError> {
        if wanted.pacing.is_empty() {
            return Ok(BTreeSet::new());
        }
        let pacing = devices::pacing(&mut self.netlink)
            .map_err(|error| KernelError::new("list the queueing disciplines", error))?;
        Ok(&pacing | &self.unable_to_pace)
    }

    /// Not being able to is no failure: limits are policed then.
    fn pace(&mut self, ifindex: u32) {
        if let Err(error) = devices::pace(&mut self.netlink, ifindex) {
            tracing::info!(ifindex, %error, "no fq on this device; what pods send above their limits is dropped");
            self.unable_to_pace.insert(ifindex);
        }
    }

    /// Maps are replaced for good once no live link runs an old program.
    fn settle(&mut self, observed: &Observed) -> Result<(), KernelError> {
        let all_current = observed
            .links
            .values()
            .all(|link| link.ifindex == 0 || link.current)
            && observed.sockets != SocketPrograms::Partial;
        match &mut self.loaded {
            Some(loaded) if all_current && !loaded.is_settled() => loaded.settle(),
            _ => Ok(()),
        }
    }

    fn veths(
        &mut self,
        wanted: &Desired,
        scope: Scope,
    ) -> Result<BTreeMap<String, crate::desired::VethState>, KernelError> {
        let mut names = wanted.veths.keys();
        let only: Option<&mut dyn Iterator<Item = &String>> = match scope {
            Scope::Whole => None,
            Scope::Keys => Some(&mut names),
        };
        devices::veths(&mut self.netlink, only)
            .map_err(|error| KernelError::new("list the devices of pods", error))
    }

    fn links(
        &mut self,
        wanted: &Desired,
        scope: Scope,
    ) -> Result<BTreeMap<LinkKey, crate::desired::LinkState>, KernelError> {
        let programs = self.loaded.as_ref().map_or(&self.none, |loaded| &loaded.programs);
        match scope {
            Scope::Whole => links::list(&self.pins, &mut self.netlink, programs),
            Scope::Keys => links::find(&self.pins, &mut self.netlink, programs, &wanted.links),
        }
    }

    fn neighbours(
        &mut self,
        wanted: &Desired,
    ) -> Result<BTreeMap<crate::desired::NeighbourKey, [u8; 6]>, KernelError> {
        let mut neighbours = BTreeMap::new();
        for key in wanted.neighbours.keys() {
            let mac = routes::neighbour(&mut self.netlink, key)
                .map_err(|error| KernelError::new(format!("read neighbour {}", key.ip), error))?;
            if let Some(mac) = mac {
                neighbours.insert(*key, mac);
            }
        }
        Ok(neighbours)
    }

    fn load(&mut self, constants: Constants) -> Result<(), KernelError> {
        let loaded = loader::load(self.object, &self.pins, constants, &self.sizes)?;
        self.loaded = Some(loaded);
        self.found.clear();
        Ok(())
    }

    /// What fails here fails again, and is told, when it is a change of its own.
    fn keep_up(&mut self) {
        if let Some(Err(error)) = self.loaded.as_mut().map(Loaded::keep_up) {
            tracing::debug!(%error, "maps do not keep up with old programs");
        }
    }

    fn attach(&mut self, key: &LinkKey, ifindex: u32) -> Result<(), KernelError> {
        let tc = match self.attachment {
            Some(mode) => mode,
            None => *self.attachment.insert(links::probe()?),
        };
        let programs = self.loaded.as_ref().map_or(&self.none, |loaded| &loaded.programs);
        let program = programs.get(&key.program).ok_or_else(|| {
            KernelError::new(format!("attach {key}"), "the programs have not been loaded yet")
        })?;
        let ways = links::Ways { tc, xdp: self.xdp };
        links::attach(&self.pins, &mut self.netlink, ways, program, key, ifindex)
    }

    /// Filters need none; what ends with one otherwise is a matter of tcx.
    fn ends_with_a_grace_period(&self, change: &Change) -> bool {
        self.attachment != Some(Attachment::Clsact)
            && matches!(
                change,
                Change::Attach { .. } | Change::Detach(_) | Change::RemoveVeth(_)
            )
    }

    fn apply_now(&mut self, change: &Change) -> Result<(), KernelError> {
        let failed = |error: io::Error| KernelError::new(change.to_string(), error);
        let expedited = self
            .ends_with_a_grace_period(change)
            .then(|| self.expedite.begin());
        if matches!(expedited, Some(Some(_))) {
            super::fault::while_expedited();
        }
        match change {
            Change::Load(constants) => self.load(*constants),
            Change::SetVxlan(vxlan) => devices::set_vxlan(&mut self.netlink, vxlan),
            Change::RemoveVxlan(name) | Change::RemoveVeth(name) => {
                devices::remove(&mut self.netlink, name).map_err(failed)
            }
            Change::SetSysctl { path, value } => set_sysctl(&self.proc_sys, path, value),
            Change::Put { table, key, value } => self.existing_map(*table)?.put(key, value),
            Change::Delete { table, key } => self.existing_map(*table)?.remove_all([key]).map(drop),
            Change::PutAll { table, keys, values } => self.existing_map(*table)?.put_packed(keys, values),
            Change::DeleteAll { table, keys } => self.existing_map(*table)?.remove_packed(keys),
            Change::Attach { link, ifindex } => {
                self.keep_up();
                self.attach(link, *ifindex)
            }
            Change::CarryOver => self.loaded.as_mut().map_or(Ok(()), Loaded::catch_up),
            Change::Detach(link) => links::detach(&self.pins, &mut self.netlink, link),
            Change::AttachSockets => {
                self.keep_up();
                self.attach_sockets()
            }
            Change::DetachSockets => sockets::detach(&self.pins).map(drop).map_err(failed),
            Change::ReleaseSockets => self.release_sockets(),
            Change::RaiseVeth { name, ifindex } => devices::raise(&mut self.netlink, name, *ifindex),
            Change::SetRoute { key, route } => routes::set(&mut self.netlink, key, route),
            Change::RemoveRoute(key) => routes::remove(&mut self.netlink, key).map_err(failed),
            Change::Pace(ifindex) => {
                self.pace(*ifindex);
                Ok(())
            }
            Change::SetNeighbour { key, mac } => {
                routes::set_neighbour(&mut self.netlink, key, *mac).map_err(failed)
            }
        }
    }

    /// Ids of the programs that this process has loaded.
    pub fn program_ids(&self) -> BTreeMap<crate::desired::Program, u32> {
        self.programs()
            .iter()
            .map(|(program, loaded)| (*program, loaded.id()))
            .collect()
    }
}

impl Kernel for Linux {
    async fn observe(&mut self, wanted: &Desired, scope: Scope) -> Result<Observed, KernelError> {
        self.observe_now(wanted, scope)
    }

    async fn scan(
        &mut self,
        table: Table,
        each: &mut (dyn FnMut(&[u8], &[u8]) + Send),
    ) -> Result<(), KernelError> {
        match self.map(table.name())? {
            Some(map) => map.for_each(each),
            None => Ok(()),
        }
    }

    async fn apply(&mut self, change: &Change) -> Result<(), KernelError> {
        super::fault::before_change();
        self.apply_now(change)
    }
}

/// What is read belongs to the reader's network namespace, and any mount will do.
const PROC_SYS: &str = "/proc/sys";

fn sysctl_path(root: &Path, path: &str) -> Option<PathBuf> {
    let safe = !path
        .split('/')
        .any(|part| part.is_empty() || part == "." || part == "..");
    safe.then(|| root.join(path))
}

/// The wanted settings as they are. One that does not exist (a device that has just gone) is left out.
fn read_sysctls(wanted: &Desired) -> Result<BTreeMap<String, String>, KernelError> {
    let mut found = BTreeMap::new();
    for path in wanted.sysctls.keys() {
        if let Some(value) = read_sysctl(path)? {
            found.insert(path.clone(), value);
        }
    }
    Ok(found)
}

/// The value of a setting; `None` if there is no such setting.
pub(super) fn read_sysctl(path: &str) -> Result<Option<String>, KernelError> {
    let Some(file) = sysctl_path(Path::new(PROC_SYS), path) else {
        return Err(KernelError::new(
            format!("read sysctl {path}"),
            "not a path below /proc/sys",
        ));
    };
    match fs::read_to_string(file) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(KernelError::new(format!("read sysctl {path}"), error)),
    }
}

fn set_sysctl(root: &Path, path: &str, value: &str) -> Result<(), KernelError> {
    let action = || format!("set sysctl {path} to {value}");
    let Some(file) = sysctl_path(root, path) else {
        return Err(KernelError::new(action(), "not a path below /proc/sys"));
    };
    fs::write(file, value).map_err(|error| {
        let remedy = match error.raw_os_error() {
            Some(libc::EROFS) => format!(
                "{} is read-only here: set `{}={value}` on the host (/etc/sysctl.d), or mount the host's /proc/sys/net and name it by paths.procSys",
                root.display(),
                path.replace('/', ".")
            ),
            Some(libc::EACCES | libc::EPERM) => "run the agent as root with CAP_NET_ADMIN".to_owned(),
            _ => String::new(),
        };
        KernelError::new(action(), error).with_remedy(remedy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_paths_stay_below_proc_sys() {
        let root = Path::new("/host/proc/sys");
        assert!(sysctl_path(root, "net/ipv4/conf/eth0.1/rp_filter").is_some());
        for path in ["../etc/passwd", "/net", "net//x", "net/./x", ""] {
            assert_eq!(sysctl_path(root, path), None, "{path}");
        }
        assert_eq!(read_sysctl("net/ipv4/no_such_setting").unwrap(), None);
    }
}
