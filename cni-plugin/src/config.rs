//! The network configuration on stdin.
//!
//! Keys of ours beside those of the specification:
//!
//! | key | meaning | default |
//! |---|---|---|
//! | `agentSocket` | the agent's socket | `/run/millrace/agent.sock` |
//! | `agentTimeout` | seconds that one call may wait for the agent | 60; at most 15 for DEL, 5 for STATUS |
//! | `stateDir` | where deletions are queued while the agent is down | `/var/lib/millrace` |
//! | `rcuExpedited` | the kernel's switch for quick grace periods, see [`crate::expedite`]; empty: not touched | `/sys/kernel/rcu_expedited` |
//! | `viaStack` | pods' packets pass the host's stack, for later plugins that act there (`portmap`, `bandwidth`) | `false` |
//! | `mtu` | the pod's MTU instead of the agent's | |
//! | `ipam` | an IPAM plugin to delegate to; without it the agent allocates | |
//! | `logLevel` | `error`, `warn`, `info`, `debug` or `trace`, on stderr | `warn` |
//!
//! Of the capabilities, `ips`, `mac` and `bandwidth` are served. `portMappings` is refused with its remedy: the
//! `portmap` plugin after us, and `viaStack`. An Ethernet address is to be set by `mac`: where a later plugin changes
//! it, the kernel forgets the permanent neighbours of the interface, which are the pod's gateways, and CHECK says so.
//!
//! Unknown keys are not an error, because the specification lets a runtime or a user add some, and plugins in the
//! field ignore them. A key that is nearly one of ours is refused at ADD all the same: `viastack` would lose its
//! effect in silence. DEL reads only what it needs, so that no edit can keep a container from being removed.

mod request;
mod spelling;

use crate::{
    AGENT_SOCKET, Attachment, CniError, STATE_DIR, SpecVersion, code,
    environment::is_identifier,
    expedite::{Expedite, RCU_EXPEDITED},
    result::AddResult,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::{path::PathBuf, time::Duration};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// A configuration whose version, name and paths have been checked. The rest is checked where it is used.
#[derive(Clone, Debug)]
pub struct Config {
    pub version: SpecVersion,
    pub name: String,
    pub agent_socket: PathBuf,
    pub state_dir: PathBuf,
    agent_timeout: Option<Duration>,
    fields: Map<String, Value>,
}

/// The `ipam` section, as far as it concerns us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipam {
    /// The plugin's file name.
    pub plugin: String,
}

impl Config {
    pub fn parse(stdin: &[u8]) -> Result<Self, CniError> {
        let fields: Map<String, Value> = serde_json::from_slice(stdin).map_err(|error| {
            CniError::new(
                code::DECODE,
                "the network configuration on stdin is not a JSON object",
            )
            .with_details(error)
        })?;
        let version = SpecVersion::of_config(read::<String>(&fields, "cniVersion")?.as_deref())?;
        let name: String = read(&fields, "name")?
            .ok_or_else(|| invalid("name", "is missing; every network needs a name"))?;
        if !is_identifier(&name) {
            let rule = "must begin with a letter or digit and go on with letters, digits, `_`, `.` or `-`";
            return Err(invalid("name", &format!("is \"{name}\"; it {rule}")));
        }
        let seconds: Option<u32> = read(&fields, "agentTimeout")?;
        if seconds == Some(0) {
            return Err(invalid(
                "agentTimeout",
                "is 0; give the seconds to wait for the agent",
            ));
        }
        Ok(Self {
            version,
            name,
            agent_socket: path(&fields, "agentSocket", AGENT_SOCKET)?,
            state_dir: path(&fields, "stateDir", STATE_DIR)?,
            agent_timeout: seconds.map(|seconds| Duration::from_secs(seconds.into())),
            fields,
        })
    }

    /// How long one call may wait for the agent, where it should not wait longer than `most` by default.
    pub fn timeout(&self, most: Duration) -> Duration {
        self.agent_timeout.unwrap_or(DEFAULT_TIMEOUT.min(most))
    }

    /// The kernel's switch for quick grace periods.
    pub fn expedite(&self) -> Result<Expedite, CniError> {
        let switch: Option<PathBuf> = self.field("rcuExpedited")?;
        let switch = switch.unwrap_or_else(|| RCU_EXPEDITED.into());
        if !switch.as_os_str().is_empty() && !switch.is_absolute() {
            return Err(invalid("rcuExpedited", "must be an absolute path, or empty"));
        }
        Ok(Expedite::new(&switch, &self.agent_socket))
    }

    /// A key's value; `null` and absence are the same.
    fn field<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, CniError> {
        read(&self.fields, key)
    }

    /// The result of the plugins before us, or of the ADD that a CHECK is about.
    pub fn previous_result(&self) -> Result<Option<AddResult>, CniError> {
        self.field("prevResult")?
            .map(|value| AddResult::parse(value, "prevResult"))
            .transpose()
    }

    /// The delegated IPAM plugin. An empty section means none, as in the reference plugins.
    pub fn ipam(&self) -> Result<Option<Ipam>, CniError> {
        #[derive(Deserialize)]
        struct Section {
            #[serde(default, rename = "type")]
            plugin: String,
        }
        let section: Option<Section> = self.field("ipam")?;
        let Some(plugin) = section
            .map(|section| section.plugin)
            .filter(|plugin| !plugin.is_empty())
        else {
            return Ok(None);
        };
        // A name with a slash would run any program on the host as root.
        if plugin.contains('/') || plugin.contains("..") || plugin.contains('\0') {
            return Err(invalid(
                "ipam.type",
                &format!("is \"{plugin}\"; give the bare file name of an IPAM plugin"),
            ));
        }
        Ok(Some(Ipam { plugin }))
    }

    /// The attachments that a GC must keep. An absent list is not an empty one: it would collect everything.
    pub fn valid_attachments(&self) -> Result<Vec<Attachment>, CniError> {
        // Early texts of 1.1 named the second key, and runtimes may send either.
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            if let Some(list) = self.field(key)? {
                return Ok(list);
            }
        }
        Err(invalid(
            "cni.dev/valid-attachments",
            "is missing; without it nothing is collected",
        ))
    }

    /// The `dns` section, which goes into the result.
    pub fn dns(&self) -> Option<Value> {
        self.fields
            .get("dns")
            .filter(|dns| dns.as_object().is_some_and(|dns| !dns.is_empty()))
            .cloned()
    }

    /// What to log; anything but a known word is the default, for logging never fails a call.
    pub fn log_level(&self) -> Option<&str> {
        self.fields.get("logLevel").and_then(Value::as_str)
    }
}

fn read<T: DeserializeOwned>(fields: &Map<String, Value>, key: &str) -> Result<Option<T>, CniError> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => T::deserialize(value)
            .map(Some)
            .map_err(|error| invalid(key, &format!("is wrong: {error}"))),
    }
}

fn path(fields: &Map<String, Value>, key: &str, default: &str) -> Result<PathBuf, CniError> {
    let path = read(fields, key)?.unwrap_or_else(|| PathBuf::from(default));
    match path.is_absolute() {
        true => Ok(path),
        false => Err(invalid(key, "must be an absolute path")),
    }
}

fn invalid(key: &str, problem: &str) -> CniError {
    CniError::new(code::INVALID_CONFIG, "invalid network configuration")
        .with_details(format!("`{key}` {problem}"))
}

#[cfg(test)]
mod tests;
