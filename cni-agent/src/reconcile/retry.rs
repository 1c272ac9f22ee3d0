//! When what failed is tried again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::Group;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
struct Attempt {
    failures: u32,
    next: Instant,
    error: String,
}

/// Back-off of each group by itself: one object that cannot be had does not slow the others down.
#[derive(Debug, Default)]
pub struct Retry {
    failing: BTreeMap<Group, Attempt>,
}

impl Retry {
    pub fn is_due(&self, group: &Group, now: Instant) -> bool {
        self.failing.get(group).is_none_or(|attempt| attempt.next <= now)
    }

    pub fn failed(&mut self, group: Group, error: String, now: Instant) {
        let failures = self.failing.get(&group).map_or(0, |attempt| attempt.failures) + 1;
        let wait = FIRST.saturating_mul(1 << (failures - 1).min(10)).min(LONGEST);
        self.failing.insert(
            group,
            Attempt {
                failures,
                next: now + wait,
                error,
            },
        );
    }

    pub fn succeeded(&mut self, group: &Group) {
        self.failing.remove(group);
    }

    /// Forgets groups that a whole round had nothing to do for: somebody else mended them, or they are not wanted any
    /// more.
    pub fn keep_only(&mut self, wanted: impl Fn(&Group) -> bool) {
        self.failing.retain(|group, _| wanted(group));
    }

    /// When something is due.
    pub fn next(&self) -> Option<Instant> {
        self.failing.values().map(|attempt| attempt.next).min()
    }

    pub fn errors(&self) -> impl Iterator<Item = &str> {
        self.failing.values().map(|attempt| attempt.error.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_end_with_success() {
        let now = Instant::now();
        let mut retry = Retry::default();
        assert!(retry.is_due(&Group::Load, now));
        retry.failed(Group::Load, "no".into(), now);
        assert!(!retry.is_due(&Group::Load, now));
        assert!(retry.is_due(&Group::Vxlan, now), "others do not wait");
        assert!(retry.is_due(&Group::Load, now + FIRST));
        for _ in 0..40 {
            retry.failed(Group::Load, "no".into(), now);
        }
        assert_eq!(retry.next(), Some(now + LONGEST));
        assert_eq!(retry.errors().collect::<Vec<_>>(), ["no"]);
        retry.succeeded(&Group::Load);
        assert_eq!(retry.next(), None);
    }
}
