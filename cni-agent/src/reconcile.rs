//! From what is to what should be: compare, order, apply, try again.

mod apply;
mod change;
mod diff;
mod retry;

pub use apply::{Failure, Outcome, Reconciler};
pub use change::{Change, Group};
pub use diff::{Removals, diff};
pub use retry::Retry;
