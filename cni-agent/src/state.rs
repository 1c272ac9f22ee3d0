//! What is known of the world. One task owns it; nobody else changes it.

mod named;
mod nodes;
mod pods;
mod services;
mod shared;

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
};

use cni_ebpf::{abi, datapath::policy::FROM_HOST};
use cni_plugin::Attachment;

use crate::model::{
    ClusterSettings, Device, Endpoint, Event, Kind, Namespace, Object, ObjectKey, Phase, ServiceCidr,
    ServiceProblem, Source, is_pod_device,
};

pub use nodes::Nodes;
pub use pods::{PodChanges, Pods};
pub use services::{ServiceChanges, Services, of_host_ports};

/// Everything that sources have said, and this node's endpoints.
#[derive(Debug)]
pub struct State {
    /// The sources that must have spoken before anything is changed.
    sources: BTreeSet<Source>,
    pub nodes: Nodes,
    pub namespaces: BTreeMap<String, Namespace>,
    pub pods: Pods,
    pub service_cidrs: BTreeMap<String, ServiceCidr>,
    pub services: Services,
    pub settings: BTreeMap<String, ClusterSettings>,
    /// Without those of pods.
    pub devices: Vec<Device>,
    pod_devices: BTreeSet<String>,
    pub endpoints: BTreeMap<u32, Endpoint>,
    synced: BTreeSet<Source>,
    recalled: bool,
    problems: BTreeMap<Source, Vec<String>>,
    /// Services whose objects cannot be read.
    pub unread: Vec<ServiceProblem>,
    revision: u64,
}

impl State {
    /// Knows nothing yet, and waits for these sources.
    pub fn new(sources: impl IntoIterator<Item = Source>) -> Self {
        Self {
            sources: sources.into_iter().collect(),
            nodes: Nodes::default(),
            namespaces: BTreeMap::new(),
            pods: Pods::default(),
            service_cidrs: BTreeMap::new(),
            services: Services::default(),
            settings: BTreeMap::new(),
            devices: Vec::new(),
            pod_devices: BTreeSet::new(),
            endpoints: BTreeMap::new(),
            synced: BTreeSet::new(),
            recalled: false,
            problems: BTreeMap::new(),
            unread: Vec::new(),
            revision: 0,
        }
    }

    /// Takes an event in. True if anything that is compiled as a whole may be different now; [`Services`] and [`Pods`]
    /// tell by themselves.
    pub fn handle(&mut self, event: Event) -> bool {
        let objects = matches!(event, Event::Set(_) | Event::Gone(_) | Event::Only(..));
        let changed = match event {
            Event::Set(object) => self.set(object),
            Event::Gone(key) => self.remove(&key),
            Event::Only(kind, keys) => self.retain(kind, &keys),
            Event::Devices(devices) => self.set_devices(devices),
            Event::Disturbed => true,
            // Also when nothing else changed: from now on things may be deleted.
            Event::Synced(source) => self.synced.insert(source),
            Event::Problems(source, problems) => {
                self.problems.insert(source, problems);
                false
            }
            Event::Unread(services) => {
                self.unread = services;
                false
            }
        };
        self.revision += u64::from(objects && changed);
        changed
    }

    /// Pods' own devices come and go all the time, and nothing follows from them, except from the loss of one.
    fn set_devices(&mut self, devices: Vec<Device>) -> bool {
        let (pods, devices): (Vec<Device>, Vec<Device>) = devices
            .into_iter()
            .partition(|device| is_pod_device(&device.name));
        let seen: BTreeSet<String> = pods.into_iter().map(|device| device.name).collect();
        let lost = self.programmed().any(|endpoint| {
            let name = endpoint.host_ifname();
            self.pod_devices.contains(&name) && !seen.contains(&name)
        });
        let changed = self.devices != devices;
        self.devices = devices;
        self.pod_devices = seen;
        changed || lost
    }

