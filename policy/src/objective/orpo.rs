//! Odds-ratio preference optimisation: SFT on the chosen responses, with a penalty on the rejected ones.
//!
//! With P(y) = exp((1 / |y|) Σ_t log π(y_t | x, y_<t)) and odds(y) = P(y) / (1 − P(y)),
//!
//! L = NLL(y⁺) − (λ / pairs) Σ log σ(log odds(y⁺) − log odds(y⁻))
//!
//! (Hong et al., "ORPO: Monolithic Preference Optimization without Reference Model", 2024, eq. 6 and 7.)
//! The NLL is a mean over all chosen tokens of the batch. TRL's also counts the prompt's tokens, so that its
//! `nll_loss` is another number; here it is called `nll_loss/response`.

use arriero_buffers::Tree;
use arriero_buffers::selection::BestAgainstWorst;
use tch::{Kind, Tensor};

use super::terms::pairs::{self, Pair};
use super::terms::ranges;
use super::{AlgorithmConfig, Loss, MicroBatch, Needs, Objective, TokenStatistics, options};

options! {
    /// ORPO's options.
    pub struct OrpoConfig {
        /// λ (TRL's `beta`): weight of the odds ratio. Default 0.1 (the paper's and TRL's).
        pub beta: f64 = 0.1,
    }
}

impl AlgorithmConfig for OrpoConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(Orpo { options: self.clone() })
    }

    fn validate(&self) -> Result<(), String> {
        ranges::above_zero("beta", self.beta)
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Orpo {
    options: OrpoConfig,
}

impl Objective for Orpo {
    fn needs(&self) -> Needs {
        Needs::of(BestAgainstWorst)
    }

    fn check(&self, experience: &[&Tree]) -> Result<(), String> {
        pairs::check(experience)
    }

    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss {
        let OrpoConfig { beta } = self.options;
        let logps = Pair::means(batch, &statistics.logps);
        let log_odds_ratio = logps.map(log_odds).margin();
        let log_sigmoid = log_odds_ratio.log_sigmoid();
        let nll = pairs::chosen_nll(&statistics.logps, batch);
        let value = &nll - log_sigmoid.sum(Kind::Float) * (beta / batch.totals.trees as f64);

        let mut metrics = pairs::metrics(&logps.map(|logp| logp * beta), &logps, statistics, batch);
        metrics.add_part("loss", &value, batch);
        metrics.add_part("nll_loss/response", &nll, batch);
        // TRL's names: the former is log σ of the latter.
        metrics.add_entries("log_odds_ratio", &log_sigmoid.detach());
        metrics.add_entries("log_odds_chosen", &log_odds_ratio.detach());
        Loss { value, metrics }
    }
}

/// log odds of a probability that is given as its logarithm. A probability that f32 can hardly tell from 1 is
/// taken as exp(−1e-6), whose odds are a million: the odds of 1 are infinite, and stop the run.
fn log_odds(logp: &Tensor) -> Tensor {
    let logp = logp.clamp_max(-1e-6);
    // log(1 − exp(x)), by the form that keeps its digits (Mächler, "Accurately computing log(1 − exp(−|a|))").
    let far = (-logp.exp()).log1p();
    let near = (-logp.expm1()).log();
    let complement = far.where_self(&logp.lt(-std::f64::consts::LN_2), &near);
    logp - complement
}
