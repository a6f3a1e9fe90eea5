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

use std::collections::BTreeMap;

use arriero_buffers::{SelectionRule, Tree};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use self::losses::{Coefficients, PairLogps};
use super::pairs::{self, Pair};
use super::{
    AlgorithmConfig, Loss, Metrics, MicroBatch, Needs, Objective, ReferenceSync, TokenStatistics, sync,
};

pub use losses::{DpoLoss, WeightedLosses};
pub(super) use losses::{hinge, ipo, smoothed_sigmoid};

/// A named set of options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DpoPreset {
    /// β 0.1, formatting tokens masked, NLL coefficient 0.2 (Llama 3, §4.1.4).
    Llama3,
}

/// DPO's options. What is not set comes from the preset, else from the defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DpoConfig {
    /// A named set of options, which the others override.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<DpoPreset>,
    /// The loss of a pair: one name, or a table of weights. Default `"sigmoid"` (the paper's and TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<WeightedLosses>,
    /// β: how strongly the policy is held to the reference; IPO's τ. Default 0.1 (the paper's and TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// α: weight of the chosen responses' negative log-likelihood. Default 0 (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nll_coefficient: Option<f64>,
    /// Leave formatting tokens out of r. Default false (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_format_tokens: Option<bool>,
    /// ε: the share of pairs taken to be labelled the wrong way round. `sigmoid`, `robust`, `exo_pair`, `aot`
    /// and `aot_unpaired` read it. Default 0 (TRL's); with `exo_pair` 0.001 (its paper's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_smoothing: Option<f64>,
    /// τ of `discopop`. Default 0.05 (its paper's and TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discopop_tau: Option<f64>,
    /// Let the reference follow the policy: TR-DPO (Gorbatovski et al., 2024). Each batch is then scored under the reference
    /// in its step. Default false (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_ref_model: Option<bool>,
    /// α: the policy's share of the reference at an update; 1 puts the policy in its place. Default 0.6 (the paper's and
    /// TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ref_model_mixup_alpha: Option<f64>,
    /// Steps from one update of the reference to the next. Default 512 (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ref_model_sync_steps: Option<usize>,
}

impl DpoConfig {
    /// The options with the preset and the defaults filled in.
    pub fn options(&self) -> DpoOptions {
        let (nll_coefficient, mask_format_tokens) = match self.preset {
            Some(DpoPreset::Llama3) => (0.2, true),
            None => (0.0, false),
        };
        let losses = self.loss.clone().unwrap_or_else(|| DpoLoss::Sigmoid.into());
        let label_smoothing = if losses.0.contains_key(&DpoLoss::ExoPair) { 1e-3 } else { 0.0 };
        DpoOptions {
            losses,
            beta: self.beta.unwrap_or(0.1),
            nll_coefficient: self.nll_coefficient.unwrap_or(nll_coefficient),
            mask_format_tokens: self.mask_format_tokens.unwrap_or(mask_format_tokens),
            label_smoothing: self.label_smoothing.unwrap_or(label_smoothing),
            discopop_tau: self.discopop_tau.unwrap_or(0.05),
            sync: sync::of(self.sync_ref_model.unwrap_or(false), self.alpha(), self.sync_steps()),
        }
    }

    fn alpha(&self) -> f64 {
        self.ref_model_mixup_alpha.unwrap_or(sync::ALPHA)
    }

    fn sync_steps(&self) -> usize {
        self.ref_model_sync_steps.unwrap_or(sync::STEPS)
    }
}

impl AlgorithmConfig for DpoConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(Dpo::new(self.options()))
    }

    fn resolved(&self) -> Self {
        let options = self.options();
        DpoConfig {
            preset: self.preset,
            loss: Some(options.losses),
            beta: Some(options.beta),
            nll_coefficient: Some(options.nll_coefficient),
            mask_format_tokens: Some(options.mask_format_tokens),
            label_smoothing: Some(options.label_smoothing),
            discopop_tau: Some(options.discopop_tau),
            sync_ref_model: Some(options.sync.is_some()),
            ref_model_mixup_alpha: Some(self.alpha()),
            ref_model_sync_steps: Some(self.sync_steps()),
        }
    }

    fn validate(&self) -> Result<(), String> {
        let options = self.options();
        let losses = &options.losses.0;
        if losses.is_empty() {
            return Err("loss is an empty table; it must name at least one loss".to_string());
        }
        for (loss, &weight) in losses {
            pairs::above_zero(&format!("loss: the weight of {loss:?}"), weight)?;
        }
        pairs::above_zero("beta", options.beta)?;
        pairs::at_least_zero("nll_coefficient", options.nll_coefficient)?;
        pairs::flip_rate("label_smoothing", options.label_smoothing)?;
        if losses.contains_key(&DpoLoss::ExoPair) && options.label_smoothing == 0.0 {
            return Err("label_smoothing is 0; with exo_pair it must be above 0, such as 0.001".to_string());
        }
        pairs::above_zero("discopop_tau", options.discopop_tau)?;
        sync::check(self.alpha(), self.sync_steps())
    }
}

