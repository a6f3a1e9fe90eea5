//! Estimates with intervals.

use statrs::distribution::{ContinuousCDF, StudentsT};

use serde::{Deserialize, Serialize};

/// A number with its 95% confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The estimate.
    #[serde(with = "crate::json_number::or_nan")]
    pub value: f64,
    /// Lower end of the interval.
    #[serde(with = "crate::json_number::or_low")]
    pub low: f64,
    /// Upper end.
    #[serde(with = "crate::json_number::or_high")]
    pub high: f64,
}

/// Σ numerators / Σ denominators over independent clusters, with the interval of the linearised
/// ratio estimator (Cochran, "Sampling Techniques", 1977, §6.3) and Student's t. With all
/// denominators 1 it is the mean and its usual interval. `None` where the denominators sum to 0.
///
/// One cluster gives an interval without bounds.
pub fn ratio(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Estimate> {
    let pairs: Vec<(f64, f64)> = pairs.into_iter().collect();
    let denominator: f64 = pairs.iter().map(|pair| pair.1).sum();
    if denominator == 0.0 {
        return None;
    }
    let value = pairs.iter().map(|pair| pair.0).sum::<f64>() / denominator;
    let n = pairs.len() as f64;
    let squares: f64 = pairs.iter().map(|(a, b)| (a - value * b).powi(2)).sum();
    let half = match StudentsT::new(0.0, 1.0, n - 1.0) {
        Ok(t) => t.inverse_cdf(0.975) * (n / (n - 1.0) * squares).sqrt() / denominator,
        Err(_) => f64::INFINITY,
    };
    Some(Estimate { value, low: value - half, high: value + half })
}

/// The mean, as [`ratio`] over single items.
pub fn mean(values: impl IntoIterator<Item = f64>) -> Option<Estimate> {
    ratio(values.into_iter().map(|value| (value, 1.0)))
}

/// A share of independent yes-or-no outcomes, with Wilson's score interval ("Probable inference, the law of
/// succession, and statistical inference", 1927), which is right near 0 and 1 as well. `None` of nothing.
pub fn proportion(outcomes: impl IntoIterator<Item = bool>) -> Option<Estimate> {
    /// The 97.5th percentile of the normal distribution.
    const Z: f64 = 1.959_963_984_540_054;
    let outcomes: Vec<bool> = outcomes.into_iter().collect();
    let n = outcomes.len() as f64;
    if outcomes.is_empty() {
        return None;
    }
    let value = outcomes.iter().filter(|&&outcome| outcome).count() as f64 / n;
    let middle = (value + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z / (1.0 + Z * Z / n) * (value * (1.0 - value) / n + Z * Z / (4.0 * n * n)).sqrt();
    Some(Estimate { value, low: (middle - half).max(0.0), high: (middle + half).min(1.0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 of 10 (Newcombe, 1998, and any calculator): 1.79% to 40.42%; 0 of 10: 0 to 27.75%.
    #[test]
    fn the_proportion_has_wilsons_interval() {
        let some = proportion((0..10).map(|i| i == 0)).expect("ten outcomes");
        assert!((some.low - 0.017_876).abs() < 1e-5 && (some.high - 0.404_150).abs() < 1e-5, "{some:?}");
        let none = proportion([false; 10]).expect("ten outcomes");
        assert!(none.low == 0.0 && (none.high - 0.277_533).abs() < 1e-5, "{none:?}");
        assert_eq!(proportion([]), None);
    }

    /// 1, 2, 3, 4: mean 2.5, variance 5/3, t(0.975, 3) = 3.182446, half width 3.182446 √(5/12).
    #[test]
    fn the_mean_has_students_interval() {
        let estimate = mean([1.0, 2.0, 3.0, 4.0]).expect("four values");
        let half = 3.182_446_305 * (5.0f64 / 12.0).sqrt();
        assert!((estimate.value - 2.5).abs() < 1e-12);
        assert!((estimate.high - 2.5 - half).abs() < 1e-6 && (2.5 - half - estimate.low).abs() < 1e-6);
    }

    /// (1, 2), (2, 2), (0, 1): 3/5; residuals −0.2, 0.8, −0.6; Σ² = 1.04; t(0.975, 2) = 4.302653.
    #[test]
    fn the_ratio_is_weighted_by_its_denominators() {
        let estimate = ratio([(1.0, 2.0), (2.0, 2.0), (0.0, 1.0)]).expect("five in all");
        let half = 4.302_652_73 * (1.5f64 * 1.04).sqrt() / 5.0;
        assert!((estimate.value - 0.6).abs() < 1e-12);
        assert!((estimate.high - 0.6 - half).abs() < 1e-6, "{estimate:?}");
    }

    #[test]
    fn little_data_gives_no_false_certainty() {
        assert_eq!(mean([]), None);
        assert_eq!(ratio([(1.0, 0.0)]), None);
        let single = mean([3.0]).expect("one value");
        assert!(single.low == f64::NEG_INFINITY && single.high == f64::INFINITY);
    }

    #[test]
    fn an_interval_without_bounds_comes_back_from_json() {
        let estimate = mean([3.0]).expect("one value");
        let written = serde_json::to_string(&estimate).expect("it serialises");
        assert_eq!(written, r#"{"value":3.0,"low":null,"high":null}"#);
        assert_eq!(serde_json::from_str::<Estimate>(&written).expect("it reads"), estimate);
    }
}
