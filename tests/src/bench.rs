//! What the benches stand on: rounds in which contenders take turns, load over real sockets, and the report.

pub mod cluster;
pub mod command;
pub mod load;
pub mod program;
pub mod reference;
pub mod report;
pub mod series;

pub use command::Command;
pub use report::{ROUNDS, Report};
