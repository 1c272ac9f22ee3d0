//! Inputs. Each translates what it hears into the agent's vocabulary and decides nothing.

pub mod file;
mod inspection;
pub mod k8s;
mod object;
pub mod plugin;
pub mod resolvers;

pub use inspection::inspect;
