//! What the cluster's own settings make of the node's.

use super::{Config, Problem, ServicesConfig};
use crate::model::{ClusterSettings, Labels, ServiceSettings, Settings};

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
            services,
        } = settings;
        set(&mut self.routing, routing);
        set(&mut self.mtu, mtu);
        set(&mut self.masquerade.enabled, masquerade);
        set(&mut self.masquerade.non_masquerade_cidrs, non_masquerade_cidrs);
        self.services.follow(services);
    }
}

impl ServicesConfig {
    fn follow(&mut self, settings: &ServiceSettings) {
        let ServiceSettings {
            cidrs,
            via_stack_cidrs,
            node_port_addresses,
            localhost_node_ports,
            external_ips,
            masquerade_all,
            algorithm,
            maglev_table_size,
            mode,
        } = settings;
        set(&mut self.cidrs, cidrs);
        set(&mut self.via_stack_cidrs, via_stack_cidrs);
        set(&mut self.node_port_addresses, node_port_addresses);
        set(&mut self.localhost_node_ports, localhost_node_ports);
        set(&mut self.external_ips, external_ips);
        set(&mut self.masquerade_all, masquerade_all);
        set(&mut self.algorithm, algorithm);
        set(&mut self.maglev_table_size, maglev_table_size);
        set(&mut self.mode, mode);
    }
}

fn set<T: Clone>(field: &mut T, wish: &Option<T>) {
    if let Some(wish) = wish {
        field.clone_from(wish);
    }
}
