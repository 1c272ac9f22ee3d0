//! The real kube-proxy, on a host of its own whose pods the reference plugin `ptp` attaches.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::{
    Loader,
    objects::{NODES, Object},
    watched::Watched,
};
use crate::{
    bench::reference::Reference,
    lab::{
        ControlPlane, Lab,
        kube_proxy::{self, Mode},
    },
};

const LAST_SYNC: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";

/// Ends with this value.
#[derive(Debug)]
pub struct KubeProxy {
    proxy: kube_proxy::KubeProxy,
    pub host: Reference,
    pub mode: Mode,
}

impl KubeProxy {
    pub fn start(lab: &Lab, control: &ControlPlane, mode: Mode) -> Result<Self> {
        let word = mode.word();
        let host = Reference::ptp(&format!("{}-{word}", lab.name()))?;
        let number = mode as u8;
        lab.admit(&host.namespace, number)?;
        let kubeconfig = control.folder().join("admin.kubeconfig");
        let name = format!("peer-{word}");
        // It waits for its own.
        let node = Object {
            collection: NODES,
            body: json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "status": {"addresses": [{"type": "InternalIP", "address": format!("198.18.{number}.2")}]},
            }),
        };
        Loader::new(&lab.fabric, &kubeconfig)?.create("Node", vec![node])?;
        let proxy = kube_proxy::KubeProxy::start(lab, control, &host.namespace, &name, mode, "10.64.0.0/10")?;
        Ok(Self { host, mode, proxy })
    }

    pub fn watched(&self) -> Watched<'_> {
        Watched {
            name: self.mode.name(),
            process: self.proxy.process(),
            inside: &self.host.namespace,
            device: "eth0",
        }
    }

    /// Waits until everything that it knew is in the kernel for the first time. False: not in this time.
    pub fn wait_until_programmed(&self, patience: Duration) -> Result<bool> {
        let begin = Instant::now();
        while self.proxy.metric(LAST_SYNC)? == 0.0 {
            self.proxy.check()?;
            if begin.elapsed() > patience {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(true)
    }

    /// Waits until it has nothing to do for two seconds. False: not in this time.
    pub fn wait_until_quiet(&self, patience: Duration) -> Result<bool> {
        const STILL: Duration = Duration::from_secs(2);
        let begin = Instant::now();
        let mut last = (begin, self.proxy.metric(LAST_SYNC)?, self.watched().sample()?);
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let synced = self.proxy.metric(LAST_SYNC)?;
            let busy = self.watched().rates(&last.2)?.cpu > 20.0;
            if synced != last.1 || busy {
                last = (Instant::now(), synced, self.watched().sample()?);
            } else if last.0.elapsed() > STILL {
                return Ok(true);
            }
            if begin.elapsed() > patience {
                return Ok(false);
            }
        }
    }

    /// Seconds that its first look at everything took, by its own clock.
    pub fn full_sync(&self) -> Result<f64> {
        self.proxy
            .metric("kubeproxy_sync_full_proxy_rules_duration_seconds_sum")
    }

    pub fn log(&self) -> String {
        self.proxy.log()
    }
}
