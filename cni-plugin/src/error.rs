//! CNI errors as the specification words them: a code, a message, details.

use serde::{Deserialize, Serialize};

/// The error codes of the specification, and the plugin's own from 100.
pub mod code {
    /// The configuration's `cniVersion` is not one of ours.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field of the configuration asks for something that is not supported.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is unknown: the runtime need not call DEL.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A `CNI_*` variable is missing or malformed.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// A read, a write or a kernel call failed.
    pub const IO: u32 = 5;
    /// Something is not the JSON that it should be.
    pub const DECODE: u32 = 6;
    /// The network configuration is invalid.
    pub const INVALID_CONFIG: u32 = 7;
    /// `CNI_NETNS` is the namespace that the plugin itself runs in.
    pub const NETNS_IS_OWN: u32 = 8;
    /// A passing condition: the runtime should try again later.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// ADD cannot be served now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// ADD cannot be served now, and pods that are already connected may be impaired.
    pub const NOT_AVAILABLE_IMPAIRED: u32 = 51;
    /// CHECK found the attachment to differ from what ADD made.
    pub const CHECK_FAILED: u32 = 100;
    /// The interface named by `CNI_IFNAME` is there already.
    pub const INTERFACE_EXISTS: u32 = 101;
    /// No address is left in the pool, or the one asked for is taken.
    pub const NO_ADDRESS: u32 = 102;
    /// Parts of a clean-up failed; the details list them.
    pub const INCOMPLETE_CLEANUP: u32 = 103;
    /// The delegated IPAM plugin could not be run or failed without saying why.
    pub const IPAM_FAILED: u32 = 104;
    /// The other side broke the RPC protocol.
    pub const PROTOCOL: u32 = 105;
    /// A defect of the plugin.
    pub const INTERNAL: u32 = 999;
}

/// An error as the plugin prints it and as the agent answers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}{sep}{details} (code {code})", sep = if .details.is_empty() { "" } else { ": " })]
pub struct CniError {
    pub code: u32,
    pub msg: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl CniError {
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    pub fn with_details(mut self, details: impl ToString) -> Self {
        self.details = details.to_string();
        self
    }
}
