//! Services and their endpoints, and which of them have changed since somebody asked.
//!
//! They are kept apart from the rest of the state: a hundred thousand endpoints must not be compiled anew because one pod
//! became ready, and a change of one Service must cost what that Service costs.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use super::shared::Shared;
use crate::model::{EndpointSlice, Hints, NamespacedName, Pod, Service};

#[derive(Debug, Default)]
pub struct Services {
    services: BTreeMap<NamespacedName, Service>,
    slices: BTreeMap<NamespacedName, EndpointSlice>,
    /// Pods with ports of their node, under names that no Service has.
    host_ports: BTreeMap<NamespacedName, Pod>,
    /// The names of each Service's slices.
    of_service: BTreeMap<NamespacedName, BTreeSet<Box<str>>>,
    /// One copy of what a hundred thousand endpoints say.
    nodes: Shared<str>,
    hints: Shared<Hints>,
    /// With the moment that led to the first of its changes.
    changed: BTreeMap<NamespacedName, Option<SystemTime>>,
}

impl Services {
    pub(super) fn set(&mut self, service: Service) {
        if self.services.get(&service.name) == Some(&service) {
            return;
        }
        self.changed.entry(service.name.clone()).or_default();
        self.services.insert(service.name.clone(), service);
    }

    pub(super) fn remove(&mut self, name: &NamespacedName) {
        if self.services.remove(name).is_some() {
            self.changed.entry(name.clone()).or_default();
        }
    }

    pub(super) fn set_host_ports(&mut self, pod: &Pod) {
        if pod.host_ports.is_empty() || pod.addresses.is_empty() || pod.finished {
            return self.remove_host_ports(&pod.name);
        }
        let name = host_ports_of(&pod.name);
        if self.host_ports.get(&name) != Some(pod) {
            self.changed.entry(name.clone()).or_default();
            self.host_ports.insert(name, pod.clone());
        }
    }

    pub(super) fn remove_host_ports(&mut self, pod: &NamespacedName) {
        // Few pods have any.
        if self.host_ports.is_empty() {
            return;
        }
        let name = host_ports_of(pod);
        if self.host_ports.remove(&name).is_some() {
            self.changed.entry(name).or_default();
        }
    }

    pub(super) fn set_slice(&mut self, mut slice: EndpointSlice) {
        self.share(&mut slice);
        let before = self.slices.get(&slice.name);
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
        let name = slice.name.clone();
        if before.is_some_and(|before| before.service != slice.service) {
            self.remove_slice(&name);
        }
        let owner = owner(&slice);
        self.of_service
            .entry(owner.clone())
            .or_default()
            .insert(name.name.as_str().into());
        let first = self.changed.entry(owner).or_default();
        *first = match (*first, slice.triggered) {
            (Some(first), Some(then)) => Some(first.min(then)),
            (first, then) => first.or(then),
        };
        self.slices.insert(name, slice);
    }

    pub(super) fn remove_slice(&mut self, name: &NamespacedName) {
        let Some(slice) = self.slices.remove(name) else {
            return;
        };
        let owner = owner(&slice);
        if let Some(names) = self.of_service.get_mut(&owner) {
            names.remove(name.name.as_str());
            if names.is_empty() {
                self.of_service.remove(&owner);
            }
        }
        self.changed.entry(owner).or_default();
    }

    /// Removes what is not among them.
    pub(super) fn retain(&mut self, keep: impl Fn(&NamespacedName) -> bool) {
        let gone: Vec<NamespacedName> = self.services.keys().filter(|name| !keep(name)).cloned().collect();
        gone.iter().for_each(|name| self.remove(name));
    }

    pub(super) fn retain_slices(&mut self, keep: impl Fn(&NamespacedName) -> bool) {
        let gone: Vec<NamespacedName> = self.slices.keys().filter(|name| !keep(name)).cloned().collect();
        gone.iter().for_each(|name| self.remove_slice(name));
        self.nodes.sweep();
        self.hints.sweep();
    }

    /// Endpoints of one node say its name once.
    fn share(&mut self, slice: &mut EndpointSlice) {
        for endpoint in &mut slice.endpoints {
            if let Some(node) = &mut endpoint.node {
                self.nodes.share(node);
            }
            if let Some(hints) = &mut endpoint.hints {
                self.hints.share(hints);
            }
        }
    }

    pub fn get(&self, name: &NamespacedName) -> Option<&Service> {
        self.services.get(name)
    }

    /// A pod by the name that its host ports have here.
    pub fn with_host_ports(&self, name: &NamespacedName) -> Option<&Pod> {
        self.host_ports.get(name)
    }

    /// Of Services, and of pods' host ports.
    pub fn names(&self) -> impl Iterator<Item = &NamespacedName> {
        self.services.keys().chain(self.host_ports.keys())
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
        let names = self.of_service.get(name).into_iter().flatten();
        names.filter_map(|slice| {
            self.slices.get(&NamespacedName {
                namespace: name.namespace.clone(),
                name: slice.to_string(),
            })
        })
    }

    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// What has changed since this was called last.
    pub fn take_changed(&mut self) -> BTreeMap<NamespacedName, Option<SystemTime>> {
        std::mem::take(&mut self.changed)
    }

    /// They are to be looked at again, though they are as they were.
    pub fn touch(&mut self, names: impl IntoIterator<Item = NamespacedName>) {
        for name in names {
            self.changed.entry(name).or_default();
        }
    }
}

fn host_ports_of(pod: &NamespacedName) -> NamespacedName {
    NamespacedName {
        namespace: pod.namespace.clone(),
        name: format!("pod/{}", pod.name),
    }
}

fn owner(slice: &EndpointSlice) -> NamespacedName {
    NamespacedName {
        namespace: slice.name.namespace.clone(),
        name: slice.service.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
            node: Some(node.into()),
            hints: None,
        };
        EndpointSlice {
            name: name(slice),
            service: service.into(),
            endpoints: [endpoint].into(),
            ..EndpointSlice::default()
        }
    }

    fn changed(services: &mut Services) -> Vec<String> {
        services
            .take_changed()
            .into_keys()
            .map(|name| name.name)
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
    fn the_name_of_a_node_is_kept_once() {
        let mut services = Services::default();
        services.set_slice(slice("a", "a", "x"));
        services.set_slice(slice("b", "b", "x"));
        let all: Vec<_> = services
            .slices
            .values()
            .map(|slice| slice.endpoints[0].node.clone().unwrap())
            .collect();
        assert!(Arc::ptr_eq(&all[0], &all[1]));
    }
}
