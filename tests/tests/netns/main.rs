#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on panics"
)]
//! Nodes and pods as network namespaces, the real agent, the real plugin, real sockets.

mod matrix;