    fn set(&mut self, object: Object) -> bool {
        fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V) -> bool {
            if map.get(&key) == Some(&value) {
                return false;
            }
            map.insert(key, value);
            true
        }
        match object {
            Object::Node(node) => self.nodes.set(node),
            Object::Namespace(namespace) => put(&mut self.namespaces, namespace.name.clone(), namespace),
            Object::ServiceCidr(ranges) => put(&mut self.service_cidrs, ranges.name.clone(), ranges),
            Object::Settings(settings) => put(&mut self.settings, settings.name.clone(), settings),
            Object::Pod(pod) => {
                self.services.set_host_ports(&pod);
                self.pods.set(pod);
                false
            }
            Object::Service(service) => {
                self.services.set(*service);
                false
            }
            Object::EndpointSlice(slice) => {
                self.services.set_slice(slice);
                false
            }
        }
    }

    fn remove(&mut self, key: &ObjectKey) -> bool {
        match key {
            ObjectKey::Node(name) => self.nodes.remove(name),
            ObjectKey::Namespace(name) => self.namespaces.remove(name).is_some(),
            ObjectKey::ServiceCidr(name) => self.service_cidrs.remove(name).is_some(),
            ObjectKey::Settings(name) => self.settings.remove(name).is_some(),
            ObjectKey::Pod(name) => {
                self.services.remove_host_ports(name);
                self.pods.remove(name);
                false
            }
            ObjectKey::Service(name) => {
                self.services.remove(name);
                false
            }
            ObjectKey::EndpointSlice(name) => {
                self.services.remove_slice(name);
                false
            }
        }
    }

    /// Removes what went away while nobody looked.
    fn retain(&mut self, kind: Kind, keys: &BTreeSet<ObjectKey>) -> bool {
        fn known<K: Clone, V>(map: &BTreeMap<K, V>, key: fn(K) -> ObjectKey) -> Vec<ObjectKey> {
            map.keys().cloned().map(key).collect()
        }
        let known = match kind {
            Kind::Node => self.nodes.names().cloned().map(ObjectKey::Node).collect(),
            Kind::Namespace => known(&self.namespaces, ObjectKey::Namespace),
            Kind::ServiceCidr => known(&self.service_cidrs, ObjectKey::ServiceCidr),
            Kind::Settings => known(&self.settings, ObjectKey::Settings),
            Kind::Pod => {
                let gone = self
                    .pods
                    .retain(|name| keys.contains(&ObjectKey::Pod(name.clone())));
                gone.iter().for_each(|name| self.services.remove_host_ports(name));
                return false;
            }
            Kind::Service => {
                self.services
                    .retain(|name| keys.contains(&ObjectKey::Service(name.clone())));
                return false;
            }
            Kind::EndpointSlice => {
                self.services
                    .retain_slices(|name| keys.contains(&ObjectKey::EndpointSlice(name.clone())));
                return false;
            }
        };
        let gone = known.iter().filter(|key| !keys.contains(key));
        gone.filter(|key| self.remove(key)).count() > 0
    }

    /// Another one whenever an object is, those apart that tell by themselves.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn is_synced(&self, source: Source) -> bool {
        self.synced.contains(&source)
    }

    /// The sources that have not said all they know.
    pub fn unsynced(&self) -> Vec<Source> {
        self.sources
            .iter()
            .copied()
            .filter(|source| !self.is_synced(*source))
            .collect()
    }

    pub fn sources(&self) -> &BTreeSet<Source> {
        &self.sources
    }

    pub fn problems(&self, source: Source) -> &[String] {
        self.problems.get(&source).map_or(&[], Vec::as_slice)
    }

    /// What the API server said to an earlier agent is known again.
    pub fn recall(&mut self) {
        self.recalled = true;
    }

    pub fn is_recalled(&self) -> bool {
        self.recalled
    }

    /// Whether enough is known to add to the kernel. To remove from it, everything must be: see [`State::unsynced`].
    pub fn is_usable(&self) -> bool {
        let unsynced = self.unsynced();
        unsynced.is_empty() || (self.recalled && unsynced == [Source::Kubernetes])
    }

    /// What all of them say is wrong.
    pub fn all_problems(&self) -> impl Iterator<Item = &String> {
        self.problems.values().flatten()
    }

    pub fn device(&self, name: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.name == name)
    }

    pub fn endpoint_of(&self, attachment: &Attachment) -> Option<&Endpoint> {
        self.endpoints
            .values()
            .find(|endpoint| endpoint.attachment == *attachment)
    }

    /// The next number behind the last that was given whose place in the kernel is free. `None`: all places are taken.
    pub fn free_id(&self, last: u32) -> Option<u32> {
        let taken: BTreeSet<u32> = self.endpoints.keys().map(|id| abi::Endpoint::slot(*id)).collect();
        let next = |id: &u32| Some(id.checked_add(1).filter(|id| *id != FROM_HOST).unwrap_or(1));
        iter::successors(next(&last), next)
            .take(abi::ENDPOINT_SLOTS as usize + 2)
            .find(|id| !taken.contains(&abi::Endpoint::slot(*id)))
    }

    pub fn programmed(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints
            .values()
            .filter(|endpoint| endpoint.phase != Phase::Reserved)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::model::{HostPort, Node, Pod, PodName, Protocol};

    fn node(name: &str, zone: Option<&str>) -> Object {
        Object::Node(Node {
            name: name.into(),
            zone: zone.map(Into::into),
            ..Node::default()
        })
    }

    #[test]
    fn only_what_differs_counts_as_a_change() {
        let mut state = State::new([]);
        assert!(state.handle(Event::Set(node("a", None))));
        assert!(!state.handle(Event::Set(node("a", None))));
        assert!(state.handle(Event::Set(node("a", Some("z")))));
        assert!(state.handle(Event::Gone(ObjectKey::Node("a".into()))));
        assert!(!state.handle(Event::Gone(ObjectKey::Node("a".into()))));
        assert!(!state.handle(Event::Problems(Source::Files, vec!["bad".into()])));
        assert_eq!(state.problems(Source::Files), ["bad"]);
    }

    #[test]
    fn each_source_syncs_by_itself() {
        let sources = [Source::Kubernetes, Source::Devices, Source::Endpoints];
        let mut state = State::new(sources);
        assert_eq!(state.unsynced(), sources);
        for source in sources {
            assert!(!state.is_synced(source));
            assert!(state.handle(Event::Synced(source)));
            assert!(!state.handle(Event::Synced(source)));
        }
        assert_eq!(state.unsynced(), []);
    }

    #[test]
    fn a_new_list_removes_what_is_not_on_it_of_that_kind_alone() {
        let mut state = State::new([]);
        let namespace = Object::Namespace(Namespace {
            name: "a".into(),
            ..Namespace::default()
        });
        for object in [node("a", None), node("b", None), namespace] {
            state.handle(Event::Set(object));
        }
        let only = |names: &[&str]| {
            let keys = names.iter().map(|name| ObjectKey::Node((*name).into()));
            Event::Only(Kind::Node, keys.collect())
        };
        assert!(!state.handle(only(&["a", "b"])));
        assert!(state.handle(only(&["b"])));
        assert_eq!(state.nodes.names().collect::<Vec<_>>(), ["b"]);
        assert_eq!(state.namespaces.len(), 1);
    }

    #[test]
    fn a_pod_that_a_new_list_has_no_longer_leaves_no_host_port() {
        let mut state = State::new([]);
        let pod = Pod {
            name: PodName {
                namespace: "a".into(),
                name: "p".into(),
            },
            addresses: vec![IpAddr::from([10, 1, 0, 2])].into(),
            host_ports: vec![HostPort {
                address: None,
                protocol: Protocol::Tcp,
                port: 80,
                container_port: 8080,
            }],
            ..Pod::default()
        };
        state.handle(Event::Set(Object::Pod(pod)));
        assert_eq!(state.services.names().count(), 1);
        state.handle(Event::Only(Kind::Pod, BTreeSet::new()));
        assert_eq!(state.services.names().count(), 0);
    }

    #[test]
    fn numbers_wrap_and_skip_what_is_in_use() {
        let state = State::new([]);
        assert_eq!(state.free_id(0), Some(1));
        assert_eq!(state.free_id(u32::MAX), Some(1));
        assert_eq!(
            state.free_id(FROM_HOST - 1),
            Some(1),
            "the host's own number in flows"
        );
    }
}
