//! From a file and overrides to settings.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Config, Overrides, Problem};

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("configuration {path}: {cause}; make the file readable or name another one with --config", path = .path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    /// The text names the line, the key, and for an unknown key those that are known.
    #[error("configuration {path}: {text}", path = .path.display())]
    Malformed { path: PathBuf, text: String },
    #[error("configuration: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Problem>),
}

impl Config {
    /// Reads the file, if there is one, and puts the overrides on top. A file that was not named explicitly
    /// (`required` is false) may be absent. The result is not yet [checked](Config::check).
    pub fn load(path: &Path, required: bool, overrides: Overrides) -> Result<Self, ConfigError> {
        let mut config = match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|text| ConfigError::Malformed {
                path: path.to_owned(),
                text,
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !required => Self::default(),
            Err(cause) => {
                return Err(ConfigError::Unreadable {
                    path: path.to_owned(),
                    cause,
                });
            }
        };
        config.apply(overrides);
        config.complete();
        Ok(config)
    }

    /// [`Config::load`], and nothing but settings that make sense.
    pub fn load_checked(path: &Path, required: bool, overrides: Overrides) -> Result<Self, ConfigError> {
        let config = Self::load(path, required, overrides)?;
        match config.check() {
            problems if problems.is_empty() => Ok(config),
            problems => Err(ConfigError::Invalid(problems)),
        }
    }

    /// Settings from YAML; an empty text is the default.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.lines().all(|line| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#') || line == "---"
        }) {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    }

    fn apply(&mut self, overrides: Overrides) {
        fn set<T>(place: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *place = value;
            }
        }
        fn set_list<T>(place: &mut Vec<T>, value: Vec<T>) {
            if !value.is_empty() {
                *place = value;
            }
        }
        set(&mut self.node_name, overrides.node_name);
        set(&mut self.families, overrides.families);
        set(&mut self.routing, overrides.routing);
        set_list(&mut self.pod_cidrs, overrides.pod_cidrs);
        set_list(&mut self.devices, overrides.devices);
        set(&mut self.mtu, overrides.mtu);
        set(&mut self.masquerade.enabled, overrides.masquerade);
        set(&mut self.kubernetes.mode, overrides.kubernetes);
        set(&mut self.kubernetes.kubeconfig, overrides.kubeconfig);
        set_list(&mut self.kubernetes.api_servers, overrides.api_servers);
        set(&mut self.paths.bpffs, overrides.bpffs);
        set(&mut self.paths.cgroup, overrides.cgroup);
        set(&mut self.paths.proc_sys, overrides.proc_sys);
        set(&mut self.paths.rcu_expedited, overrides.rcu_expedited);
        set(&mut self.paths.manifests, overrides.manifests);
        set(&mut self.paths.state, overrides.state);
        set(&mut self.paths.agent_socket, overrides.agent_socket);
        set(&mut self.paths.admin_socket, overrides.admin_socket);
        set(&mut self.http, overrides.http);
        set(&mut self.log.format, overrides.log_format);
        set(&mut self.log.filter, overrides.log_filter);
    }

    /// Fills in what only the machine knows.
    fn complete(&mut self) {
        if self.node_name.is_empty()
            && let Ok(name) = nix::unistd::gethostname()
        {
            // As the kubelet does it: Node names are lower case.
            self.node_name = name.to_string_lossy().trim().to_lowercase();
        }
    }
}
