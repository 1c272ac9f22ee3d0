//! One copy of what thousands of objects say.

use std::{collections::BTreeSet, sync::Arc};

#[derive(Debug)]
pub(super) struct Shared<T: ?Sized> {
    all: BTreeSet<Arc<T>>,
    /// How many there may be before those that nobody says any more are looked for.
    room: usize,
}

impl<T: Ord + ?Sized> Shared<T> {
    /// Exchanges a copy for the one that all have.
    pub(super) fn share(&mut self, one: &mut Arc<T>) {
        if let Some(known) = self.all.get::<T>(one) {
            *one = Arc::clone(known);
            return;
        }
        if self.all.len() >= self.room {
            self.sweep();
        }
        self.all.insert(Arc::clone(one));
    }

    /// Forgets what nobody says any more.
    pub(super) fn sweep(&mut self) {
        const LEAST_ROOM: usize = 64;
        self.all.retain(|one| Arc::strong_count(one) > 1);
        self.room = (self.all.len() * 2).max(LEAST_ROOM);
    }
}

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Self {
            all: BTreeSet::new(),
            room: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_says_any_more_is_forgotten_in_time() {
        let mut shared = Shared::<str>::default();
        let (mut first, mut second) = (Arc::from("x"), Arc::from("x"));
        shared.share(&mut first);
        shared.share(&mut second);
        assert!(Arc::ptr_eq(&first, &second));
        for number in 0..10_000 {
            shared.share(&mut number.to_string().into());
        }
        assert!(shared.all.len() <= 65, "{}", shared.all.len());
        shared.share(&mut second);
        assert!(Arc::ptr_eq(&first, &second));
    }
}
