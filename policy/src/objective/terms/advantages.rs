//! Advantages and returns, on the host in f64: how much better a response, or a token, did than expected.

use serde::{Deserialize, Serialize};

/// What is added to a standard deviation before dividing by it (TRL's).
const EPSILON: f64 = 1e-4;

/// The mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The standard deviation of a sample, with n − 1 in the denominator; 0 of fewer than two values.
pub fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

/// r_i − mean(r): what is left of rewards when their group's mean is the baseline (Shao et al., "DeepSeekMath",
/// 2024, without the division).
pub fn centred(rewards: &[f64]) -> Vec<f64> {
    let mean = mean(rewards);
    rewards.iter().map(|reward| reward - mean).collect()
}

/// Divides by a standard deviation, with a little added so that none of zero divides.
pub fn scaled(values: &[f64], deviation: f64) -> Vec<f64> {
    values.iter().map(|value| value / (deviation + EPSILON)).collect()
}

/// r_i − mean of the others' rewards: the baseline does not depend on the response that it judges, so the gradient
/// has no bias (Kool et al., 2019; Ahmadian et al., "Back to Basics", 2024). 0 for a response that is alone.
pub fn leave_one_out(rewards: &[f64]) -> Vec<f64> {
    if rewards.len() < 2 {
        return vec![0.0; rewards.len()];
    }
    let sum: f64 = rewards.iter().sum();
    let others = (rewards.len() - 1) as f64;
    rewards.iter().map(|reward| reward - (sum - reward) / others).collect()
}

/// Shifts and scales `values`, which are some of `all`, such that all have mean 0 and variance 1, with n in the denominator
/// (REINFORCE++'s global normalisation). The variance is taken to be at least 1e-8.
pub fn whitened(values: &[f64], all: &[f64]) -> Vec<f64> {
    let mean = mean(all);
    let squares: f64 = all.iter().map(|value| (value - mean).powi(2)).sum();
    let variance = (squares / all.len().max(1) as f64).max(1e-8);
    values.iter().map(|value| (value - mean) / variance.sqrt()).collect()
}

/// How values are whitened as TRL's PPO does it: by the mean and the unbiased variance of all of them, to which 1e-8 is added.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Whitening {
    mean: f64,
    /// 1 / √(variance + 1e-8).
    scale: f64,
}

impl Whitening {
    /// Leaves values as they are.
    pub const NONE: Whitening = Whitening { mean: 0.0, scale: 1.0 };

    /// Of all of these values.
    pub fn of(all: &[f64]) -> Self {
        Whitening { mean: mean(all), scale: (deviation(all).powi(2) + 1e-8).sqrt().recip() }
    }

    /// With mean 0 and variance 1.
    pub fn whitened(&self, value: f64) -> f64 {
        (value - self.mean) * self.scale
    }

    /// With variance 1 and the mean as it was.
    pub fn scaled(&self, value: f64) -> f64 {
        self.whitened(value) + self.mean
    }
}

/// G_t = Σ_{i ≥ t} r_i: returns without a discount.
pub fn returns_to_go(rewards: &[f64]) -> Vec<f64> {
    let mut sum = 0.0;
    let mut returns: Vec<f64> = rewards
        .iter()
        .rev()
        .map(|reward| {
            sum += reward;
            sum
        })
        .collect();
    returns.reverse();
    returns
}

/// Generalised advantage estimation of one response (Schulman et al., 2016, eq. 16):
/// δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γ λ A_{t+1}, with V = 0 after the last token.
///
/// `rewards` and `values` have one entry a token; so have the advantages and the returns A_t + V_t that come back.
pub fn generalised(rewards: &[f64], values: &[f64], gamma: f64, lambda: f64) -> (Vec<f64>, Vec<f64>) {
    let mut advantages = vec![0.0; rewards.len()];
    let (mut next_value, mut next_advantage) = (0.0, 0.0);
    for (index, (reward, value)) in rewards.iter().zip(values).enumerate().rev() {
        let delta = reward + gamma * next_value - value;
        next_advantage = delta + gamma * lambda * next_advantage;
        next_value = *value;
        advantages[index] = next_advantage;
    }
    let returns = advantages.iter().zip(values).map(|(advantage, value)| advantage + value).collect();
    (advantages, returns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        assert!(
            found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12),
            "{found:?}, not {expected:?}"
        );
    }

    #[test]
    fn baselines_equal_hand_computed_numbers() {
        let rewards = [1.0, 0.0, 0.0, 1.0];
        close(&centred(&rewards), &[0.5, -0.5, -0.5, 0.5]);
        close(&[deviation(&rewards)], &[(1.0f64 / 3.0).sqrt()]);
        close(&leave_one_out(&rewards), &[2.0 / 3.0, -2.0 / 3.0, -2.0 / 3.0, 2.0 / 3.0]);
        close(&whitened(&rewards[1..], &rewards), &[-1.0, -1.0, 1.0]);
        // Mean 2, unbiased variance 2.
        let whitening = Whitening::of(&[1.0, 3.0]);
        let root = (2.0f64 + 1e-8).sqrt();
        close(&[whitening.whitened(4.0), whitening.scaled(4.0)], &[2.0 / root, 2.0 / root + 2.0]);
        close(&[Whitening::NONE.whitened(4.0), Whitening::NONE.scaled(4.0)], &[4.0, 4.0]);
        close(&returns_to_go(&[1.0, -2.0, 4.0]), &[3.0, 2.0, 4.0]);
    }

    #[test]
    fn groups_without_signal_have_no_advantage() {
        for rewards in [&[][..], &[3.0], &[3.0, 3.0, 3.0], &[1e30, 1e30]] {
            let zeros = vec![0.0; rewards.len()];
            close(&scaled(&centred(rewards), deviation(rewards)), &zeros);
            close(&leave_one_out(rewards), &zeros);
            close(&whitened(rewards, rewards), &zeros);
        }
    }

    /// γ = 0.5, λ = 0.5: δ = (1 + 0.5·4 − 2, 0 + 0.5·6 − 4, 8 − 6) = (1, −1, 2), A_2 = 2, A_1 = −1 + 0.5 = −0.5,
    /// A_0 = 1 − 0.125 = 0.875.
    #[test]
    fn generalised_advantages_equal_hand_computed_numbers() {
        let (advantages, returns) = generalised(&[1.0, 0.0, 8.0], &[2.0, 4.0, 6.0], 0.5, 0.5);
        close(&advantages, &[0.875, -0.5, 2.0]);
        close(&returns, &[2.875, 3.5, 8.0]);
        // γ = λ = 1: the return to go less the value.
        let (advantages, _) = generalised(&[1.0, 0.0, 8.0], &[2.0, 4.0, 6.0], 1.0, 1.0);
        close(&advantages, &[7.0, 4.0, 2.0]);
    }
}
