//! Services and their endpoints, and which of them have changed since somebody asked.
//!
//! They are kept apart from the rest of the state: a hundred thousand endpoints must not be compiled anew because one pod
//! became ready, and a change of one Service must cost what that Service costs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Deref,
    sync::Arc,
    time::SystemTime,
};

use super::{
    named::{self, Bears, Named},
    shared::Shared,
};
use crate::model::{EndpointSlice, Locality, NamespacedName, Pod, Service};

/// For each Service that has changed the moment that led to the first of its changes.
pub type ServiceChanges = BTreeMap<Arc<NamespacedName>, Option<SystemTime>>;

#[derive(Debug, Default)]
pub struct Services {
    services: BTreeSet<Named<Box<Service>>>,
    slices: BTreeSet<Named<Arc<EndpointSlice>>>,
    /// Pods with ports of their node, under names that no Service has.
    host_ports: BTreeMap<Arc<NamespacedName>, Pod>,
    /// Each Service's slices, in the order of their names.
    of_service: BTreeMap<Arc<NamespacedName>, Box<[Arc<EndpointSlice>]>>,
    /// One copy of namespaces and of what ports are called, and of what a hundred thousand endpoints say.
    words: Shared<str>,
    localities: Shared<Locality>,
    changed: ServiceChanges,
}

impl Services {
    pub(super) fn set(&mut self, mut service: Service) {
        if self.get(&service.name) == Some(&service) {
            return;
        }
        service.name = self.one_name(service.name);
        for port in &mut service.ports {
            self.words.share(&mut port.name);
        }
        self.changed.entry(Arc::clone(&service.name)).or_default();
        self.services.replace(Named(Box::new(service)));
    }

    pub(super) fn remove(&mut self, name: &NamespacedName) {
        if let Some(Named(service)) = self.services.take(name) {
            self.changed.entry(service.name).or_default();
        }
    }

    /// The copy that whoever knows the Service already has.
    fn one_name(&mut self, mut name: Arc<NamespacedName>) -> Arc<NamespacedName> {
        let service = self.services.get(&*name).map(|known| &known.0.name);
        let of_slices = || self.of_service.get_key_value(&*name).map(|(known, _)| known);
        if let Some(known) = service.or_else(of_slices) {
            return Arc::clone(known);
        }
        self.words.share(&mut Arc::make_mut(&mut name).namespace);
        name
    }

    pub(super) fn set_host_ports(&mut self, pod: &Pod) {
        if pod.host_ports.is_empty() || pod.addresses.is_empty() || pod.finished {
            return self.remove_host_ports(&pod.name);
        }
        let name = Arc::new(host_ports_of(&pod.name));
        if self.host_ports.get(&name) != Some(pod) {
            self.changed.entry(Arc::clone(&name)).or_default();
            self.host_ports.insert(name, pod.clone());
        }
    }

    pub(super) fn remove_host_ports(&mut self, pod: &NamespacedName) {
        // Few pods have any.
        if self.host_ports.is_empty() {
            return;
        }
        let name = host_ports_of(pod);
        if let Some((name, _)) = self.host_ports.remove_entry(&name) {
            self.changed.entry(name).or_default();
        }
    }

    pub(super) fn set_slice(&mut self, mut slice: EndpointSlice) {
        // Nobody's: as of a headless Service, of which there may be any number.
        if slice.service.name.is_empty() {
            return self.remove_slice(&slice.name);
        }
        for endpoint in &mut slice.endpoints {
            self.localities.share(&mut endpoint.locality);
        }
        for port in &mut slice.ports {
            self.words.share(&mut port.name);
        }
        let before = self.slices.get(&slice.name).map(|known| &*known.0);
        // What triggered a change that changes nothing is no news.
        if before.is_some_and(|before| {
            before.service == slice.service
                && before.v4 == slice.v4
                && before.ports == slice.ports
                && before.endpoints == slice.endpoints
                && before.refused == slice.refused
        }) {
            return;
        }
        if before.is_some_and(|before| before.service != slice.service) {
            self.remove_slice(&slice.name);
        }
        let owner = self.one_name(slice.service);
        slice.service = Arc::clone(&owner);
        slice.name.namespace = Arc::clone(&owner.namespace);
        let first = self.changed.entry(Arc::clone(&owner)).or_default();
        *first = match (*first, slice.triggered) {
            (Some(first), Some(then)) => Some(first.min(then)),
            (first, then) => first.or(then),
        };
        let slice = Arc::new(slice);
        self.slices.replace(Named(Arc::clone(&slice)));
        named::join(self.of_service.entry(owner).or_default(), slice);
    }

