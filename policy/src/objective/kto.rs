//! Kahneman–Tversky optimisation: responses that are desirable or undesirable, without pairs.
//!
//! With ρ(y) = Σ_t [log π(y_t | x, y_<t) − log π_ref(y_t | x, y_<t)] and z = max(0, KL(π ‖ π_ref)),
//!
//! L = (1 / responses) [λ_D Σ_desirable (1 − σ(β (ρ(y) − z))) + λ_U Σ_undesirable (1 − σ(β (z − ρ(y))))]
//!
//! (Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization", 2024, eq. 7.) z carries no
//! gradient. As in the paper and in TRL it is estimated by the mean of log π/π_ref over the batch's prompts, each with the
//! response of another prompt ([`KtoKl`]), at the price of two more forward passes.
//!
//! A response is desirable if its reward is at least `desirable_reward`.

use arriero_buffers::Tree;
use arriero_buffers::selection::Unpaired;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::terms::{ranges, sync};
use super::{AlgorithmConfig, Loss, Metrics, MicroBatch, Needs, Objective, TokenStatistics, options};

/// The loss of a response, under TRL's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KtoLoss {
    /// The module's.
    Kto,
    /// The same with z = 0: APO-zero without pairs (D'Oosterlinck et al., 2024, eq. 7).
    ApoZeroUnpaired,
}

/// How z is estimated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KtoKl {
    /// By the mean of log π/π_ref over prompts with responses of other prompts: the metric `kl`. A prompt gets the response
    /// before its own in the batch (TRL's rotation), or where prompts have two responses each, that of the prompt before.
    Mismatched,
    /// By the mean of ρ over the batch's own responses: the metric `kl/batch`. It costs nothing, and estimates the KL where a
    /// policy near the one in training has sampled them.
    Batch,
}

options! {
    /// KTO's options.
    pub struct KtoConfig {
        /// The loss of a response. Default `"kto"` (TRL's).
        pub loss: KtoLoss = KtoLoss::Kto,
        /// β: how strongly the policy is held to the reference. Default 0.1 (the paper's and TRL's).
        pub beta: f64 = 0.1,
        /// λ_D: weight of desirable responses. Default 1 (TRL's). Where the classes are uneven, choose it so that
        /// λ_D times the desirable ones is 1 to 4/3 times λ_U times the undesirable ones (the paper's eq. 8).
        pub desirable_weight: f64 = 1.0,
        /// λ_U: weight of undesirable responses. Default 1 (TRL's).
        pub undesirable_weight: f64 = 1.0,
        /// The least reward of a desirable response. Default 0.5: in the middle of the built-in rewards.
        pub desirable_reward: f64 = 0.5,
        /// How z is estimated. Default `"mismatched"` (the paper's and TRL's).
        pub kl_estimate: KtoKl = KtoKl::Mismatched,
        /// Let the reference follow the policy, as TR-DPO does. Default false (TRL's).
        pub sync_ref_model: bool = false,
        /// α: the policy's share of the reference at an update. Default 0.6 (TRL's).
        pub ref_model_mixup_alpha: f64 = sync::ALPHA,
        /// Steps from one update of the reference to the next. Default 512 (TRL's).
        pub ref_model_sync_steps: usize = sync::STEPS,
    }
}

