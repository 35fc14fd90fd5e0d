//! Percentiles, medians, and the comparison of two sides that took turns.

/// The value below which `percent` of the samples are. `None` without samples.
pub fn percentile(samples: &[f64], percent: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

pub fn median(samples: &[f64]) -> Option<f64> {
    percentile(samples, 50.0)
}

/// Two sides over several rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Median of our rounds.
    pub value: f64,
    /// Median of theirs.
    pub baseline: f64,
    /// Median of the rounds' ratios, ours by theirs: what disturbs one round disturbs both of its sides.
    pub ratio: f64,
}

/// `None` without rounds.
pub fn compare(ours: &[f64], theirs: &[f64]) -> Option<Comparison> {
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
    Some(Comparison { value: median(ours)?, baseline: median(theirs)?, ratio: median(&ratios)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_samples() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&samples, 50.0), Some(50.0));
        assert_eq!(percentile(&samples, 99.0), Some(99.0));
        assert_eq!(percentile(&samples[..1], 99.0), Some(100.0));
        assert_eq!(percentile(&[], 50.0), None);
    }

    #[test]
    fn a_round_that_is_slow_on_both_sides_does_not_count() {
        let compared = compare(&[2.0, 20.0, 2.0], &[1.0, 10.0, 1.0]);
        assert_eq!(compared, Some(Comparison { value: 2.0, baseline: 1.0, ratio: 2.0 }));
    }
}
