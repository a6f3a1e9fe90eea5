//! Figures with their standard errors.

use serde::{Deserialize, Serialize};

/// How a figure is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// A share, as per cent.
    Share,
    /// A number.
    Number,
}

/// One figure of a suite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Its name.
    pub name: String,
    /// The estimate.
    #[serde(with = "crate::json_number::or_nan")]
    pub value: f64,
    /// Its standard error over the items, which are taken as a sample of all such items; none where there are fewer
    /// than two.
    pub standard_error: Option<f64>,
    /// Items that it is an estimate from.
    pub n: usize,
    /// How it is shown.
    pub form: Form,
}

impl Figure {
    /// The mean, with the deviation of the mean (n − 1 in the variance's denominator). `None` of nothing.
    pub fn mean(name: &str, form: Form, values: impl IntoIterator<Item = f64>) -> Option<Self> {
        Figure::ratio(name, form, values.into_iter().map(|value| (value, 1.0)))
    }

    /// Σ numerators / Σ denominators, with the standard error of the linearised ratio estimator (Cochran, "Sampling
    /// Techniques", 1977, §6.3). It takes items as independent, and what is in one item as dependent. With all
    /// denominators 1 it is the mean and its usual error. `None` where the denominators sum to 0.
    pub fn ratio(name: &str, form: Form, pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Self> {
        let pairs: Vec<(f64, f64)> = pairs.into_iter().collect();
        let denominator: f64 = pairs.iter().map(|pair| pair.1).sum();
        if denominator == 0.0 {
            return None;
        }
        let value = pairs.iter().map(|pair| pair.0).sum::<f64>() / denominator;
        let n = pairs.len();
        let squares: f64 = pairs.iter().map(|(a, b)| (a - value * b).powi(2)).sum();
        let standard_error = (n > 1).then(|| (n as f64 / (n as f64 - 1.0) * squares).sqrt() / denominator);
        Some(Figure { name: name.to_string(), value, standard_error, n, form })
    }

    /// exp of it, with the error of its linearisation.
    pub fn exp(self) -> Self {
        let value = self.value.exp();
        Figure { value, standard_error: self.standard_error.map(|error| error * value), ..self }
    }
}

/// The unbiased estimate of the chance that one of k samples is right, where `right` of `samples` are (Chen et al.,
/// "Evaluating Large Language Models Trained on Code", arXiv:2107.03374): 1 − C(n − c, k) / C(n, k). `None`
/// where there are fewer than k samples.
pub fn pass_at(k: usize, samples: usize, right: usize) -> Option<f64> {
    if k > samples || right > samples {
        return None;
    }
    let wrong = samples - right;
    if wrong < k {
        return Some(1.0);
    }
    // C(n − c, k) / C(n, k), factor by factor.
    let all_wrong: f64 = (wrong + 1..=samples).map(|i| 1.0 - k as f64 / i as f64).product();
    Some(1.0 - all_wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1, 2, 3, 4: mean 2.5, variance 5/3, deviation of the mean √(5/12).
    #[test]
    fn the_mean_has_its_standard_error() {
        let figure = Figure::mean("a", Form::Number, [1.0, 2.0, 3.0, 4.0]).expect("four values");
        assert!((figure.value - 2.5).abs() < 1e-12 && figure.n == 4);
        assert!((figure.standard_error.expect("four") - (5.0f64 / 12.0).sqrt()).abs() < 1e-12);
        // 1 of 4: √(p (1 − p) / (n − 1)) = 1/4.
        let share = Figure::mean("a", Form::Share, [1.0, 0.0, 0.0, 0.0]).expect("four values");
        assert!((share.standard_error.expect("four") - 0.25).abs() < 1e-12);
        assert_eq!(Figure::mean("a", Form::Share, []), None);
        assert_eq!(Figure::mean("a", Form::Share, [1.0]).expect("one").standard_error, None);
    }

    /// (1, 2), (2, 2), (0, 1): 3/5; residuals −0.2, 0.8, −0.6; Σ² = 1.04; √(1.5 · 1.04) / 5.
    #[test]
    fn the_ratio_takes_items_for_clusters() {
        let figure =
            Figure::ratio("a", Form::Share, [(1.0, 2.0), (2.0, 2.0), (0.0, 1.0)]).expect("five in all");
        assert!((figure.value - 0.6).abs() < 1e-12);
        assert!((figure.standard_error.expect("three") - (1.5f64 * 1.04).sqrt() / 5.0).abs() < 1e-12);
        let exp = figure.clone().exp();
        assert!((exp.value - 0.6f64.exp()).abs() < 1e-12);
        let scaled = figure.standard_error.map(|error| error * 0.6f64.exp());
        assert_eq!(exp.standard_error, scaled);
    }

    /// By hand: n = 4, c = 1: pass@1 = 1/4, pass@2 = 1 − C(3,2)/C(4,2) = 1/2, pass@4 = 1.
    #[test]
    fn pass_at_k_is_unbiased() {
        for (k, right, expected) in
            [(1, 1, 0.25), (2, 1, 0.5), (4, 1, 1.0), (2, 0, 0.0), (2, 2, 1.0 - 1.0 / 6.0), (2, 3, 1.0)]
        {
            let found = pass_at(k, 4, right).expect("k of 4");
            assert!((found - expected).abs() < 1e-12, "{k}, {right}: {found}");
        }
        assert_eq!(pass_at(5, 4, 1), None);
    }
}