    pub(super) fn remove_slice(&mut self, name: &NamespacedName) {
        let Some(Named(slice)) = self.slices.take(name) else {
            return;
        };
        let owner = Arc::clone(&slice.service);
        if let Some(all) = self.of_service.get_mut(&owner) {
            named::leave(all, name);
            if all.is_empty() {
                self.of_service.remove(&owner);
            }
        }
        self.changed.entry(owner).or_default();
    }

    /// Removes what is not among them.
    pub(super) fn retain(&mut self, keep: impl Fn(&NamespacedName) -> bool) {
        let gone = unwanted(&self.services, keep);
        gone.iter().for_each(|name| self.remove(name));
    }

    pub(super) fn retain_slices(&mut self, keep: impl Fn(&NamespacedName) -> bool) {
        let gone = unwanted(&self.slices, keep);
        gone.iter().for_each(|name| self.remove_slice(name));
        self.words.sweep();
        self.localities.sweep();
    }

    pub fn get(&self, name: &NamespacedName) -> Option<&Service> {
        self.services.get(name).map(|known| &*known.0)
    }

    /// A pod by the name that its host ports have here.
    pub fn with_host_ports(&self, name: &NamespacedName) -> Option<&Pod> {
        self.host_ports.get(name)
    }

    /// Of Services, and of pods' host ports.
    pub fn names(&self) -> impl Iterator<Item = &Arc<NamespacedName>> {
        let services = self.services.iter().map(|known| &known.0.name);
        services.chain(self.host_ports.keys())
    }

    /// Services that name one of these addresses beside their own.
    pub fn that_ask_for(&self, addresses: &BTreeSet<IpAddr>) -> Vec<Arc<NamespacedName>> {
        let asks = |service: &Service| {
            let mut named = service.external_ips.iter().chain(&service.load_balancer_ips);
            named.any(|ip| addresses.contains(ip))
        };
        let all = self.services.iter().map(|known| &known.0);
        all.filter(|service| asks(service))
            .map(|service| Arc::clone(&service.name))
            .collect()
    }

    /// Who comes before whom where two ask for the same.
    pub fn rank(&self, name: &Arc<NamespacedName>) -> (i64, Arc<NamespacedName>) {
        let created = self.get(name).map_or(i64::MAX, |service| service.created);
        (created, Arc::clone(name))
    }

    pub fn len(&self) -> usize {
        self.services.len()
    }

    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    pub fn slice_count(&self) -> usize {
        self.slices.len()
    }

    /// The slices of a Service, in the order of their names.
    pub fn slices_of(&self, name: &NamespacedName) -> impl Iterator<Item = &EndpointSlice> {
        let slices = self.of_service.get(name).into_iter();
        slices.flat_map(|all| all.iter().map(|slice| &**slice))
    }

    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// What has changed since this was called last.
    pub fn take_changed(&mut self) -> ServiceChanges {
        std::mem::take(&mut self.changed)
    }

    /// They are to be looked at again, though they are as they were.
    pub fn touch(&mut self, names: impl IntoIterator<Item = Arc<NamespacedName>>) {
        for name in names {
            self.changed.entry(name).or_default();
        }
    }
}

/// No Service has such a name.
const OF_POD: &str = "pod/";

fn host_ports_of(pod: &NamespacedName) -> NamespacedName {
    NamespacedName {
        namespace: pod.namespace.clone(),
        name: format!("{OF_POD}{}", pod.name),
    }
}

