//! More than anybody asked for, at a steady rate.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

/// Sends `rate` a second while `on`, until `end`; what could not be sent in time is made up for. `send` is told how many have
/// been `sent` before.
pub fn pour(
    rate: u64,
    on: &AtomicBool,
    end: &AtomicBool,
    sent: &AtomicU64,
    mut send: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    let (mut credit, mut last) = (0, Instant::now());
    while !end.load(Ordering::Relaxed) {
        let elapsed = last.elapsed().as_micros() as u64;
        last = Instant::now();
        if on.load(Ordering::Relaxed) {
            credit += elapsed * rate;
            while credit >= 1_000_000 {
                credit -= 1_000_000;
                send(sent.fetch_add(1, Ordering::Relaxed))?;
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
