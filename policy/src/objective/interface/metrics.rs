//! Named figures of a batch, which its micro-batches add up to.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::MicroBatch;

/// Means, maxima and minima by name; means are kept as sums and weights so that micro-batches add up exactly.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    /// Sum and weight by name.
    means: BTreeMap<&'static str, (f64, f64)>,
    maxima: BTreeMap<&'static str, f64>,
    minima: BTreeMap<&'static str, f64>,
    calibrations: BTreeMap<&'static str, [Bin; BINS]>,
}

/// Bins of a probability from 1/2 to 1.
const BINS: usize = 10;

/// Predictions of about the same confidence.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Bin {
    count: f64,
    confidence: f64,
    right: f64,
}

impl Metrics {
    /// Adds `sum`, which is a sum over `weight` items, to the mean called `name`.
    pub fn add(&mut self, name: &'static str, sum: f64, weight: f64) {
        let entry = self.means.entry(name).or_default();
        entry.0 += sum;
        entry.1 += weight;
    }

    /// Raises the maximum called `name` to `value`.
    pub fn raise(&mut self, name: &'static str, value: f64) {
        let entry = self.maxima.entry(name).or_insert(value);
        *entry = entry.max(value);
    }

    /// Lowers the minimum called `name` to `value`.
    pub fn lower(&mut self, name: &'static str, value: f64) {
        let entry = self.minima.entry(name).or_insert(value);
        *entry = entry.min(value);
    }

    /// Adds a prediction between two to the expected calibration error called `name`: how probable it was told to be that
    /// it is right (from 1/2 to 1), and whether it was. With ten bins of equal width,
    /// Σ_b n_b / n · |share of right ones in b − mean confidence in b| (Guo et al., 2017, arXiv:1706.04599).
    pub fn predict(&mut self, name: &'static str, confidence: f64, is_right: bool) {
        let bins = self.calibrations.entry(name).or_default();
        let bin = ((confidence - 0.5) * 2.0 * BINS as f64) as usize;
        let bin = &mut bins[bin.min(BINS - 1)];
        bin.count += 1.0;
        bin.confidence += confidence;
        bin.right += f64::from(u8::from(is_right));
    }

    /// Adds all of a tensor's entries to the mean called `name`.
    pub fn add_entries(&mut self, name: &'static str, entries: &Tensor) {
        self.add(name, entries.sum(Kind::Double).double_value(&[]), entries.numel() as f64);
    }

    /// Adds a figure of the whole batch, of which `part` is this micro-batch's: the parts add up, and so do their weights.
    pub fn add_part(&mut self, name: &'static str, part: &Tensor, batch: &MicroBatch<'_>) {
        self.add(name, part.double_value(&[]), batch.share());
    }

    /// Adds a figure that every micro-batch finds alike, since it is of the whole batch.
    pub fn add_whole(&mut self, name: &'static str, value: f64, batch: &MicroBatch<'_>) {
        self.add(name, value * batch.share(), batch.share());
    }

    /// Adds another micro-batch's sums.
    pub fn merge(&mut self, other: &Metrics) {
        for (name, (sum, weight)) in &other.means {
            self.add(name, *sum, *weight);
        }
        for (name, value) in &other.maxima {
            self.raise(name, *value);
        }
        for (name, value) in &other.minima {
            self.lower(name, *value);
        }
        for (name, others) in &other.calibrations {
            let bins = self.calibrations.entry(name).or_default();
            for (bin, other) in bins.iter_mut().zip(others) {
                bin.count += other.count;
                bin.confidence += other.confidence;
                bin.right += other.right;
            }
        }
    }

    /// The values by name. A mean over nothing is left out.
    pub fn values(&self) -> BTreeMap<String, f64> {
        let means = self.means.iter().filter(|(_, (_, weight))| *weight > 0.0);
        let means = means.map(|(name, (sum, weight))| (name.to_string(), sum / weight));
        let extremes = self.maxima.iter().chain(&self.minima);
        let extremes = extremes.map(|(name, value)| (name.to_string(), *value));
        let calibration = |(name, bins): (&&str, &[Bin; BINS])| {
            let total: f64 = bins.iter().map(|bin| bin.count).sum();
            let gap: f64 = bins.iter().map(|bin| (bin.right - bin.confidence).abs()).sum();
            (name.to_string(), gap / total)
        };
        means.chain(extremes).chain(self.calibrations.iter().map(calibration)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two bins: three predictions at 0.52 of which one is right, one at 0.9 that is right:
    /// 3/4 |1/3 − 0.52| + 1/4 |1 − 0.9| = 0.165.
    #[test]
    fn calibration_errors_equal_a_hand_computed_number_however_they_are_cut() {
        let predictions = [(0.52, true), (0.52, false), (0.9, true), (0.52, false)];
        let mut all = Metrics::default();
        for piece in predictions.chunks(3) {
            let mut metrics = Metrics::default();
            piece.iter().for_each(|&(confidence, is_right)| metrics.predict("e", confidence, is_right));
            all.merge(&metrics);
        }
        assert!((all.values()["e"] - 0.165).abs() < 1e-12, "{:?}", all.values());
        let mut certain = Metrics::default();
        certain.predict("e", 1.0, true);
        assert_eq!(certain.values()["e"], 0.0);
    }
}
