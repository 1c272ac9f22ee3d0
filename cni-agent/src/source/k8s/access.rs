//! How the API server is reached: addresses, certificates, credentials.

use std::path::PathBuf;

use http::Uri;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};

use crate::config::{KubernetesConfig, service_address};

/// In the certificate of every API server that serves a cluster's own pods.
const SERVICE_NAME: &str = "kubernetes.default.svc";

/// Why nothing can be tried at all.
#[derive(Debug, thiserror::Error)]
pub(super) enum AccessError {
    #[error("kubeconfig {path}: {cause}; correct the file, or kubernetes.kubeconfig", path = .path.display())]
    Kubeconfig { path: PathBuf, cause: KubeconfigError },
    #[error("{what} {path}: {cause}; make the file readable, or set kubernetes.{key}", path = .path.display())]
    File {
        what: &'static str,
        key: &'static str,
        path: PathBuf,
        cause: std::io::Error,
    },
    #[error("`{url}` is not the address of an API server; correct kubernetes.apiServers")]
    Address { url: String },
    #[error("no API server is known; set kubernetes.apiServers or kubernetes.kubeconfig")]
    NoServer,
    #[error(
        "certificates or credentials cannot be used: {0}; correct what the kubeconfig or kubernetes.caFile has"
    )]
    Unusable(#[from] kube::Error),
}

/// Certificates and credentials, and the servers that the settings name.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) config: kube::Config,
    /// Tried first.
    pub(super) configured: Vec<Uri>,
    /// Tried last: its address needs somebody who serves Services, which we may be.
    pub(super) service: Option<Uri>,
}

impl Access {
    /// Reads the files that the settings name.
    pub(super) async fn resolve(settings: &KubernetesConfig) -> Result<Self, AccessError> {
        let urls = settings.api_servers.iter();
        let mut configured = urls.map(|url| parse(url)).collect::<Result<Vec<_>, _>>()?;
        let service = service_address().map(|url| parse(&url)).transpose()?;
        let mut config = if settings.kubeconfig.as_os_str().is_empty() {
            let any = configured.first().or(service.as_ref());
            let mut config = kube::Config::new(any.ok_or(AccessError::NoServer)?.clone());
            config.root_cert_file = Some(settings.ca_path());
            config.auth_info.token_file = Some(settings.token_path().display().to_string());
            config
        } else {
            let config = from_kubeconfig(&settings.kubeconfig).await?;
            if !configured.contains(&config.cluster_url) {
                configured.push(config.cluster_url.clone());
            }
            config
        };
        if !settings.ca_file.as_os_str().is_empty() {
            config.root_cert_file = Some(settings.ca_file.clone());
        }
        if !settings.token_file.as_os_str().is_empty() {
            config.auth_info.token_file = Some(settings.token_file.display().to_string());
        }
        if config.root_cert_file.is_some() {
            // The file decides; without this the machine's own trust store would be looked for, which an image has not.
            config.root_cert.get_or_insert_default();
        }
        if !settings.tls_server_name.is_empty() {
            config.tls_server_name = Some(settings.tls_server_name.clone());
        }
        for (what, key, path) in [
            ("the certificates", "caFile", config.root_cert_file.clone()),
            (
                "the token",
                "tokenFile",
                config.auth_info.token_file.clone().map(PathBuf::from),
            ),
        ] {
            if let Some(path) = path {
                std::fs::read(&path).map_err(|cause| AccessError::File {
                    what,
                    key,
                    path,
                    cause,
                })?;
            }
        }
        Ok(Self {
            config,
            configured,
            service,
        })
    }

    /// The same for one server.
    pub(super) fn to(&self, url: &Uri, learned: bool) -> kube::Config {
        let mut config = self.config.clone();
        config.cluster_url = url.clone();
        // Its certificate need not name its address, where everybody comes by a balancer.
        if learned && config.tls_server_name.is_none() {
            config.tls_server_name = Some(SERVICE_NAME.to_owned());
        }
        config
    }
}

async fn from_kubeconfig(path: &std::path::Path) -> Result<kube::Config, AccessError> {
    let fault = |cause| AccessError::Kubeconfig {
        path: path.to_owned(),
        cause,
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(fault)?;
    kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(fault)
}

fn parse(url: &str) -> Result<Uri, AccessError> {
    url.parse()
        .map_err(|_| AccessError::Address { url: url.to_owned() })
}
