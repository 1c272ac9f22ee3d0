//! What is found by the name that it bears, without a copy of the name.

use std::{borrow::Borrow, cmp::Ordering, ops::Deref};

use crate::model::{EndpointSlice, NamespacedName, Pod, Service};

pub(super) trait Bears {
    fn name(&self) -> &NamespacedName;
}

impl Bears for Pod {
    fn name(&self) -> &NamespacedName {
        &self.name
    }
}

impl Bears for Service {
    fn name(&self) -> &NamespacedName {
        &self.name
    }
}

impl Bears for EndpointSlice {
    fn name(&self) -> &NamespacedName {
        &self.name
    }
}

/// Compared by the name alone.
#[derive(Debug)]
pub(super) struct Named<P>(pub(super) P);

impl<P: Deref<Target: Bears>> Borrow<NamespacedName> for Named<P> {
    fn borrow(&self) -> &NamespacedName {
        self.0.name()
    }
}

impl<P: Deref<Target: Bears>> PartialEq for Named<P> {
    fn eq(&self, other: &Self) -> bool {
        self.0.name() == other.0.name()
    }
}

impl<P: Deref<Target: Bears>> Eq for Named<P> {}

impl<P: Deref<Target: Bears>> PartialOrd for Named<P> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<P: Deref<Target: Bears>> Ord for Named<P> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.name().cmp(other.0.name())
    }
}
