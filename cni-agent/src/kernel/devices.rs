//! The host's devices: listed, watched, and the two kinds that are Millrace's own.

mod list;
mod own;
mod pacing;
mod watch;

pub use list::list;
pub use own::{is_tunnel, raise, remove, set_vxlan, veths, vxlan};
pub use pacing::{pace, pacing, stop_pacing};
pub use watch::Watch;

pub use crate::model::is_pod_device;
