//! What is found by the name that it bears, without a copy of the name.

use std::{borrow::Borrow, cmp::Ordering, ops::Deref, sync::Arc};

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

/// Adds one to those in the order of their names, in place of the one that has its name.
pub(super) fn join<T: Bears>(all: &mut Box<[Arc<T>]>, one: Arc<T>) {
    leave(all, one.name());
    let mut new = std::mem::take(all).into_vec();
    new.insert(new.partition_point(|other| other.name() < one.name()), one);
    *all = new.into();
}

/// Takes the one with this name away.
pub(super) fn leave<T: Bears>(all: &mut Box<[Arc<T>]>, name: &NamespacedName) {
    let mut left = std::mem::take(all).into_vec();
    left.retain(|one| one.name() != name);
    *all = left.into();
}
