//! Whose a frontend is that more than one Service asks for: the oldest's, and of the same age the first by name; a pod's
//! host ports come behind all Services. So it is the same on every node, in whatever order they hear of them, and nobody
//! takes over what another one had before.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use cni_ebpf::abi::ServiceKey;

use super::{Book, Entry};
use crate::model::NamespacedName;

#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Services that wanted a frontend that a better one has.
    contenders: BTreeMap<ServiceKey, BTreeSet<Arc<NamespacedName>>>,
    /// Services that have to be looked at again: a better one came, or theirs may be the best claim now.
    unsettled: BTreeSet<Arc<NamespacedName>>,
}

impl Book {
    /// Another Service that this frontend belongs to.
    pub(super) fn better_owner(
        &self,
        name: &NamespacedName,
        created: i64,
        key: &ServiceKey,
    ) -> Option<&Arc<NamespacedName>> {
        let owner = self.owners.get(key).filter(|owner| ***owner != *name)?;
        let theirs = self.entries.get(owner)?.created;
        ((theirs, &**owner) < (created, name)).then_some(owner)
    }

    /// Makes the frontend this Service's, or says why not.
    pub(super) fn claim(
        &mut self,
        name: &Arc<NamespacedName>,
        created: i64,
        key: &ServiceKey,
    ) -> Option<String> {
        if let Some(owner) = self.better_owner(name, created, key) {
            let problem = format!(
                "Service {name}: {} port {} is Service {owner}'s: the older one has it, of the same age the first by name, and \
                 Services before host ports of pods; change one of them",
                key.addr, key.port
            );
            let contenders = self.claims.contenders.entry(*key).or_default();
            contenders.insert(Arc::clone(name));
            return Some(problem);
        }
        match self.owners.insert(*key, Arc::clone(name)) {
            Some(owner) if owner != *name => {
                // The row becomes this Service's in one write.
                if let Some(entry) = self.entries.get_mut(&owner) {
                    entry.frontends = entry
                        .frontends
                        .iter()
                        .filter(|(other, _)| other != key)
                        .copied()
                        .collect();
                }
                // Whoever lost it before has lost it to another one now.
                let others = self.claims.contenders.remove(key).unwrap_or_default();
                self.claims.unsettled.extend(others);
                self.claims.unsettled.insert(owner);
            }
            None if self.recovered.sets.contains_key(key) => {
                self.fit.leaving.services = self.fit.leaving.services.saturating_sub(1);
            }
            _ => {}
        }
        None
    }

    /// One that was deleted and made again is younger than it was.
    pub(super) fn reopen(&mut self, old: &Entry, created: i64) {
        if old.created != created {
            let keys = old.frontends.iter().map(|(key, _)| key);
            let contenders = keys.filter_map(|key| self.claims.contenders.remove(key));
            self.claims.unsettled.extend(contenders.flatten());
        }
    }

    /// Who has to be looked at again: those who wait for these frontends, which nobody has any more, who lost one to a
    /// better claim, and who wait for room that there may be now.
    pub fn heirs(&mut self, freed: &[ServiceKey]) -> BTreeSet<Arc<NamespacedName>> {
        let mut heirs = std::mem::take(&mut self.claims.unsettled);
        let contenders = freed.iter().filter_map(|key| self.claims.contenders.remove(key));
        heirs.extend(contenders.flatten());
        heirs.append(&mut self.take_waiting());
        heirs
    }
}
