//! What the cluster's own settings make of the node's.

use super::{Config, Problem};
use crate::model::{ClusterSettings, Labels, Settings};

impl Config {
    /// The settings of this node in a cluster that has such ones; what is wrong with them, if they make no sense here.
    pub fn following(&self, cluster: &ClusterSettings, labels: &Labels) -> Result<Self, Vec<Problem>> {
        let mut config = self.clone();
        for settings in cluster.of_node(labels) {
            config.follow(settings);
        }
        match config.check() {
            problems if problems.is_empty() => Ok(config),
            problems => Err(problems),
        }
    }

    fn follow(&mut self, settings: &Settings) {
        let Settings {
            routing,
            mtu,
            masquerade,
            non_masquerade_cidrs,
        } = settings;
        self.routing = routing.unwrap_or(self.routing);
        self.mtu = mtu.unwrap_or(self.mtu);
        self.masquerade.enabled = masquerade.unwrap_or(self.masquerade.enabled);
        if let Some(ranges) = non_masquerade_cidrs {
            self.masquerade.non_masquerade_cidrs.clone_from(ranges);
        }
    }
}
