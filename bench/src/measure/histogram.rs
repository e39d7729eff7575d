//! Latencies in buckets that grow with them: 32 for each power of two, so a quantile is at most 3 % too high.

use std::time::Duration;

const SUB: u32 = 5;
const BUCKETS: usize = (64 - SUB as usize + 1) << SUB;

/// Counts of latencies, in nanoseconds.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0 }
    }
}

/// Numbers below 32 have a bucket each; above, the highest bit and the five below it choose.
fn bucket_of(nanoseconds: u64) -> usize {
    let highest = (nanoseconds | 1).ilog2();
    let shift = highest.saturating_sub(SUB);
    let base = if highest < SUB { 0 } else { u64::from(shift) << SUB };
    usize::try_from(base + (nanoseconds >> shift)).unwrap_or(BUCKETS - 1)
}

/// The largest number of a bucket.
fn upper_end(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let row = bucket >> SUB;
    if row <= 1 {
        return bucket;
    }
    let shift = row - 1;
    let low = (bucket - (shift << SUB)) << shift;
    low + ((1 << shift) - 1)
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(bucket_of(nanoseconds)) {
            *count += 1;
            self.total += 1;
        }
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The latency that the part `quantile` (0 to 1) of all does not exceed; zero when nothing was counted.
    pub fn quantile(&self, quantile: f64) -> Duration {
        let mut left = (quantile * self.total as f64).ceil().max(1.0);
        for (bucket, count) in self.counts.iter().enumerate() {
            left -= *count as f64;
            if left <= 0.0 {
                return Duration::from_nanos(upper_end(bucket));
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_narrow() {
        let mut last = 0;
        for number in (0..5000).chain((1..58).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1])) {
            let end = upper_end(bucket_of(number));
            assert!(end >= number, "{number} is beyond its bucket, which ends at {end}");
            assert!(end - number <= number / 32, "{number} is said to be {end}");
        }
        for bucket in 1..BUCKETS - 64 {
            assert!(upper_end(bucket) > last, "bucket {bucket}");
            last = upper_end(bucket);
            assert_eq!(bucket_of(last), bucket);
        }
    }

    #[test]
    fn quantiles_of_known_numbers() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), Duration::ZERO);
        for microseconds in 1..=1000 {
            histogram.record(Duration::from_micros(microseconds));
        }
        let near = |quantile: f64, wanted: f64| {
            let found = histogram.quantile(quantile).as_nanos() as f64 / 1000.0;
            assert!((wanted..wanted * 1.035).contains(&found), "{quantile}: {found} for {wanted}");
        };
        near(0.5, 500.0);
        near(0.99, 990.0);
        near(1.0, 1000.0);
        near(0.0, 1.0);
    }

    #[test]
    fn merged_is_as_if_recorded_together() {
        let (mut one, mut two, mut both) = Default::default();
        let put = |into: &mut Histogram, number| into.record(Duration::from_nanos(number));
        for number in [3, 70, 90_000, 4_000_000_000] {
            put(&mut one, number);
            put(&mut both, number);
        }
        for number in [1, 70, 1_000_000] {
            put(&mut two, number);
            put(&mut both, number);
        }
        one.merge(&two);
        assert_eq!((one.count(), one.quantile(0.6)), (both.count(), both.quantile(0.6)));
        assert_eq!(one.counts, both.counts);
    }
}
