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

use super::dpo::smoothed_sigmoid;
use super::terms::pairs::{self, Pair};
use super::terms::ranges;
use super::{AlgorithmConfig, Loss, MicroBatch, Needs, Objective, TokenStatistics, options};

options! {
    /// SimPO's options.
    pub struct SimpoConfig {
        /// β: scale of the reward. Default 2 (the authors' code).
        pub beta: f64 = 2.0,
        /// γ: the margin of rewards that a pair should reach. Default 0.5 (the authors' code, where it is
        /// written γ/β = 0.25; TRL's `simpo_gamma`).
        pub gamma: f64 = 0.5,
        /// Weight of the chosen responses' negative log-likelihood, a mean over their tokens. Default 0 (the
        /// paper's).
        pub nll_coefficient: f64 = 0.0,
        /// Share of pairs taken to be labelled the wrong way round, as in conservative DPO. Default 0 (the
        /// paper's).
        pub label_smoothing: f64 = 0.0,
    }
}

impl AlgorithmConfig for SimpoConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(Simpo { options: self.clone() })
    }

    fn validate(&self) -> Result<(), String> {
        ranges::above_zero("beta", self.beta)?;
        ranges::at_least_zero("gamma", self.gamma)?;
        ranges::at_least_zero("nll_coefficient", self.nll_coefficient)?;
        ranges::flip_rate("label_smoothing", self.label_smoothing)
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
        let value = pairs::mean(&per_pair, batch) + &nll * nll_coefficient;

        let mut metrics = pairs::metrics(&rewards, &logps, statistics, batch);
        metrics.add_part("loss", &value, batch);
        metrics.add_part("nll_loss", &nll, batch);
        Loss { value, metrics }
    }
}