/// The pod whose host ports have this name among Services.
pub fn of_host_ports(name: &str) -> Option<&str> {
    name.strip_prefix(OF_POD)
}

fn unwanted<P: Deref<Target: Bears>>(
    all: &BTreeSet<Named<P>>,
    keep: impl Fn(&NamespacedName) -> bool,
) -> Vec<NamespacedName> {
    let names = all.iter().map(|known| known.0.name());
    names.filter(|name| !keep(name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SliceEndpoint;

    fn name(name: &str) -> NamespacedName {
        NamespacedName {
            namespace: "n".into(),
            name: name.into(),
        }
    }

    fn slice(slice: &str, service: &str, node: &str) -> EndpointSlice {
        let endpoint = SliceEndpoint {
            address: [10, 0, 0, 1].into(),
            ready: true,
            serving: true,
            terminating: false,
            locality: Arc::new(Locality {
                node: Some(node.into()),
                ..Locality::default()
            }),
        };
        EndpointSlice {
            name: name(slice),
            service: Arc::new(name(service)),
            endpoints: [endpoint].into(),
            ..EndpointSlice::default()
        }
    }

    fn changed(services: &mut Services) -> Vec<String> {
        services
            .take_changed()
            .into_keys()
            .map(|name| name.name.clone())
            .collect()
    }

    #[test]
    fn only_the_service_that_is_concerned_has_changed() {
        let mut services = Services::default();
        services.set_slice(slice("a-1", "a", "x"));
        services.set_slice(slice("b-1", "b", "x"));
        assert_eq!(changed(&mut services), ["a", "b"]);
        services.set_slice(slice("a-1", "a", "x"));
        assert!(!services.has_changed(), "nothing is new");
        services.set_slice(slice("a-1", "a", "y"));
        assert_eq!(changed(&mut services), ["a"]);
        services.set_slice(slice("a-1", "b", "y"));
        assert_eq!(changed(&mut services), ["a", "b"], "it moved");
        assert_eq!(services.slices_of(&name("a")).count(), 0);
        assert_eq!(services.slices_of(&name("b")).count(), 2);
        services.retain_slices(|kept| kept.name == "b-1");
        assert_eq!(changed(&mut services), ["b"]);
    }

    #[test]
    fn of_a_slice_that_is_nobodys_nothing_is_kept() {
        let mut services = Services::default();
        let nobodys = EndpointSlice {
            name: name("a-1"),
            ..EndpointSlice::default()
        };
        services.set_slice(nobodys.clone());
        assert!(!services.has_changed() && services.slices.is_empty() && services.of_service.is_empty());
        services.set_slice(slice("a-1", "a", "x"));
        assert_eq!(changed(&mut services), ["a"]);
        services.set_slice(nobodys);
        assert_eq!(changed(&mut services), ["a"], "it was somebody's");
        assert!(services.slices.is_empty() && services.of_service.is_empty());
    }

    #[test]
    fn a_node_that_comes_or_goes_concerns_those_that_ask_for_its_address() {
        let mut services = Services::default();
        let address: IpAddr = [192, 0, 2, 7].into();
        let service = |name: &str, external: &[IpAddr], balancer: &[IpAddr]| Service {
            name: Arc::new(self::name(name)),
            external_ips: external.into(),
            load_balancer_ips: balancer.into(),
            ..Service::default()
        };
        services.set(service("a", &[], &[]));
        services.set(service("b", &[address], &[]));
        services.set(service("c", &[], &[address]));
        let concerned = services.that_ask_for(&BTreeSet::from([address]));
        let names: Vec<_> = concerned.iter().map(|name| name.name.as_str()).collect();
        assert_eq!(names, ["b", "c"]);
    }

    #[test]
    fn where_endpoints_are_is_kept_once() {
        let mut services = Services::default();
        services.set_slice(slice("a", "a", "x"));
        services.set_slice(slice("b", "b", "x"));
        let all: Vec<_> = services
            .slices
            .iter()
            .map(|slice| Arc::clone(&slice.0.endpoints[0].locality))
            .collect();
        assert!(Arc::ptr_eq(&all[0], &all[1]));
    }
}
