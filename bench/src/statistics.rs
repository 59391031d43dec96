//! Median, least and greatest, and how much of a median is chance.

use serde::Serialize;

/// A sample of measurements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Half of the values lie below.
    pub median: f64,
    /// The least value.
    pub min: f64,
    /// The greatest value.
    pub max: f64,
}

impl Spread {
    /// Of at least one value; None for no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            (values[middle - 1] + values[middle]) / 2.0
        };
        Some(Self { median, min, max })
    }
}

/// An interval that holds the median of what was sampled with at least 95 % probability, whatever
/// its distribution: two order statistics, chosen by the binomial distribution of the number of
/// values below the median. None for fewer than six values, which tell too little.
pub fn median_interval(values: &[f64]) -> Option<[f64; 2]> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let count = values.len();
    // P(at most k of n values lie below the median), for growing k.
    let mut term = 0.5f64.powi(i32::try_from(count).ok()?);
    let mut below = term;
    let mut cut = None;
    for k in 0..count / 2 {
        if below > 0.025 {
            break;
        }
        cut = Some(k);
        term *= (count - k) as f64 / (k + 1) as f64;
        below += term;
    }
    let cut = cut?;
    Some([values[cut], values[count - 1 - cut]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_even_none() {
        let spread = |median, min, max| Some(Spread { median, min, max });
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), spread(2.0, 1.0, 3.0));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), spread(2.5, 1.0, 4.0));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn intervals_are_those_of_the_tables() {
        let values = |n: u32| (1..=n).map(f64::from).collect::<Vec<_>>();
        // Ranks of the two-sided sign test at 5 %.
        assert_eq!(median_interval(&values(5)), None);
        assert_eq!(median_interval(&values(6)), Some([1.0, 6.0]));
        assert_eq!(median_interval(&values(9)), Some([2.0, 8.0]));
        assert_eq!(median_interval(&values(15)), Some([4.0, 12.0]));
        assert_eq!(median_interval(&values(25)), Some([8.0, 18.0]));
    }
}
