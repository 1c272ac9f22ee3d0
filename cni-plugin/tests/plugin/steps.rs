//! Where the plugin can be made to fail or be ended in the middle of an ADD, in their order (`fault`). A file of its own,
//! because the tests with the real agent take it in by its path.

/// Until the interface is complete.
pub(crate) const WIRING: [&str; 7] = [
    "connected",
    "ipam",
    "allocated",
    "link",
    "pod",
    "programmed",
    "up",
];
/// When the result is printed, and the ADD has not been taken off the list yet.
pub(crate) const PRINTED: &str = "printed";

pub(crate) fn all() -> impl Iterator<Item = &'static str> {
    WIRING.into_iter().chain([PRINTED])
}
