//! Direct preference optimisation and the losses that share its form, with Llama 3's two amendments.
//!
//! With r(y) = β Σ_t m_t [log π(y_t | x, y_<t) − log π_ref(y_t | x, y_<t)],
//!
//! L = − (1 / pairs) Σ log σ(r(y⁺) − r(y⁻)) + α NLL(y⁺)
//!
//! (Rafailov et al., "Direct Preference Optimization", 2023, eq. 7.) [`DpoLoss`] has what may stand in the
//! place of −log σ, alone or as a weighted sum. Llama 3 (2024, §4.1.4) sets
//! m_t = 0 on formatting tokens, whose presence in both responses makes the loss pull on one token
//! in two directions, and adds the negative log-likelihood of the chosen response with α = 0.2, so
//! that its probability does not fall (Pang et al., 2024). The NLL is a mean over all chosen tokens
//! of the batch, formatting tokens included, so that the model keeps learning to end its turn.

mod losses;
mod options;

use std::collections::BTreeMap;

use arriero_buffers::Tree;
use arriero_buffers::selection::BestAgainstWorst;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use self::losses::{Coefficients, PairLogps};
use super::terms::pairs::{self, Pair};
use super::{Loss, MicroBatch, Needs, Objective, TokenStatistics};

pub use losses::{DpoLoss, WeightedLosses};
pub(super) use losses::{hinge, ipo, smoothed_sigmoid};
pub use options::{DpoConfig, DpoGiven, DpoPreset};

/// A mean over the steps that were taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct RunningMean {
    mean: f64,
    steps: f64,
}

impl RunningMean {
    /// The mean with one more value.
    fn with(self, value: f64) -> f64 {
        self.mean + (value - self.mean) / (self.steps + 1.0)
    }
}

/// See the module. Its one state is BCO's δ, which begins anew with every stage.
#[derive(Debug, Clone)]
pub struct Dpo {
    options: DpoConfig,
    bco_delta: RunningMean,
}

/// The metric that carries BCO's δ (TRL's name in its BCO trainer).
const BCO_DELTA: &str = "delta";

impl Objective for Dpo {
    fn needs(&self) -> Needs {
        let sync = self.options.sync();
        Needs {
            reference: sync.is_none(),
            sync,
            whole_batch: self.options.loss.0.keys().any(|loss| loss.couples_pairs()),
            ..Needs::of(BestAgainstWorst)
        }
    }

    fn check(&self, experience: &[&Tree]) -> Result<(), String> {
        pairs::check(experience)
    }

    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss {
        let DpoConfig { beta, nll_coefficient, ref loss, .. } = self.options;
        let logps = self.pair_logps(&statistics.logps, batch);
        let rewards = logps.ratios.map(|ratio| ratio * beta);
        let bco_delta = self.bco_delta(&rewards);
        let coefficients = self.coefficients(bco_delta);

        let nll = pairs::chosen_nll(&statistics.logps, batch);
        let mut value = &nll * nll_coefficient;
        for (loss, weight) in &loss.0 {
            let per_pair = loss.per_pair(&logps, &coefficients);
            value += per_pair.sum(Kind::Float) * (weight / batch.totals.trees as f64);
        }

        let mut metrics = pairs::metrics(&rewards, &Pair::sums(batch, &statistics.logps), statistics, batch);
        metrics.add_part("loss", &value, batch);
        metrics.add_part("nll_loss", &nll, batch);
        if let Some(delta) = bco_delta {
            metrics.add(BCO_DELTA, delta, 1.0);
        }
        Loss { value, metrics }
    }

    fn stepped(&mut self, metrics: &BTreeMap<String, f64>) {
        if let Some(&mean) = metrics.get(BCO_DELTA) {
            self.bco_delta = RunningMean { mean, steps: self.bco_delta.steps + 1.0 };
        }
    }

    fn state(&self) -> Value {
        json!(self.bco_delta)
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        self.bco_delta = RunningMean::deserialize(state).map_err(|error| error.to_string())?;
        Ok(())
    }
}

impl Dpo {
    /// The objective of these options.
    pub fn new(options: DpoConfig) -> Self {
        Dpo { options, bco_delta: RunningMean::default() }
    }

    /// What the losses are computed from.
    fn pair_logps(&self, logps: &Tensor, batch: &MicroBatch<'_>) -> PairLogps {
        let reference = batch.reference_logps(logps);
        let mask = batch.per_token(logps, |branch| {
            let is_left_out = |&is_format: &bool| is_format && self.options.mask_format_tokens;
            branch.is_format.iter().map(|token| if is_left_out(token) { 0.0 } else { 1.0 }).collect()
        });
        PairLogps {
            // Token by token: the difference of two sums would lose digits.
            ratios: Pair::sums(batch, &((logps - &reference) * &mask)),
            policy: Pair::sums(batch, &(logps * &mask)),
            reference: Pair::sums(batch, &(reference * &mask)),
            lengths: Pair::sums(batch, &mask),
        }
    }

    /// BCO's δ with this batch's mean reward, where a loss reads it.
    fn bco_delta(&self, rewards: &Pair) -> Option<f64> {
        self.options.loss.0.contains_key(&DpoLoss::BcoPair).then(|| {
            let both = Tensor::cat(&[rewards.chosen.detach(), rewards.rejected.detach()], 0);
            self.bco_delta.with(both.mean(Kind::Double).double_value(&[]))
        })
    }

    fn coefficients(&self, bco_delta: Option<f64>) -> Coefficients {
        Coefficients {
            beta: self.options.beta,
            label_smoothing: self.options.label_smoothing,
            discopop_tau: self.options.discopop_tau,
            bco_delta: bco_delta.unwrap_or_default(),
        }
    }
}
