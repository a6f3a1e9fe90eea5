//! What the objectives on preference pairs share: sums over both responses, the chosen responses' NLL,
//! and the metrics.
//!
//! In a pair's tree branch 0 is the chosen response and branch 1 the rejected one.

use arriero_buffers::{Branch, Tree};
use tch::{Kind, Tensor};

use crate::objective::{Metrics, MicroBatch, TokenStatistics};

/// One number of each response, one entry a pair: `[pairs]` each. They are f64, which costs nothing at this size:
/// in f32 the gradients of some losses lose all digits where a preference is nearly certain.
#[derive(Debug)]
pub struct Pair {
    /// Of the chosen responses.
    pub chosen: Tensor,
    /// Of the rejected ones.
    pub rejected: Tensor,
}

impl Pair {
    /// Sums of a per-token tensor over each response.
    pub fn sums(batch: &MicroBatch<'_>, per_token: &Tensor) -> Self {
        let side = |branch: usize| batch.sum_over_branch(per_token, branch).to_kind(Kind::Double);
        Pair { chosen: side(0), rejected: side(1) }
    }

    /// Means over the tokens of each response; an empty response has 0.
    pub fn means(batch: &MicroBatch<'_>, per_token: &Tensor) -> Self {
        Pair::sums(batch, per_token).over(&Pair::sums(batch, &per_token.detach().ones_like()))
    }

    /// Divides by counts; a count of 0 is taken as 1.
    pub fn over(&self, counts: &Pair) -> Self {
        Pair {
            chosen: &self.chosen / counts.chosen.clamp_min(1.0),
            rejected: &self.rejected / counts.rejected.clamp_min(1.0),
        }
    }

    /// Applies `f` to both sides.
    pub fn map(&self, f: impl Fn(&Tensor) -> Tensor) -> Self {
        Pair { chosen: f(&self.chosen), rejected: f(&self.rejected) }
    }

    /// Chosen minus rejected.
    pub fn margin(&self) -> Tensor {
        &self.chosen - &self.rejected
    }
}

/// This micro-batch's share of the mean over the batch's pairs, from what is known of each of its own: `[pairs]`.
pub fn mean(per_pair: &Tensor, batch: &MicroBatch<'_>) -> Tensor {
    per_pair.sum(Kind::Float) / batch.totals.trees as f64
}

/// This micro-batch's share of the batch's negative log-likelihood: the mean over all tokens of chosen
/// responses.
pub fn chosen_nll(logps: &Tensor, batch: &MicroBatch<'_>) -> Tensor {
    -batch.sum_over_branch(logps, 0).sum(Kind::Float) / batch.totals.first_branch_tokens.max(1) as f64
}

/// Refuses trees that are no pairs.
///
/// # Errors
/// As [`Objective::check`](crate::objective::Objective::check).
pub fn check(experience: &[&Tree]) -> Result<(), String> {
    match experience.iter().find(|tree| tree.branches.len() != 2) {
        None => Ok(()),
        Some(tree) => Err(format!(
            "prompt {} has {} responses, expected a chosen and a rejected one: the algorithm learns from pairs; \
             give it pairs, or change algorithm.kind",
            tree.prompt_id,
            tree.branches.len()
        )),
    }
}

/// The responses' metrics, under TRL's names. `rewards` and `logps` are what the algorithm calls so: sums for DPO, means
/// over tokens for SimPO.
pub fn metrics(
    rewards: &Pair,
    logps: &Pair,
    statistics: &TokenStatistics,
    batch: &MicroBatch<'_>,
) -> Metrics {
    let mut metrics = Metrics::default();
    let rewards = rewards.map(Tensor::detach);
    let margins = rewards.margin();
    metrics.add_entries("rewards/chosen", &rewards.chosen);
    metrics.add_entries("rewards/rejected", &rewards.rejected);
    metrics.add_entries("rewards/margins", &margins);
    metrics.add_entries("rewards/accuracies", &margins.gt(0.0).to_kind(Kind::Float));
    metrics.add_entries("logps/chosen", &logps.chosen.detach());
    metrics.add_entries("logps/rejected", &logps.rejected.detach());
    metrics.add_entries("entropy", &statistics.entropies);
    let hits = batch.sum_over_branch(&statistics.top1, 0).sum(Kind::Double).double_value(&[]);
    let chosen = batch.trees.iter().filter_map(|tree| tree.branches.first());
    let tokens: usize = chosen.map(Branch::loss_tokens).sum();
    metrics.add("mean_token_accuracy", hits, tokens as f64);
    metrics
}
