//! Streams of bytes and of decisions, each from one number.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// splitmix64 (Steele, Lea, Flood 2014): a seed is a stream of bytes and of decisions.
#[derive(Clone)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, limit: u64) -> usize {
        usize::try_from(self.next() % limit).unwrap()
    }

    /// Small things mostly, large ones sometimes.
    pub(super) fn size(&mut self) -> usize {
        match self.below(4) {
            0 => 1 + self.below(16),
            1 => 1 + self.below(1000),
            2 => 1 + self.below(20_000),
            _ => 1 + self.below(300_000),
        }
    }

    pub(super) async fn pause(&mut self) {
        match self.below(12) {
            0 => tokio::time::sleep(Duration::from_micros(self.next() % 3000)).await,
            1..4 => tokio::task::yield_now().await,
            _ => {}
        }
    }

    pub(super) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

pub(super) fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let given = std::env::var("POINTSMAN_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let first = given.unwrap_or_else(|| u64::from(now));
    let count = if given.is_some() { 1 } else { count };
    (first..first + count).inspect(|seed| println!("POINTSMAN_SEED={seed}"))
}
