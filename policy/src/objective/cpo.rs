//! Contrastive preference optimisation: DPO without a reference, with SFT on the chosen responses.
//!
//! With s(y) = Σ_t log π(y_t | x, y_<t),
//!
//! L = − (1 / pairs) Σ log σ(β [s(y⁺) − s(y⁻)]) + α NLL(y⁺)
//!
//! (Xu et al., "Contrastive Preference Optimization", 2024, eq. 3 to 5: a uniform reference gives an upper
//! bound of DPO's loss, and the NLL keeps the policy at the chosen responses.) [`CpoLoss`] has the other
//! losses. AlphaPO (Gupta et al., "AlphaPO: Reward Shape Matters for LLM Alignment", 2025) bends the
//! reward: s becomes (1 − exp(−a s)) / a, which is s for a → 0.

use arriero_buffers::Tree;
use arriero_buffers::selection::BestAgainstWorst;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::dpo::{hinge, ipo, smoothed_sigmoid};
use super::terms::pairs::{self, Pair};
use super::terms::ranges;
use super::{AlgorithmConfig, Loss, MicroBatch, Needs, Objective, TokenStatistics, options};

/// The loss of a pair with the margin d = s(y⁺) − s(y⁻), under TRL's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CpoLoss {
    /// −log σ(βd).
    Sigmoid,
    /// max(0, 1 − βd): SLiC's hinge (Zhao et al., 2023).
    Hinge,
    /// (d − 1/(2β))², with s a mean over tokens: IPO without a reference (Azar et al., 2023).
    Ipo,
    /// −log σ(βd − γ), with s a mean over tokens: CPO-SimPO. Without the NLL it is SimPO.
    Simpo,
    /// `simpo` with a reward bent by `alpha`, and by default without the NLL: AlphaPO.
    Alphapo,
}

options! {
    /// CPO's options.
    pub struct CpoConfig {
        /// The loss of a pair. Default `"sigmoid"` (the paper's and TRL's).
        pub loss: CpoLoss = CpoLoss::Sigmoid,
        /// β: scale of the margin; IPO's τ. Default 0.1 (the paper's and TRL's).
        pub beta: f64 = 0.1,
        /// Weight of the chosen responses' negative log-likelihood, a mean over their tokens (TRL's
        /// `cpo_alpha`). Default 1 (the paper's and TRL's); 0 with `alphapo` (TRL's).
        #[serde(skip_serializing_if = "Option::is_none")]
        pub nll_coefficient: Option<f64> = None,
        /// γ of `simpo` and `alphapo`: the margin of rewards that a pair should reach. Default 0.5 (TRL's).
        pub simpo_gamma: f64 = 0.5,
        /// a: how the reward is bent. Default 0: not at all (TRL's). `alphapo` needs another value.
        pub alpha: f64 = 0.0,
        /// Share of pairs taken to be labelled the wrong way round (`sigmoid`, `simpo`, `alphapo`). Default 0
        /// (TRL's).
        pub label_smoothing: f64 = 0.0,
    }
}

impl CpoConfig {
    fn nll_coefficient(&self) -> f64 {
        self.nll_coefficient.unwrap_or(if self.loss == CpoLoss::Alphapo { 0.0 } else { 1.0 })
    }
}

impl AlgorithmConfig for CpoConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(Cpo { options: self.clone() })
    }

    fn resolved(&self) -> Self {
        CpoConfig { nll_coefficient: Some(self.nll_coefficient()), ..self.clone() }
    }

    fn validate(&self) -> Result<(), String> {
        ranges::above_zero("beta", self.beta)?;
        ranges::at_least_zero("nll_coefficient", self.nll_coefficient())?;
        ranges::at_least_zero("simpo_gamma", self.simpo_gamma)?;
        ranges::flip_rate("label_smoothing", self.label_smoothing)?;
        ranges::finite("alpha", self.alpha)?;
        if self.loss == CpoLoss::Alphapo && self.alpha == 0.0 {
            return Err("alpha is 0; with alphapo it must be another number".to_string());
        }
        Ok(())
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Cpo {
    options: CpoConfig,
}

impl Objective for Cpo {
    fn needs(&self) -> Needs {
        Needs::of(BestAgainstWorst)
    }

    fn check(&self, experience: &[&Tree]) -> Result<(), String> {
        pairs::check(experience)
    }

    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss {
        let logps = self.logps(&statistics.logps, batch);
        let scores = self.scores(&logps);
        let per_pair = self.per_pair(&scores.margin());
        let nll = pairs::chosen_nll(&statistics.logps, batch);
        let value = pairs::mean(&per_pair, batch) + &nll * self.options.nll_coefficient();

        let rewards = scores.map(|score| score * self.options.beta);
        let mut metrics = pairs::metrics(&rewards, &logps, statistics, batch);
        metrics.add_part("loss", &value, batch);
        metrics.add_part("nll_loss", &nll, batch);
        Loss { value, metrics }
    }
}

impl Cpo {
    /// log π(y): a sum over tokens, or a mean, as the loss wants it.
    fn logps(&self, logps: &Tensor, batch: &MicroBatch<'_>) -> Pair {
        match self.options.loss {
            CpoLoss::Sigmoid | CpoLoss::Hinge => Pair::sums(batch, logps),
            CpoLoss::Ipo | CpoLoss::Simpo | CpoLoss::Alphapo => Pair::means(batch, logps),
        }
    }

    /// s(y), bent by a.
    fn scores(&self, logps: &Pair) -> Pair {
        match self.options.alpha {
            0.0 => logps.map(Tensor::shallow_clone),
            alpha => logps.map(|logp| -(logp * -alpha).expm1() / alpha),
        }
    }

    /// The loss of each pair with the margin d: `[pairs]`.
    fn per_pair(&self, margin: &Tensor) -> Tensor {
        let CpoConfig { loss, beta, simpo_gamma, label_smoothing, .. } = self.options;
        match loss {
            CpoLoss::Sigmoid => smoothed_sigmoid(&(margin * beta), label_smoothing),
            CpoLoss::Hinge => hinge(&(margin * beta)),
            CpoLoss::Ipo => ipo(margin, beta),
            CpoLoss::Simpo | CpoLoss::Alphapo => {
                smoothed_sigmoid(&(margin * beta - simpo_gamma), label_smoothing)
            }
        }
    }
}
