//! Services in the kernel: which numbers they and their backends have, which rows that makes, and what to change when one
//! of them does.
//!
//! What stands in the maps is remembered here, in little memory, so that one changed Service costs its own rows and no
//! look at a hundred thousand others; an [audit] compares it with the kernel from time to time. Numbers are read back
//! from the maps by the next agent, so that a restart changes no row.

pub mod audit;
mod blocks;
mod book;
mod numbers;
mod pending;
mod progress;
pub mod recovered;
mod room;
mod rows;

pub use blocks::Block;
pub use book::{Answer, Back, Book, Clients, Description, Front, Summary, Troubles};
pub use numbers::Numbers;
pub use pending::Pending;
pub use progress::Progress;
pub use recovered::Recovered;
pub use room::{Capacity, Counts};
pub use rows::{Edits, Keys, Rows};
