//! Medians, with how far the single runs are from them.

/// The middle of several measurements, and their ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// How many there were.
    pub count: usize,
}

impl Spread {
    /// `None` of nothing. What is no number is left out.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let upper = *values.get(middle)?;
        let median =
            if values.len() % 2 == 1 { upper } else { f64::midpoint(*values.get(middle - 1)?, upper) };
        Some(Self { median, min, max, count: values.len() })
    }

    /// All of its runs are above all of the other's: not to be explained by scatter.
    pub fn is_above(&self, other: &Self) -> bool {
        self.min > other.max
    }

    /// Half of the distance between the ends, as a part of the median.
    pub fn scatter(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.max - self.min) / 2.0 / self.median.abs() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([f64::NAN]), None);
        let three = Spread::of([9.0, 1.0, 2.0]).unwrap();
        assert_eq!((three.median, three.min, three.max, three.count), (2.0, 1.0, 9.0, 3));
        let even = Spread::of([4.0, 1.0, f64::INFINITY, 2.0, 3.0]).unwrap();
        assert!((even.median - 2.5).abs() < 1e-9 && even.count == 4);
        assert!((three.scatter() - 2.0).abs() < 1e-9);
    }

    #[test]
    fn above_means_without_overlap() {
        let (low, high) = (Spread::of([1.0, 2.0]).unwrap(), Spread::of([2.5, 9.0]).unwrap());
        assert!(high.is_above(&low) && !low.is_above(&high));
        assert!(!Spread::of([1.5, 9.0]).unwrap().is_above(&low));
    }
}
