//! Whether what is known is in the kernel, and how long it took. Controllers note the time by the clock on the wall, so
//! this is measured by it; nothing is decided by it.

use std::time::{Duration, Instant, SystemTime};

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

#[derive(Debug)]
pub struct Progress {
    behind_since: Option<Instant>,
    synced: Option<SystemTime>,
    first: Option<Duration>,
    latency: Histogram,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            behind_since: None,
            synced: None,
            first: None,
            // A millisecond to two minutes.
            latency: Histogram::new(exponential_buckets(0.001, 2.0, 18)),
        }
    }
}

impl Progress {
    /// Seconds from what made endpoints change to their being in the kernel.
    pub fn latency(&self) -> &Histogram {
        &self.latency
    }

    /// `None`: everything that is known is in the kernel.
    pub fn behind_since(&self) -> Option<Instant> {
        self.behind_since
    }

    /// When everything that was known was last in the kernel.
    pub fn synced(&self) -> Option<SystemTime> {
        self.synced
    }

    /// From everything being known to all of it being in the kernel, when this agent began.
    pub fn first(&self) -> Option<Duration> {
        self.first
    }

    pub fn began(&mut self, took: Duration) {
        self.first.get_or_insert(took);
    }

    pub fn failed(&mut self) {
        self.behind_since.get_or_insert_with(Instant::now);
    }

    /// Everything is in the kernel.
    pub fn succeeded(&mut self) {
        self.behind_since = None;
        self.synced = Some(SystemTime::now());
    }

    /// Changes with these causes are.
    pub fn written(&mut self, causes: &[SystemTime]) {
        let now = SystemTime::now();
        // A clock of another machine may be ahead.
        let waited = causes.iter().filter_map(|cause| now.duration_since(*cause).ok());
        waited.for_each(|waited| self.latency.observe(waited.as_secs_f64()));
        if self.behind_since.is_none() {
            self.synced = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn svc_62_latency_is_measured_from_what_the_controller_noted() {
        let mut progress = Progress::default();
        let now = SystemTime::now();
        progress.written(&[now - Duration::from_secs(3), now + Duration::from_secs(600)]);
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register("latency", "", progress.latency().clone());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(
            text.contains("latency_count 1\n"),
            "one of them lies ahead of us: {text}"
        );
        assert!(text.contains("latency_bucket{le=\"2.048\"} 0"), "{text}");
        assert!(text.contains("latency_bucket{le=\"4.096\"} 1"), "{text}");
        progress.failed();
        let since = progress.behind_since();
        progress.failed();
        assert_eq!(progress.behind_since(), since, "the first failure counts");
        progress.succeeded();
        assert_eq!(progress.behind_since(), None);
    }
}
