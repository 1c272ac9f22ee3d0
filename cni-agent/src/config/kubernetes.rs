//! The API server: whether there is one, and how it is reached.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::check::Problems;

/// Where a pod finds what its ServiceAccount is.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct KubernetesConfig {
    pub mode: KubernetesMode,
    /// Servers, certificates and credentials in a file. Empty: those of the pod's ServiceAccount.
    pub kubeconfig: PathBuf,
    /// `https://ADDRESS:PORT` of each API server, tried in this order, before whatever else is known.
    pub api_servers: Vec<String>,
    /// Certificates that sign the servers'. Empty: the kubeconfig's or the ServiceAccount's.
    pub ca_file: PathBuf,
    /// Read again every minute. Empty: the kubeconfig's or the ServiceAccount's.
    pub token_file: PathBuf,
    /// The name that must stand in the servers' certificates. Empty: the address that was dialled.
    pub tls_server_name: String,
    /// The key of a taint that is taken off this node when it can serve pods. Empty: none is.
    pub startup_taint: String,
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        Self {
            mode: KubernetesMode::default(),
            kubeconfig: PathBuf::new(),
            api_servers: Vec::new(),
            ca_file: PathBuf::new(),
            token_file: PathBuf::new(),
            tls_server_name: String::new(),
            startup_taint: "millrace.dev/agent-not-ready".to_owned(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KubernetesMode {
    /// With an API server if the settings or the pod's environment name one.
    #[default]
    Auto,
    Enabled,
    /// The folder of manifests says what the cluster is.
    Disabled,
}

impl KubernetesConfig {
    pub fn is_enabled(&self) -> bool {
        match self.mode {
            KubernetesMode::Enabled => true,
            KubernetesMode::Disabled => false,
            KubernetesMode::Auto => self.names_a_server() || service_address().is_some(),
        }
    }

    fn names_a_server(&self) -> bool {
        !self.kubeconfig.as_os_str().is_empty() || !self.api_servers.is_empty()
    }

    /// The file of the token where no kubeconfig has one.
    pub fn token_path(&self) -> PathBuf {
        or_service_account(&self.token_file, "token")
    }

    /// The file of the certificates where no kubeconfig has one.
    pub fn ca_path(&self) -> PathBuf {
        or_service_account(&self.ca_file, "ca.crt")
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        for url in &self.api_servers {
            let https = url
                .strip_prefix("https://")
                .is_some_and(|rest| !rest.is_empty() && !rest.contains(['/', ' ']));
            if !https {
                problems.add(
                    "kubernetes.apiServers",
                    format!("`{url}` is not the address of an API server"),
                    "write it like https://192.0.2.1:6443 or https://[2001:db8::1]:6443",
                );
            }
        }
        for (key, path) in [
            ("kubernetes.kubeconfig", &self.kubeconfig),
            ("kubernetes.caFile", &self.ca_file),
            ("kubernetes.tokenFile", &self.token_file),
        ] {
            if !path.as_os_str().is_empty() && path.is_relative() {
                problems.add(
                    key,
                    format!("{} is relative", path.display()),
                    "begin it with a slash",
                );
            }
        }
        if self.mode == KubernetesMode::Enabled && !self.names_a_server() && service_address().is_none() {
            problems.add(
                "kubernetes.mode",
                "it is enabled, and nothing names an API server",
                "set kubernetes.apiServers or kubernetes.kubeconfig, or run the agent in a pod",
            );
        }
    }
}

fn or_service_account(path: &std::path::Path, file: &str) -> PathBuf {
    if path.as_os_str().is_empty() {
        PathBuf::from(SERVICE_ACCOUNT).join(file)
    } else {
        path.to_owned()
    }
}

/// The URL of the API server's Service, in a pod. It needs somebody who serves Services.
pub fn service_address() -> Option<String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let host = variable("KUBERNETES_SERVICE_HOST")?;
    let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
    Some(if host.contains(':') {
        format!("https://[{host}]:{port}")
    } else {
        format!("https://{host}:{port}")
    })
}