/// [`DpoConfig`] with nothing left open.
#[derive(Debug, Clone, PartialEq)]
pub struct DpoOptions {
    /// The losses of a pair, with their weights.
    pub losses: WeightedLosses,
    /// β.
    pub beta: f64,
    /// α.
    pub nll_coefficient: f64,
    /// Whether m_t is 0 on formatting tokens.
    pub mask_format_tokens: bool,
    /// ε.
    pub label_smoothing: f64,
    /// τ of DiscoPOP.
    pub discopop_tau: f64,
    /// How the reference follows the policy.
    pub sync: Option<ReferenceSync>,
}

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
    options: DpoOptions,
    bco_delta: RunningMean,
}

impl Dpo {
    /// The objective of these options.
    pub fn new(options: DpoOptions) -> Self {
        Dpo { options, bco_delta: RunningMean::default() }
    }

    fn has(&self, loss: DpoLoss) -> bool {
        self.options.losses.0.contains_key(&loss)
    }
}

/// The metric that carries BCO's δ (TRL's name in its BCO trainer).
const BCO_DELTA: &str = "delta";

impl Objective for Dpo {
    fn needs(&self) -> Needs {
        Needs {
            reference: self.options.sync.is_none(),
            sync: self.options.sync,
            whole_batch: self.options.losses.0.keys().any(|loss| loss.couples_pairs()),
            ..Needs::of(SelectionRule::BestAgainstWorst)
        }
    }

    fn check(&self, experience: &[&Tree]) -> Result<(), String> {
        pairs::check(experience)
    }

    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss {
        let DpoOptions { ref losses, beta, nll_coefficient, mask_format_tokens, .. } = self.options;
        let logps = &statistics.logps;
        let reference = batch.per_token(logps, |branch| branch.reference_logps.clone());
        let mask = batch.per_token(logps, |branch| {
            let keep = |&is_format: &bool| if is_format && mask_format_tokens { 0.0 } else { 1.0 };
            branch.is_format.iter().map(keep).collect()
        });
        let pair = PairLogps {
            // Token by token: the difference of two sums would lose digits.
            ratios: Pair::sums(batch, &((logps - &reference) * &mask)),
            policy: Pair::sums(batch, &(logps * &mask)),
            reference: Pair::sums(batch, &(reference * &mask)),
            lengths: Pair::sums(batch, &mask),
        };
        let rewards = pair.ratios.map(|ratio| ratio * beta);
        let mean_reward = || {
            let both = Tensor::cat(&[rewards.chosen.detach(), rewards.rejected.detach()], 0);
            both.mean(Kind::Double).double_value(&[])
        };
        let bco_delta = self.has(DpoLoss::BcoPair).then(|| self.bco_delta.with(mean_reward()));
        let coefficients = Coefficients {
            beta,
            label_smoothing: self.options.label_smoothing,
            discopop_tau: self.options.discopop_tau,
            bco_delta: bco_delta.unwrap_or_default(),
        };
        let totals = batch.totals;
        let nll = pairs::chosen_nll(logps, batch);
        let mut value = &nll * nll_coefficient;
        for (loss, &weight) in &losses.0 {
            let per_pair = loss.per_pair(&pair, &coefficients);
            value += per_pair.sum(Kind::Float) * (weight / totals.trees as f64);
        }

        let mut metrics = Metrics::default();
        pairs::add_share(&mut metrics, "loss", &value, batch);
        pairs::add_share(&mut metrics, "nll_loss", &nll, batch);
        pairs::add_metrics(&mut metrics, &rewards, &Pair::sums(batch, logps), statistics, batch);
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
