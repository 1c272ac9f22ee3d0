//! The cluster's pods: by their names, by their addresses, and which of them are something else than when somebody asked.
//!
//! In a large cluster a pod changes at any moment. Most changes mean nothing to the kernel of this node, and the others
//! mean something to a few addresses: neither may cost a look at all pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    named::{self, Named},
    shared::Shared,
};
use crate::model::{Pod, PodName};

/// For each pod that has changed what it was before; `None`: not there.
pub type PodChanges = BTreeMap<PodName, Option<Arc<Pod>>>;

#[derive(Debug, Default)]
pub struct Pods {
    all: BTreeSet<Named<Arc<Pod>>>,
    /// Those that have an address, in the order of their names. More than one while an address passes on.
    by_address: BTreeMap<IpAddr, Box<[Arc<Pod>]>>,
    changed: PodChanges,
    labels: Shared<str>,
    /// Nodes and namespaces.
    words: Shared<str>,
}

impl Pods {
    pub(super) fn set(&mut self, mut pod: Pod) {
        if self.get(&pod.name) == Some(&pod) {
            return;
        }
        self.labels.share(pod.labels.text());
        self.words.share(&mut pod.node);
        self.words.share(&mut pod.name.namespace);
        let after = Arc::new(pod);
        let before = self.all.replace(Named(Arc::clone(&after)));
        self.exchange(before.map(|named| named.0), Some(after));
    }

    pub(super) fn remove(&mut self, name: &PodName) {
        if let Some(Named(before)) = self.all.take(name) {
            self.exchange(Some(before), None);
        }
    }

    /// Removes what is not among them, and names it.
    pub(super) fn retain(&mut self, keep: impl Fn(&PodName) -> bool) -> Vec<PodName> {
        let names = self.values().map(|pod| &pod.name);
        let gone: Vec<PodName> = names.filter(|name| !keep(name)).cloned().collect();
        gone.iter().for_each(|name| self.remove(name));
        gone
    }

    fn exchange(&mut self, before: Option<Arc<Pod>>, after: Option<Arc<Pod>>) {
        for pod in before.iter().filter(|pod| pod.is_peer()) {
            pod.addresses.iter().for_each(|ip| self.leave(*ip, &pod.name));
        }
        for pod in after.iter().filter(|pod| pod.is_peer()) {
            pod.addresses.iter().for_each(|ip| self.join(*ip, pod));
        }
        let matters = match (&before, &after) {
            (Some(before), Some(after)) => !has_same_effect(before, after),
            _ => true,
        };
        if let Some(pod) = after.as_ref().or(before.as_ref()).filter(|_| matters) {
            self.changed.entry(pod.name.clone()).or_insert(before);
        }
    }

    fn join(&mut self, ip: IpAddr, pod: &Arc<Pod>) {
        named::join(self.by_address.entry(ip).or_default(), Arc::clone(pod));
    }

    fn leave(&mut self, ip: IpAddr, name: &PodName) {
        let Some(there) = self.by_address.get_mut(&ip) else {
            return;
        };
        named::leave(there, name);
        if there.is_empty() {
            self.by_address.remove(&ip);
        }
    }

    pub fn get(&self, name: &PodName) -> Option<&Pod> {
        self.all.get(name).map(|pod| &*pod.0)
    }

    pub fn values(&self) -> impl Iterator<Item = &Pod> {
        self.all.iter().map(|pod| &*pod.0)
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The pods that have this address in the cluster's network, in the order of their names.
    pub fn at(&self, ip: IpAddr) -> &[Arc<Pod>] {
        self.by_address.get(&ip).map_or(&[], |pods| pods)
    }

    /// Every address of a pod, with the pods that have it.
    pub fn by_address(&self) -> impl Iterator<Item = (IpAddr, &[Arc<Pod>])> {
        self.by_address.iter().map(|(ip, pods)| (*ip, &**pods))
    }

    pub fn have_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// What has changed since this was called last, as far as anything may follow from it.
    pub fn take_changed(&mut self) -> PodChanges {
        std::mem::take(&mut self.changed)
    }
}

/// Whether nothing in the kernel can be different. Nothing is chosen by labels, and what an annotation asks for is read
/// when the pod starts.
fn has_same_effect(before: &Pod, after: &Pod) -> bool {
    let fate = |pod: &Pod| (pod.host_network, pod.finished);
    before.addresses == after.addresses
        && before.node == after.node
        && before.uid == after.uid
        && fate(before) == fate(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> PodName {
        PodName {
            namespace: "n".into(),
            name: name.into(),
        }
    }

    fn pod(pod: &str, addresses: &[&str]) -> Pod {
        Pod {
            name: name(pod),
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            node: "x".into(),
            ..Pod::default()
        }
    }

    fn changed(pods: &mut Pods) -> Vec<(String, bool)> {
        let changes = pods.take_changed().into_iter();
        changes
            .map(|(name, before)| (name.name, before.is_some()))
            .collect()
    }

    #[test]
    fn what_means_nothing_to_the_kernel_is_no_change() {
        let mut pods = Pods::default();
        pods.set(pod("a", &["10.0.0.1"]));
        assert_eq!(changed(&mut pods), [("a".to_owned(), false)]);
        let labelled = Pod {
            labels: [("turn".to_owned(), "1".to_owned())].into_iter().collect(),
            ..pod("a", &["10.0.0.1"])
        };
        pods.set(labelled.clone());
        assert!(!pods.have_changed());
        assert_eq!(pods.get(&name("a")), Some(&labelled), "it is kept all the same");
        assert_eq!(pods.at([10, 0, 0, 1].into()), [Arc::new(labelled)]);
        let changes = [
            Pod {
                finished: true,
                ..pod("a", &["10.0.0.1"])
            },
            Pod {
                host_network: true,
                ..pod("a", &["10.0.0.1"])
            },
            Pod {
                node: "y".into(),
                ..pod("a", &["10.0.0.1"])
            },
            Pod {
                uid: "u".into(),
                ..pod("a", &["10.0.0.1"])
            },
            pod("a", &["10.0.0.2"]),
        ];
        for change in changes {
            pods.set(change);
            assert_eq!(changed(&mut pods), [("a".to_owned(), true)]);
        }
        pods.remove(&name("a"));
        pods.remove(&name("b"));
        assert_eq!(changed(&mut pods), [("a".to_owned(), true)]);
        assert_eq!(pods.by_address().count(), 0);
    }

    #[test]
    fn an_address_that_passes_on_is_known_throughout() {
        let ip = [10, 0, 0, 1].into();
        let mut pods = Pods::default();
        let names =
            |pods: &Pods| -> Vec<String> { pods.at(ip).iter().map(|pod| pod.name.name.clone()).collect() };
        pods.set(pod("b", &["10.0.0.1"]));
        pods.set(pod("a", &["10.0.0.1", "10.0.0.2"]));
        assert_eq!(names(&pods), ["a", "b"]);
        pods.set(Pod {
            finished: true,
            ..pod("b", &["10.0.0.1"])
        });
        assert_eq!(names(&pods), ["a"]);
        pods.retain(|kept| kept.name == "b");
        assert_eq!((pods.len(), names(&pods).len()), (1, 0));
    }
}
