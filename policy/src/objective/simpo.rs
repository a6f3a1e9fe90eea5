//! Simple preference optimisation: the mean log-probability as the reward, and a target margin.
//!
//! With r(y) = (β / |y|) Σ_t log π(y_t | x, y_<t),
//!
//! L = − (1 / pairs) Σ log σ(r(y⁺) − r(y⁻) − γ)
//!
//! (Meng et al., "SimPO: Simple Preference Optimization with a Reference-Free Reward", 2024, eq. 6.) No
//! reference: what holds the policy is a small learning rate. β is ten to a hundred times DPO's, since r is a
//! mean over tokens.

use arriero_buffers::Tree;
use arriero_buffers::selection::BestAgainstWorst;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Kind;

use super::dpo::smoothed_sigmoid;
use super::pairs::{self, Pair};
use super::{AlgorithmConfig, Loss, Metrics, MicroBatch, Needs, Objective, TokenStatistics};

/// SimPO's options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SimpoConfig {
    /// β: scale of the reward. Default 2 (the authors' code).
    pub beta: f64,
    /// γ: the margin of rewards that a pair should reach. Default 0.5 (the authors' code, where it is
    /// written γ/β = 0.25; TRL's `simpo_gamma`).
    pub gamma: f64,
    /// Weight of the chosen responses' negative log-likelihood, a mean over their tokens. Default 0 (the
    /// paper's).
    pub nll_coefficient: f64,
    /// Share of pairs taken to be labelled the wrong way round, as in conservative DPO. Default 0 (the
    /// paper's).
    pub label_smoothing: f64,
}

impl Default for SimpoConfig {
    fn default() -> Self {
        SimpoConfig { beta: 2.0, gamma: 0.5, nll_coefficient: 0.0, label_smoothing: 0.0 }
    }
}

impl AlgorithmConfig for SimpoConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(Simpo { options: self.clone() })
    }

    fn resolved(&self) -> Self {
        self.clone()
    }

    fn validate(&self) -> Result<(), String> {
        pairs::above_zero("beta", self.beta)?;
        pairs::at_least_zero("gamma", self.gamma)?;
        pairs::at_least_zero("nll_coefficient", self.nll_coefficient)?;
        pairs::flip_rate("label_smoothing", self.label_smoothing)
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Simpo {
    options: SimpoConfig,
}

impl Objective for Simpo {
    fn needs(&self) -> Needs {
        Needs::of(BestAgainstWorst)
    }

    fn check(&self, experience: &[&Tree]) -> Result<(), String> {
        pairs::check(experience)
    }

    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss {
        let SimpoConfig { beta, gamma, nll_coefficient, label_smoothing } = self.options;
        let logps = Pair::means(batch, &statistics.logps);
        let rewards = logps.map(|logp| logp * beta);
        let per_pair = smoothed_sigmoid(&(rewards.margin() - gamma), label_smoothing);
        let nll = pairs::chosen_nll(&statistics.logps, batch);
        let value = per_pair.sum(Kind::Float) / batch.totals.trees as f64 + &nll * nll_coefficient;

        let mut metrics = Metrics::default();
        pairs::add_share(&mut metrics, "loss", &value, batch);
        pairs::add_share(&mut metrics, "nll_loss", &nll, batch);
        pairs::add_metrics(&mut metrics, &rewards, &logps, statistics, batch);
        Loss { value, metrics }
    }
}
