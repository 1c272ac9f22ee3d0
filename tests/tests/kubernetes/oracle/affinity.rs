//! Services with affinity that ends soon, and whether clients stay with their endpoints as time goes by.

use std::{
    collections::BTreeSet,
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use super::{
    cases::{ANY, SAME},
    contender::To,
    services::Definition,
};

/// How long an endpoint is a client's after its last connection, and which Services do so: of several, chance gives all
/// of them their endpoint again seldom.
const SHORT: (Range<u8>, Duration) = (150..156, Duration::from_secs(2));
const LONG: (Range<u8>, Duration) = (160..166, Duration::from_secs(10));

pub(super) fn services() -> Vec<Definition> {
    let services = |(numbers, time): (Range<u8>, Duration)| {
        let seconds = time.as_secs() as u32;
        numbers.map(move |number| {
            Definition::new(number, &["a", "b"])
                .node_ports("Cluster")
                .affine(seconds)
        })
    };
    services(SHORT).chain(services(LONG)).collect()
}

/// Asks for longer than the time, but never after so long.
pub(super) fn within(to: &[To], ask: impl Fn(To) -> String) -> String {
    rounds(to, 5, Duration::from_secs(4), LONG.1, ask)
}

/// Asks when the time is over.
pub(super) fn after(to: &[To], ask: impl Fn(To) -> String) -> String {
    rounds(to, 4, Duration::from_secs(3), Duration::MAX, ask)
}

fn rounds(to: &[To], number: u8, pause: Duration, limit: Duration, ask: impl Fn(To) -> String) -> String {
    let begin = Instant::now();
    let mut heard = vec![(begin, BTreeSet::new()); to.len()];
    for round in 0..number {
        if round > 0 {
            thread::sleep(pause);
        }
        for (to, (last, said)) in to.iter().zip(&mut heard) {
            let now = Instant::now();
            let answer = ask(*to);
            // On a busy machine one may come too late, and finds another.
            if last.elapsed() >= limit {
                said.clear();
            }
            *last = now;
            said.insert(answer);
        }
    }
    let mut all = heard.iter().flat_map(|(_, said)| said);
    let stays = heard.iter().all(|(_, said)| said.len() == 1);
    let failed = all.find(|said| !said.contains(" sees "));
    failed.map_or_else(|| if stays { SAME } else { ANY }.to_owned(), String::clone)
}
