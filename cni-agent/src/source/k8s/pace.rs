//! Pauses that differ from agent to agent and from time to time: thousands that lost the same server must not come back to
//! it at the same moment.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// From three quarters of a pause to five quarters.
pub(super) fn around(pause: Duration) -> Duration {
    // Each has keys of its own, drawn by chance.
    let chance = RandomState::new().hash_one(0u8) >> 32;
    let share = chance as f64 / f64::from(u32::MAX);
    pause.mul_f64(0.75 + share / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_differ_and_stay_near() {
        let pause = Duration::from_secs(4);
        let all: Vec<Duration> = (0..100).map(|_| around(pause)).collect();
        let (least, most) = (Duration::from_secs(3), Duration::from_secs(5));
        assert!(all.iter().all(|one| (least..=most).contains(one)));
        assert!(all.iter().any(|one| *one < pause) && all.iter().any(|one| *one > pause));
    }
}
