//! From what is to what should be: compare, order, apply, try again.

mod change;

pub use change::Change;
