//! What is shipped: the image, the manifests, the chart. All of it as a user gets it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on panics"
)]

mod chart;
mod dashboard;
mod image;
mod manifests;
