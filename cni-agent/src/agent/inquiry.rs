//! What people and metrics ask about Services.

use std::collections::{BTreeMap, BTreeSet};

use super::Agent;
use crate::{
    config::Proxy, kernel::Kernel, model::NamespacedName, observe::admin::Inquiry, services::Description,
};

impl<K: Kernel> Agent<K> {
    pub(super) fn tell_of_services(&self, inquiry: Inquiry) {
        match inquiry {
            Inquiry::Describe { name, reply } => _ = reply.send(self.describe_services(&name)),
            // It has been told that nobody waits.
            Inquiry::Owners { reply, .. } if reply.is_closed() => {}
            Inquiry::Owners { numbers, reply } => _ = reply.send(self.services.book.owners(&numbers)),
        }
    }

    /// Those that are served, and those that should be and cannot be read. Whoever names one is told also of those that
    /// nobody serves here.
    fn describe_services(&self, wanted: &str) -> Vec<Description> {
        let unread = self.state.unread.iter();
        let mut unread: BTreeMap<&NamespacedName, &str> = unread
            .filter(|one| one.service.is_wanted(wanted))
            .map(|one| (&one.service, one.text.as_str()))
            .collect();
        let mut all = self.services.book.describe(wanted);
        for one in &mut all {
            let service = self.state.services.get(&one.name);
            one.source_ranges = service.map_or_else(Vec::new, |service| service.source_ranges.to_vec());
            // Its last good version is served.
            one.problems.extend(unread.remove(&one.name).map(str::to_owned));
        }
        if !wanted.is_empty() {
            let served: BTreeSet<NamespacedName> = all.iter().map(|one| one.name.clone()).collect();
            let is_left_out = |name: &NamespacedName| {
                name.is_wanted(wanted) && !served.contains(name) && !unread.contains_key(name)
            };
            let names = self.state.services.names().filter(|name| is_left_out(name));
            all.extend(names.map(|name| Description::unserved(name, self.why_unserved(name))));
        }
        let unread = unread.into_iter();
        all.extend(
            unread.map(|(name, text)| Description::unserved(name, format!("it cannot be read: {text}"))),
        );
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    fn why_unserved(&self, name: &NamespacedName) -> String {
        let service = self.state.services.get(name);
        if let Some(unserved) = service.and_then(|service| service.unserved.as_ref()) {
            return format!("it is {unserved}");
        }
        if self.config.services.proxy != Proxy::Millrace {
            return "another proxy serves Services on this node (services.proxy: stack)".to_owned();
        }
        if !self.services.begun() {
            return "the agent has not begun to serve; see `millrace status`".to_owned();
        }
        "it asks for nothing that this node has: see its ports, addresses and families".to_owned()
    }
}
