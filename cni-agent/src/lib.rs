//! The agent of Millrace.
//!
//! Data flows one way: [sources](model::Source) say [events](model::Event), the [`state`] has one owner, [`compile`]
//! makes of it what is [desired], and [`reconcile`] compares that with what the [`kernel`] holds.

pub mod agent;
pub mod capabilities;
pub mod cli;
pub mod compile;
pub mod config;
pub mod conflist;
pub mod desired;
pub mod ipam;
pub mod kernel;
pub mod ledger;
pub mod memory;
pub mod model;
pub mod observe;
pub mod reconcile;
pub mod services;
pub mod source;
pub mod state;
pub mod status;
