//! Inputs. Each translates what it hears into the agent's vocabulary and decides nothing.

pub mod file;
pub mod k8s;
mod object;
pub mod plugin;