impl AlgorithmConfig for KtoConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(Kto { options: self.clone() })
    }

    fn validate(&self) -> Result<(), String> {
        ranges::above_zero("beta", self.beta)?;
        ranges::above_zero("desirable_weight", self.desirable_weight)?;
        ranges::above_zero("undesirable_weight", self.undesirable_weight)?;
        sync::check(self.ref_model_mixup_alpha, self.ref_model_sync_steps)?;
        ranges::finite("desirable_reward", self.desirable_reward)
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Kto {
    options: KtoConfig,
}

impl Objective for Kto {
    fn needs(&self) -> Needs {
        let KtoConfig { loss, kl_estimate, sync_ref_model, .. } = self.options;
        Needs {
            reference: !sync_ref_model,
            sync: sync::of(
                sync_ref_model,
                self.options.ref_model_mixup_alpha,
                self.options.ref_model_sync_steps,
            ),
            mismatched: loss == KtoLoss::Kto && kl_estimate == KtoKl::Mismatched,
            // The batch's own estimate of z, and the metric `rewards/margins`, are of the batch.
            whole_batch: true,
            ..Needs::of(Unpaired { desirable_reward: self.options.desirable_reward as f32 })
        }
    }

    fn check(&self, experience: &[&Tree]) -> Result<(), String> {
        let desirable = self.labels(experience).filter(|&desirable| desirable).count();
        let all = self.labels(experience).count();
        if desirable > 0 && desirable < all {
            return Ok(());
        }
        let class = if desirable == 0 { "undesirable" } else { "desirable" };
        Err(format!(
            "all {all} responses are {class} (desirable_reward is {}), but KTO needs both classes; change \
             desirable_reward, or give it other responses",
            self.options.desirable_reward
        ))
    }

    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss {
        let KtoConfig { beta, desirable_weight, undesirable_weight, .. } = self.options;
        let logps = &statistics.logps;
        // f64, as for pairs.
        let ratios = batch.sum_per_response(&(logps - batch.reference_logps(logps))).to_kind(Kind::Double);
        let kl = self.kl(&ratios, batch).clamp_min(0.0);
        let labels = Labels { desirable: self.labels(batch.trees).collect(), device: ratios.device() };
        let sign = labels.choose(1.0, -1.0);
        let weight = labels.choose(desirable_weight, undesirable_weight);
        // 1 − σ(x) = σ(−x).
        let per_response = weight * ((&kl - &ratios) * sign * beta).sigmoid();
        let value = per_response.sum(Kind::Float) / batch.totals.responses as f64;

        let mut metrics = self.metrics(&ratios, &kl, &labels, statistics, batch);
        metrics.add("loss", value.double_value(&[]), 1.0);
        Loss { value, metrics }
    }
}

/// Which responses of a micro-batch are desirable.
struct Labels {
    desirable: Vec<bool>,
    device: Device,
}

impl Labels {
    /// One number for the desirable responses, and one for the others: f64 `[responses]`.
    fn choose(&self, desirable: f64, undesirable: f64) -> Tensor {
        let choose = |&is_desirable: &bool| if is_desirable { desirable } else { undesirable };
        let values: Vec<f64> = self.desirable.iter().map(choose).collect();
        Tensor::from_slice(&values).to_device(self.device)
    }
}

/// The mean over the batch of what the trainer has found; NaN, which stops the step, if it has not.
fn mean_mismatched_ratio(batch: &[&Tree]) -> f64 {
    let ratios = batch.iter().flat_map(|tree| &tree.branches).map(|branch| branch.mismatched_ratio);
    let ratios: Vec<f64> = ratios.map(|ratio| ratio.map_or(f64::NAN, f64::from)).collect();
    ratios.iter().sum::<f64>() / ratios.len() as f64
}

impl Kto {
    /// True for each response that is desirable, in the order of trees, branches.
    fn labels<'a>(&self, trees: &'a [&'a Tree]) -> impl Iterator<Item = bool> + 'a {
        let least = self.options.desirable_reward as f32;
        trees.iter().flat_map(|tree| &tree.branches).map(move |branch| branch.reward >= least)
    }

    /// z before it is cut at 0: a scalar, from the ρ of the responses or from what the trainer has found.
    fn kl(&self, ratios: &Tensor, batch: &MicroBatch<'_>) -> Tensor {
        let scalar = |value: f64| Tensor::from(value).to_device(ratios.device());
        match (self.options.loss, self.options.kl_estimate) {
            (KtoLoss::Kto, KtoKl::Mismatched) => scalar(mean_mismatched_ratio(batch.batch)),
            (KtoLoss::Kto, KtoKl::Batch) => ratios.detach().mean(Kind::Double),
            (KtoLoss::ApoZeroUnpaired, _) => scalar(0.0),
        }
    }

    fn metrics(
        &self,
        ratios: &Tensor,
        kl: &Tensor,
        labels: &Labels,
        statistics: &TokenStatistics,
        batch: &MicroBatch<'_>,
    ) -> Metrics {
        let mut metrics = Metrics::default();
        let mut side = |name: &'static str, values: &Tensor, mask: &Tensor| {
            let (sum, count) = ((values * mask).sum(Kind::Double), mask.sum(Kind::Double));
            let (sum, count) = (sum.double_value(&[]), count.double_value(&[]));
            metrics.add(name, sum, count);
            sum / count
        };
        let (desirable, undesirable) = (labels.choose(1.0, 0.0), labels.choose(0.0, 1.0));
        let rewards = ratios.detach() * self.options.beta;
        let chosen = side("rewards/chosen", &rewards, &desirable);
        let rejected = side("rewards/rejected", &rewards, &undesirable);
        let logps = batch.sum_per_response(&statistics.logps).detach();
        side("logps/chosen", &logps, &desirable);
        side("logps/rejected", &logps, &undesirable);
        if (chosen - rejected).is_finite() {
            metrics.add("rewards/margins", chosen - rejected, 1.0);
        }
        let name = match (self.options.loss, self.options.kl_estimate) {
            (KtoLoss::Kto, KtoKl::Batch) => "kl/batch",
            // TRL logs a 0 where there is no z, too.
            _ => "kl",
        };
        metrics.add(name, kl.double_value(&[]), 1.0);
        metrics.add_entries("frac_desirable", &desirable);
        metrics.add_entries("entropy", &statistics.entropies);
        metrics
    }
}
