//! Direct preference optimisation, with Llama 3's two amendments.
//!
//! With r(y) = β Σ_t m_t [log π(y_t | x, y_<t) − log π_ref(y_t | x, y_<t)],
//!
//! L = − (1 / pairs) Σ log σ(r(y⁺) − r(y⁻)) + α NLL(y⁺)
//!
//! (Rafailov et al., "Direct Preference Optimization", 2023, eq. 7.) Llama 3 (2024, §4.1.4) sets
//! m_t = 0 on formatting tokens, whose presence in both responses makes the loss pull on one token
//! in two directions, and adds the negative log-likelihood of the chosen response with α = 0.2, so
//! that its probability does not fall (Pang et al., 2024). The NLL is a mean over all chosen tokens
//! of the batch, formatting tokens included, so that the model keeps learning to end its turn.

use arriero_buffers::SelectionRule;
use serde::{Deserialize, Serialize};
use tch::Kind;

use super::{AlgorithmConfig, Loss, Metrics, MicroBatch, Needs, Objective, TokenStatistics};

/// A named set of options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DpoPreset {
    /// β 0.1, formatting tokens masked, NLL coefficient 0.2 (Llama 3, §4.1.4).
    Llama3,
}

/// DPO's options. What is not set comes from the preset, else from the defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DpoConfig {
    /// A named set of options, which the others override.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<DpoPreset>,
    /// β: how strongly the policy is held to the reference. Default 0.1 (the paper's and TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// α: weight of the chosen responses' negative log-likelihood. Default 0 (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nll_coefficient: Option<f64>,
    /// Leave formatting tokens out of r. Default false (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_format_tokens: Option<bool>,
    /// ε: the share of pairs taken to be labelled the wrong way round (Chowdhury et al., 2024, cDPO).
    /// Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_smoothing: Option<f64>,
}

impl DpoConfig {
    /// The options with the preset and the defaults filled in.
    pub fn options(&self) -> DpoOptions {
        let preset = match self.preset {
            Some(DpoPreset::Llama3) => {
                DpoOptions { beta: 0.1, nll_coefficient: 0.2, mask_format_tokens: true, label_smoothing: 0.0 }
            }
            None => DpoOptions {
                beta: 0.1,
                nll_coefficient: 0.0,
                mask_format_tokens: false,
                label_smoothing: 0.0,
            },
        };
        DpoOptions {
            beta: self.beta.unwrap_or(preset.beta),
            nll_coefficient: self.nll_coefficient.unwrap_or(preset.nll_coefficient),
            mask_format_tokens: self.mask_format_tokens.unwrap_or(preset.mask_format_tokens),
            label_smoothing: self.label_smoothing.unwrap_or(preset.label_smoothing),
        }
    }
}

impl AlgorithmConfig for DpoConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(Dpo::new(self.options()))
    }

    fn resolved(&self) -> Self {
        let DpoOptions { beta, nll_coefficient, mask_format_tokens, label_smoothing } = self.options();
        DpoConfig {
            preset: self.preset,
            beta: Some(beta),
            nll_coefficient: Some(nll_coefficient),
            mask_format_tokens: Some(mask_format_tokens),
            label_smoothing: Some(label_smoothing),
        }
    }

    fn validate(&self) -> Result<(), String> {
        let DpoOptions { beta, nll_coefficient, label_smoothing, .. } = self.options();
        if !(beta.is_finite() && beta > 0.0) {
            return Err(format!("beta is {beta}; it must be above 0"));
        }
        if !(nll_coefficient.is_finite() && nll_coefficient >= 0.0) {
            return Err(format!("nll_coefficient is {nll_coefficient}; it must be at least 0"));
        }
        if !(0.0..0.5).contains(&label_smoothing) {
            return Err(format!("label_smoothing is {label_smoothing}; it must be at least 0 and below 0.5"));
        }
        Ok(())
    }
}

/// [`DpoConfig`] with nothing left open.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DpoOptions {
    /// β.
    pub beta: f64,
    /// α.
    pub nll_coefficient: f64,
    /// Whether m_t is 0 on formatting tokens.
    pub mask_format_tokens: bool,
    /// ε.
    pub label_smoothing: f64,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Dpo {
    options: DpoOptions,
}

impl Dpo {
    /// The objective of these options.
    pub fn new(options: DpoOptions) -> Self {
        Dpo { options }
    }
}

impl Objective for Dpo {
    fn needs(&self) -> Needs {
        Needs { selection: SelectionRule::BestAgainstWorst, reference: true, old: false }
    }

    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss {
        let DpoOptions { beta, nll_coefficient, mask_format_tokens, label_smoothing } = self.options;
        let logps = &statistics.logps;
        let reference = batch.per_token(logps, |branch| branch.reference_logps.clone());
        let mask = batch.per_token(logps, |branch| {
            let keep = |&is_format: &bool| if is_format && mask_format_tokens { 0.0 } else { 1.0 };
            branch.is_format.iter().map(keep).collect()
        });
        let ratios = (logps - reference) * mask * beta;
        let chosen = batch.sum_over_branch(&ratios, 0);
        let rejected = batch.sum_over_branch(&ratios, 1);
        let margins = &chosen - &rejected;
        let preference =
            -margins.log_sigmoid() * (1.0 - label_smoothing) - (-&margins).log_sigmoid() * label_smoothing;
        let chosen_logps = batch.sum_over_branch(logps, 0);
        let totals = batch.totals;
        let nll = -chosen_logps.sum(Kind::Float) / totals.first_branch_tokens as f64;
        let value = preference.sum(Kind::Float) / totals.trees as f64 + &nll * nll_coefficient;

        let mut metrics = Metrics::default();
        // A batch's loss is one number, so a micro-batch adds its share with a share of the weight.
        metrics.add("loss", value.double_value(&[]), batch.trees.len() as f64 / totals.trees as f64);
        metrics.add("nll_loss", nll.double_value(&[]), batch.trees.len() as f64 / totals.trees as f64);
        metrics.add_entries("rewards/chosen", &chosen.detach());
        metrics.add_entries("rewards/rejected", &rejected.detach());
        metrics.add_entries("rewards/margins", &margins.detach());
        metrics.add_entries("rewards/accuracies", &margins.detach().gt(0.0).to_kind(Kind::Float));
        metrics.add_entries("logps/chosen", &chosen_logps.detach());
        metrics.add_entries("logps/rejected", &batch.sum_over_branch(logps, 1).detach());
        metrics.add_entries("entropy", &statistics.entropies);
        Loss { value, metrics }
    }
}
