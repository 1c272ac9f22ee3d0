//! Where the API servers are, as the cluster itself says, and as it said when it was last heard.
//!
//! Who serves the address of the Service `kubernetes` may be us: then nothing can be asked there before we know the
//! cluster. So the servers behind it are remembered on disk.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
};

use futures_util::StreamExt;
use http::Uri;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};

use super::{desk::Resource, fault, watch::Office};

pub(super) const ENDPOINT_SLICES: Resource = "endpointslices";
const OF_KUBERNETES: &str = "kubernetes.io/service-name=kubernetes";

/// The servers of the last time, on disk.
#[derive(Debug)]
pub(super) struct Memory(PathBuf);

impl Memory {
    pub(super) fn new(state: &Path) -> Self {
        Self(state.join("api-servers.json"))
    }

    /// None are known rather than wrong ones.
    pub(super) fn read(&self) -> Vec<Uri> {
        let urls = match fs::read(&self.0) {
            Ok(text) => serde_json::from_slice::<Vec<String>>(&text).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        };
        let urls = urls.unwrap_or_else(|error| {
            tracing::warn!(file = %self.0.display(), %error, "the API servers of the last time are not readable");
            Vec::new()
        });
        urls.iter().filter_map(|url| url.parse().ok()).collect()
    }

    fn write(&self, urls: &[Uri]) -> io::Result<()> {
        let urls: Vec<String> = urls.iter().map(ToString::to_string).collect();
        let aside = self.0.with_extension("tmp");
        fs::write(&aside, serde_json::to_vec_pretty(&urls)?)?;
        fs::rename(aside, &self.0)
    }
}

/// Follows the endpoints of the Service `kubernetes`.
pub(super) async fn follow(office: Office, memory: Memory) {
    let desk = Arc::clone(&office.desk);
    let client = office.servers.client(move || desk.fine(ENDPOINT_SLICES));
    let api = Api::<EndpointSlice>::namespaced(client, "default");
    let config = watcher::Config::default().labels(OF_KUBERNETES);
    let mut stream = pin!(watcher(api, config).default_backoff());
    // One slice a family.
    let mut slices = BTreeMap::new();
    let mut listing = false;
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => {
                slices.clear();
                listing = true;
            }
            Ok(watcher::Event::InitDone) => listing = false,
            Ok(watcher::Event::InitApply(slice) | watcher::Event::Apply(slice)) => {
                slices.insert(slice.name_any(), servers(&slice));
            }
            Ok(watcher::Event::Delete(slice)) => {
                slices.remove(&slice.name_any());
            }
            Err(error) => {
                if let Some(text) = fault::of_watch(ENDPOINT_SLICES, &error) {
                    office.desk.fault(ENDPOINT_SLICES, text);
                }
                continue;
            }
        }
        let urls: Vec<Uri> = slices.values().flatten().cloned().collect();
        // A cluster without an API server would not have said so.
        if listing || urls.is_empty() {
            continue;
        }
        if let Err(error) = office.servers.learn(&urls) {
            tracing::warn!(%error, "the API servers that the cluster names cannot be used");
        }
        if memory.read() != urls
            && let Err(error) = memory.write(&urls)
        {
            tracing::warn!(%error, "the API servers could not be written to disk");
        }
    }
}

fn servers(slice: &EndpointSlice) -> Vec<Uri> {
    let ports = slice.ports.iter().flatten();
    let https = ports
        .filter(|port| port.name.as_deref() == Some("https"))
        .find_map(|port| u16::try_from(port.port?).ok());
    let Some(port) = https else { return Vec::new() };
    let addresses = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
    addresses
        .filter_map(|text| text.parse::<IpAddr>().ok())
        .filter_map(|ip| format!("https://{}", SocketAddr::new(ip, port)).parse().ok())
        .collect()
}
