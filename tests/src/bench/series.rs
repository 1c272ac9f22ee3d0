//! Samples of one metric by several contenders, round by round.

use std::collections::BTreeMap;

/// What one contender gave for one metric, a value a round.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub contender: String,
    pub metric: String,
    pub unit: &'static str,
    pub values: Vec<f64>,
}

/// All series of a bench, in the order in which they were first heard of.
#[derive(Debug, Default)]
pub struct Samples {
    series: Vec<Series>,
    index: BTreeMap<(String, String), usize>,
}

impl Samples {
    pub fn add(&mut self, contender: &str, metric: &str, unit: &'static str, value: f64) {
        let key = (contender.to_owned(), metric.to_owned());
        let index = *self.index.entry(key).or_insert_with(|| {
            self.series.push(Series {
                contender: contender.to_owned(),
                metric: metric.to_owned(),
                unit,
                values: Vec::new(),
            });
            self.series.len() - 1
        });
        self.series[index].values.push(value);
    }

    pub fn all(&self) -> &[Series] {
        &self.series
    }

    pub fn values(&self, contender: &str, metric: &str) -> Option<&[f64]> {
        let index = self.index.get(&(contender.to_owned(), metric.to_owned()))?;
        Some(&self.series[*index].values)
    }

    /// The median over rounds of `of / to` within a round: what drifts from round to round cancels out.
    pub fn ratio(&self, of: &str, to: &str, metric: &str) -> Option<f64> {
        let (of, to) = (self.values(of, metric)?, self.values(to, metric)?);
        median(&of.iter().zip(to).map(|(of, to)| of / to).collect::<Vec<_>>())
    }
}

/// A value such that `share` of all are not above it; `None` of nothing.
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// The middle value, or the mean of the two middle ones.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = if sorted.len().is_multiple_of(2) {
        *sorted.get(sorted.len() / 2 - 1)?
    } else {
        upper
    };
    Some((lower + upper) / 2.0)
}

/// The contenders in the order of this round: each is first, second, last equally often.
pub fn turns(contenders: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..contenders).map(move |turn| (turn + round) % contenders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), Some(50.0));
        assert_eq!(quantile(&values, 0.99), Some(99.0));
        assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn a_ratio_compares_within_rounds() {
        let mut samples = Samples::default();
        // The machine is half as fast in the second round.
        for (round, (of, to)) in [(90.0, 100.0), (45.0, 50.0), (80.0, 100.0)]
            .into_iter()
            .enumerate()
        {
            samples.add("of", "rate", "1/s", of);
            samples.add("to", "rate", "1/s", to);
            assert_eq!(samples.values("of", "rate").map(<[f64]>::len), Some(round + 1));
        }
        assert_eq!(samples.ratio("of", "to", "rate"), Some(0.9));
        assert_eq!(samples.ratio("of", "nobody", "rate"), None);
    }

    #[test]
    fn everybody_is_first_once() {
        let firsts: Vec<_> = (0..3).filter_map(|round| turns(3, round).next()).collect();
        assert_eq!(firsts, [0, 1, 2]);
        assert_eq!(turns(3, 1).collect::<Vec<_>>(), [1, 2, 0]);
    }
}
