//! Whether clients stay with their endpoints as time goes by.

use std::{collections::BTreeSet, thread, time::Duration};

use super::cases::{ANY, SAME};

/// Asks several Services so many times, with so much time between: chance gives all of them their endpoint again seldom.
pub(super) fn rounds(number: u8, pause: Duration, ask: impl Fn() -> Vec<String>) -> String {
    let mut heard: Vec<BTreeSet<String>> = ask().into_iter().map(|said| [said].into()).collect();
    for _ in 1..number {
        thread::sleep(pause);
        for (heard, said) in heard.iter_mut().zip(ask()) {
            heard.insert(said);
        }
    }
    let failed = heard.iter().flatten().find(|said| !said.contains(" sees "));
    let stays = if heard.iter().all(|said| said.len() == 1) {
        SAME
    } else {
        ANY
    };
    failed.cloned().unwrap_or_else(|| stays.to_owned())
}
