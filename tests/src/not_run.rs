//! Tests that this machine cannot run. A file of its own, because the tests of other packages take it in by its path.
#![allow(unreachable_pub, reason = "in those nobody reaches it")]

use std::{
    io::{self, Write},
    thread,
};

/// `cargo xtask test` reads it and counts the test as skipped.
pub const NOT_RUN: &str = "NOT RUN";

/// A missing privilege or program: a failure under `CI=true`; elsewhere the test says that it was not run, and why.
pub fn cannot_run(why: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "this machine cannot run the test: {why}"
    );
    say(NOT_RUN, why);
}

/// Says that this thread's test was not run, in these words.
pub fn say(words: &str, why: &str) {
    let this = thread::current();
    let test = this.name().unwrap_or("a test");
    // An error's backtrace is no reason.
    let why = why.lines().next().unwrap_or_default();
    // By itself, because what a test prints is kept back when it passes. Nobody reads it: nobody is told.
    let _ = writeln!(io::stdout().lock(), "{words}: {test}: {why}");
}
