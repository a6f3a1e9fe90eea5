//! The host's side of a batch: its trees, and sums over their tokens.

use arriero_buffers::{Branch, Tree};
use tch::{Kind, Tensor};

/// Counts over the whole batch of which a micro-batch is a part: the denominators of means. Those of the parts of a batch add
/// up to those of the batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Trees.
    pub trees: usize,
    /// Response tokens that carry loss.
    pub tokens: usize,
    /// Response tokens of first branches (the chosen ones of preference pairs).
    pub first_branch_tokens: usize,
    /// Responses.
    pub responses: usize,
}

impl Totals {
    /// Counts the batch.
    pub fn of(batch: &[&Tree]) -> Self {
        Totals {
            trees: batch.len(),
            tokens: batch.iter().map(|tree| tree.loss_tokens()).sum(),
            first_branch_tokens: batch
                .iter()
                .filter_map(|tree| tree.branches.first())
                .map(Branch::loss_tokens)
                .sum(),
            responses: batch.iter().map(|tree| tree.branches.len()).sum(),
        }
    }
}

impl std::ops::Add for Totals {
    type Output = Totals;

    fn add(self, other: Totals) -> Totals {
        Totals {
            trees: self.trees + other.trees,
            tokens: self.tokens + other.tokens,
            first_branch_tokens: self.first_branch_tokens + other.first_branch_tokens,
            responses: self.responses + other.responses,
        }
    }
}

/// The host's side of a micro-batch.
#[derive(Debug)]
pub struct MicroBatch<'a> {
    /// Its trees, in the order of the statistics.
    pub trees: &'a [&'a Tree],
    /// Counts of the whole batch.
    pub totals: Totals,
    /// The whole batch, of which `trees` is a part: for statistics over all of its rewards.
    pub batch: &'a [&'a Tree],
}

impl<'a> MicroBatch<'a> {
    /// All of a batch.
    pub fn whole(batch: &'a [&'a Tree]) -> Self {
        MicroBatch { trees: batch, totals: Totals::of(batch), batch }
    }
}

impl MicroBatch<'_> {
    /// The part of the batch's trees that it has.
    pub fn share(&self) -> f64 {
        self.trees.len() as f64 / self.totals.trees.max(1) as f64
    }

    /// Log-probabilities of the policy that sampled, as the ratio of a surrogate wants them: `[response tokens]`.
    pub fn old_logps(&self, like: &Tensor) -> Tensor {
        self.per_token(like, |branch| branch.old_policy_logps().to_vec())
    }

    /// Log-probabilities of the frozen reference: `[response tokens]`.
    pub fn reference_logps(&self, like: &Tensor) -> Tensor {
        self.per_token(like, |branch| branch.reference_logps.clone())
    }

    /// One number a response token, in the order of the statistics: `[response tokens]`, f32.
    pub fn per_token(&self, like: &Tensor, values: impl Fn(&Branch) -> Vec<f32>) -> Tensor {
        let flat: Vec<f32> = self.trees.iter().flat_map(|tree| &tree.branches).flat_map(values).collect();
        Tensor::from_slice(&flat).to_device(like.device())
    }

    /// The responses, in the order of the statistics.
    pub fn responses(&self) -> impl Iterator<Item = &Branch> {
        self.trees.iter().flat_map(|tree| &tree.branches)
    }

    /// Numbers of the host, of tokens or of responses, as an f32 tensor on the device of `like`.
    pub fn floats(&self, like: &Tensor, values: &[f64]) -> Tensor {
        let single: Vec<f32> = values.iter().map(|&value| value as f32).collect();
        Tensor::from_slice(&single).to_device(like.device())
    }

    /// Gives each token the number of its response: `[responses]` to `[response tokens]`.
    pub fn spread(&self, per_response: &Tensor) -> Tensor {
        let owners: Vec<i64> = Branch::loss_token_ranges(self.responses())
            .enumerate()
            .flat_map(|(owner, range)| std::iter::repeat_n(owner as i64, range.len()))
            .collect();
        per_response.index_select(0, &Tensor::from_slice(&owners).to_device(per_response.device()))
    }

    /// Sums of a per-token tensor over the branches with number `branch` of each tree: `[trees]`.
    pub fn sum_over_branch(&self, per_token: &Tensor, branch: usize) -> Tensor {
        self.grouped_sums(per_token, self.trees.len(), |tree, index, _| (index == branch).then_some(tree))
    }

    /// Sums of a per-token tensor over each response: `[responses]`, in the order of trees, branches.
    pub fn sum_per_response(&self, per_token: &Tensor) -> Tensor {
        let responses = self.trees.iter().map(|tree| tree.branches.len()).sum();
        self.grouped_sums(per_token, responses, |_, _, response| Some(response))
    }

    /// Sums over groups of responses; `group` gets the numbers of the tree, of the branch in its tree and
    /// of the response in the micro-batch.
    fn grouped_sums(
        &self,
        per_token: &Tensor,
        groups: usize,
        group: impl Fn(usize, usize, usize) -> Option<usize>,
    ) -> Tensor {
        let mut rows = Vec::new();
        let mut owners = Vec::new();
        let places = self.trees.iter().enumerate();
        let places = places
            .flat_map(|(tree, Tree { branches, .. })| (0..branches.len()).map(move |index| (tree, index)));
        let ranges = Branch::loss_token_ranges(self.responses());
        for (response, ((tree, index), range)) in places.zip(ranges).enumerate() {
            if let Some(owner) = group(tree, index, response) {
                owners.extend(std::iter::repeat_n(owner as i64, range.len()));
                rows.extend(range.map(|row| row as i64));
            }
        }
        let device = per_token.device();
        let values = per_token.index_select(0, &Tensor::from_slice(&rows).to_device(device));
        Tensor::zeros([groups as i64], (Kind::Float, device)).index_add(
            0,
            &Tensor::from_slice(&owners).to_device(device),
            &values,
        )
    }
}
