//! What is seen from outside: health, readiness, metrics, events.
//!
//! Reads the kernel and the agent's [`Status`](crate::status::Status), writes neither.

pub mod admin;
pub mod counters;
pub mod event;
pub mod health;
pub mod http;
pub mod metrics;
pub mod ports;
pub mod ring;
pub mod tables;
