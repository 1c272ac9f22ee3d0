//! Millrace packet path.
