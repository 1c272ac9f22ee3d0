//! The conversation between the plugin and the agent, over the agent's unix socket.
//!
//! A message is a big-endian `u32` length and that many bytes of JSON: an object with the protocol `version`, and
//! either `op` (a request) or `result` (a response) beside the fields of that operation. The plugin asks, the
//! agent answers, one response to each request, in order.
//!
//! **One connection carries one ADD.** `allocate` reserves the endpoint, the plugin then makes the veth pair, and
//! `program` makes the agent write the endpoint, its policy included, into the kernel; the plugin raises the host's end,
//! prints its result and says `finish`. When the connection ends before that, the plugin is dead and the agent undoes
//! everything; if the agent has ended too, its successor does, by [`crate::underway`]. When the plugin itself fails, it
//! sends `release` on the same connection, so that the undoing is over before the runtime hears of the failure.
//!
//! **A plugin one version older or newer works.** Each side ignores fields that it does not know, has a default for
//! every field that was not in version 1, and answers an operation that it does not know with an error instead of
//! closing the connection. [`ACCEPTED_VERSIONS`] is what the agent serves.
//!
//! | request | answer | |
//! |---|---|---|
//! | [`Request::Allocate`] | [`Response::Allocated`] | replaces an earlier allocation for the same attachment |
//! | [`Request::Program`] | [`Response::Done`] | only when all of the endpoint is in the kernel |
//! | [`Request::Finish`] | [`Response::Done`] | at once; an agent that does not know it undoes nothing after `program` |
//! | [`Request::Release`] | [`Response::Done`] | also for an endpoint that the agent does not know |
//! | [`Request::Check`] | [`Response::Checked`] | the endpoint as the agent has it |
//! | [`Request::Status`] | [`Response::Done`] | ready for ADD; otherwise an error with code 50 or 51 |
//! | [`Request::Gc`] | [`Response::Collected`] | what was released |
//!
//! Any of them may be answered by [`Response::Failed`], whose code and texts the runtime gets to see.
//!
//! What the plugin relies on the agent for:
//!
//! - `allocated` names the host's end as [`crate::host_ifname`] does, or DEL could not find it.
//! - An `allocate` for an attachment that it knows takes the old endpoint out of the kernel first.
//! - A pair whose host end bears such a name and which belongs to no endpoint is what a killed ADD left: the agent
//!   removes it when it starts, and also the endpoints whose pair is gone.
//! - It listens before it reads [`crate::queue`], replays the queue before it answers anything, and reads it again
//!   from time to time, for a `release` that it was too slow to answer is queued as well.

mod client;
mod codec;
mod message;

pub use client::Client;
pub use codec::{CodecError, MAX_MESSAGE, receive, send};
#[cfg(feature = "tokio")]
pub use codec::{receive_async, send_async};
pub use message::{
    Allocate, Allocated, Bandwidth, Check, Checked, Collected, Finish, Gc, Message, Pod, Program, Release,
    Request, Response, Route, Shaping, Status,
};

/// The version of the protocol that this build speaks.
pub const VERSION: u32 = if cfg!(feature = "next-layout") { 2 } else { 1 };

/// The versions that this build understands: its own and both neighbours'.
pub const ACCEPTED_VERSIONS: std::ops::RangeInclusive<u32> = VERSION.saturating_sub(1)..=VERSION + 1;

#[cfg(test)]
mod tests;
