//! From one loss a token to the loss of a batch: which tokens count, and what divides their sum.

use arriero_buffers::{Branch, Tree};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::objective::{Metrics, MicroBatch};

/// What the sum over tokens is divided by. The denominators are those of the whole batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// The tokens of the batch: each counts the same (DAPO; TRL's `dapo`).
    Token,
    /// The tokens of the sequence, then the sequences: each sequence counts the same, so a token of a short one counts
    /// more (TRL's `grpo`).
    Sequence,
    /// The tokens of the sequence, then the sequences of the group, then the groups: each prompt counts the same, even
    /// where groups differ in size.
    Group,
    /// The sequences times a constant length: no length is favoured (Dr. GRPO; TRL's `dr_grpo`).
    Constant,
}

/// Which responses carry loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LossMask {
    /// Leave out responses that the token limit cut short (DAPO's overlong filtering).
    pub skip_truncated: bool,
}

impl LossMask {
    /// Every response carries loss.
    pub const ALL: LossMask = LossMask { skip_truncated: false };

    /// True if the response carries loss.
    pub fn keeps(&self, branch: &Branch) -> bool {
        !(self.skip_truncated && branch.truncated)
    }

    /// Tokens of each response that carry loss: `[responses]`.
    pub fn lengths(&self, batch: &MicroBatch<'_>) -> Vec<f64> {
        let length = |branch: &Branch| if self.keeps(branch) { branch.loss_tokens() as f64 } else { 0.0 };
        batch.responses().map(length).collect()
    }

    /// Tokens of these trees that carry loss.
    pub fn tokens(&self, trees: &[&Tree]) -> usize {
        let kept = trees.iter().flat_map(|tree| &tree.branches).filter(|branch| self.keeps(branch));
        kept.map(Branch::loss_tokens).sum()
    }

    /// 1 for tokens that carry loss, else 0: `[response tokens]`.
    pub fn per_token(&self, batch: &MicroBatch<'_>, like: &Tensor) -> Tensor {
        batch.per_token(like, |branch| vec![if self.keeps(branch) { 1.0 } else { 0.0 }; branch.loss_tokens()])
    }

    /// Adds a per-token tensor to the mean called `name`, over the tokens that carry loss.
    pub fn mean(
        &self,
        metrics: &mut Metrics,
        name: &'static str,
        per_token: &Tensor,
        batch: &MicroBatch<'_>,
    ) {
        let sum = (per_token.detach() * self.per_token(batch, per_token)).sum(Kind::Double).double_value(&[]);
        metrics.add(name, sum, self.tokens(batch.trees) as f64);
    }
}

/// The micro-batch's share of the batch's loss. `per_token` is `[response tokens]`; `length` is what
/// [`Aggregation::Constant`] divides by.
pub fn aggregate(
    per_token: &Tensor,
    batch: &MicroBatch<'_>,
    mask: &LossMask,
    aggregation: Aggregation,
    length: usize,
) -> Tensor {
    let masked = per_token * mask.per_token(batch, per_token);
    let sum = |tensor: Tensor| tensor.sum(Kind::Float);
    let sequence_means = || {
        let lengths: Vec<f64> = mask.lengths(batch).into_iter().map(|length| length.max(1.0)).collect();
        batch.sum_per_response(&masked) / batch.floats(per_token, &lengths)
    };
    let responses = batch.totals.responses.max(1) as f64;
    match aggregation {
        Aggregation::Token => sum(masked) / mask.tokens(batch.batch).max(1) as f64,
        Aggregation::Sequence => sum(sequence_means()) / responses,
        Aggregation::Group => {
            let sizes: Vec<f64> = batch
                .trees
                .iter()
                .flat_map(|tree| tree.branches.iter().map(|_| tree.branches.len() as f64))
                .collect();
            sum(sequence_means() / batch.floats(per_token, &sizes)) / batch.totals.trees.max(1) as f64
        }
        Aggregation::Constant => sum(masked) / (responses * length.max(1) as f64),
    }
}
