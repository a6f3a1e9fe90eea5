//! DPO's options, which online DPO has, too.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Dpo;
use super::losses::{DpoLoss, WeightedLosses};
use crate::objective::terms::{ranges, sync};
use crate::objective::{AlgorithmConfig, Objective, ReferenceSync, options};

/// A named set of options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DpoPreset {
    /// β 0.1, formatting tokens masked, NLL coefficient 0.2 (Llama 3, §4.1.4).
    Llama3,
}

options! {
    /// DPO's options. What a file does not give comes from the preset, else from the defaults: see [`DpoGiven`].
    pub struct DpoConfig given as DpoGiven {
        /// A named set of options, which the others override.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub preset: Option<DpoPreset> = None,
        /// The loss of a pair: one name, or a table of weights. Default `"sigmoid"` (the paper's and TRL's).
        pub loss: WeightedLosses = DpoLoss::Sigmoid.into(),
        /// β: how strongly the policy is held to the reference; IPO's τ. Default 0.1 (the paper's and TRL's).
        pub beta: f64 = 0.1,
        /// α: weight of the chosen responses' negative log-likelihood. Default 0 (TRL's).
        pub nll_coefficient: f64 = 0.0,
        /// Leave formatting tokens out of r. Default false (TRL's).
        pub mask_format_tokens: bool = false,
        /// ε: the share of pairs taken to be labelled the wrong way round. `sigmoid`, `robust`, `exo_pair`, `aot`
        /// and `aot_unpaired` read it. Default 0 (TRL's); with `exo_pair` 0.001 (its paper's).
        pub label_smoothing: f64 = 0.0,
        /// τ of `discopop`. Default 0.05 (its paper's and TRL's).
        pub discopop_tau: f64 = 0.05,
        /// Let the reference follow the policy: TR-DPO (Gorbatovski et al., 2024). Each batch is then scored under the reference
        /// in its step. Default false (TRL's).
        pub sync_ref_model: bool = false,
        /// α: the policy's share of the reference at an update; 1 puts the policy in its place. Default 0.6 (the paper's and
        /// TRL's).
        pub ref_model_mixup_alpha: f64 = sync::ALPHA,
        /// Steps from one update of the reference to the next. Default 512 (TRL's).
        pub ref_model_sync_steps: usize = sync::STEPS,
    }
}

impl From<DpoGiven> for DpoConfig {
    fn from(given: DpoGiven) -> Self {
        let mut defaults = DpoConfig::default();
        if let Some(Some(DpoPreset::Llama3)) = given.preset {
            (defaults.nll_coefficient, defaults.mask_format_tokens) = (0.2, true);
        }
        if given.loss.as_ref().is_some_and(|losses| losses.0.contains_key(&DpoLoss::ExoPair)) {
            defaults.label_smoothing = 1e-3;
        }
        given.over(defaults)
    }
}

impl From<DpoPreset> for DpoConfig {
    fn from(preset: DpoPreset) -> Self {
        DpoGiven { preset: Some(Some(preset)), ..DpoGiven::default() }.into()
    }
}

impl DpoConfig {
    /// How the reference follows the policy.
    pub(super) fn sync(&self) -> Option<ReferenceSync> {
        sync::of(self.sync_ref_model, self.ref_model_mixup_alpha, self.ref_model_sync_steps)
    }
}

impl AlgorithmConfig for DpoConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(Dpo::new(self.clone()))
    }

    fn validate(&self) -> Result<(), String> {
        let losses = &self.loss.0;
        if losses.is_empty() {
            return Err("loss is an empty table; it must name at least one loss".to_string());
        }
        for (loss, &weight) in losses {
            ranges::above_zero(&format!("loss: the weight of {loss:?}"), weight)?;
        }
        ranges::above_zero("beta", self.beta)?;
        ranges::at_least_zero("nll_coefficient", self.nll_coefficient)?;
        ranges::flip_rate("label_smoothing", self.label_smoothing)?;
        if losses.contains_key(&DpoLoss::ExoPair) && self.label_smoothing == 0.0 {
            return Err("label_smoothing is 0; with exo_pair it must be above 0, such as 0.001".to_string());
        }
        ranges::above_zero("discopop_tau", self.discopop_tau)?;
        sync::check(self.ref_model_mixup_alpha, self.ref_model_sync_steps)
    }
}
