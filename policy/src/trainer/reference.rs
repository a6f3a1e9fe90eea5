//! A reference that the trainer keeps itself, for what cannot be scored once before the training: one that follows the
//! policy, and prompts with the responses of others, which change with the batch.

use arriero_buffers::{Branch, Tree};
use tch::{Kind, Tensor, no_grad};

use super::Trainer;
use crate::checkpoint::{Weights, handles};
use crate::config::ModelConfig;
use crate::device::Compute;
use crate::error::{PolicyError, Result};
use crate::forest::micro_batches;
use crate::model::Model;
use crate::scoring::{response_logps, score_reference};

#[derive(Debug)]
pub(super) struct OwnReference {
    /// f32; `None` where it does not follow the policy.
    masters: Option<Weights>,
    model: Model,
}

impl OwnReference {
    fn new(config: &ModelConfig, weights: &Weights, compute: Compute, follows: bool) -> Result<Self> {
        let shapes = config.tensor_shapes();
        let own = shapes.iter().filter_map(|(name, _)| weights.get_key_value(name));
        let copy = |tensor: &Tensor| tensor.to_device(compute.device).to_kind(Kind::Float).copy();
        let masters: Option<Weights> =
            follows.then(|| own.map(|(name, tensor)| (name.clone(), copy(tensor))).collect());
        let model = Model::new(config, masters.as_ref().unwrap_or(weights), compute)?;
        Ok(OwnReference { masters, model })
    }

    /// π_ref ← α π + (1 − α) π_ref.
    fn follow(&mut self, policy: &Weights, alpha: f64) -> Result<()> {
        let Some(masters) = &mut self.masters else { return Ok(()) };
        no_grad(|| {
            for (name, master) in masters.iter_mut() {
                let policy =
                    policy.get(name).ok_or_else(|| PolicyError::MissingTensor { name: name.clone() })?;
                let _ = master.lerp_(policy, alpha);
            }
            Ok(())
        })?;
        self.model = Model::new(self.model.config(), masters, self.model.compute())?;
        Ok(())
    }
}

impl Trainer {
    /// The same with a reference of its own, which starts as a copy of `weights`. Nothing happens where the objective needs
    /// none ([`Needs::keeps_reference`](crate::objective::Needs::keeps_reference)).
    ///
    /// # Errors
    /// If the weights do not fit the model.
    pub fn with_reference(mut self, weights: &Weights) -> Result<Self> {
        let needs = self.objective.needs();
        if needs.keeps_reference() {
            let follows = needs.sync.is_some();
            self.reference = Some(OwnReference::new(&self.config, weights, self.compute, follows)?);
        }
        Ok(self)
    }

    /// The f32 weights of a reference that follows the policy: handles, which change with its next update.
    pub fn reference(&self) -> Option<Weights> {
        self.reference.as_ref()?.masters.as_ref().map(handles)
    }

    /// The batch with what the trainer's own reference says of it under the weights as they are; `None` where the objective
    /// wants nothing of it. What it says of a tree depends on the tree, and for
    /// [`Needs::mismatched`](crate::objective::Needs::mismatched) on the batch.
    ///
    /// # Errors
    /// If a sequence does not fit the model, or there is no reference.
    pub fn with_reference_scores(&self, batch: &[&Tree]) -> Result<Option<Vec<Tree>>> {
        let needs = self.objective.needs();
        if !needs.keeps_reference() {
            return Ok(None);
        }
        let reference = self.reference.as_ref().ok_or(PolicyError::NoReference)?;
        let budget = self.training.token_budget(&self.config, self.compute);
        let mut trees: Vec<Tree> = batch.iter().map(|tree| (*tree).clone()).collect();
        if needs.sync.is_some() {
            score_reference(&reference.model, &mut trees, budget)?;
        }
        if needs.mismatched {
            let others = mismatched(batch, self.config.max_positions);
            let views: Vec<&Tree> = others.iter().collect();
            let mut ratios = Vec::new();
            for piece in micro_batches(&views, budget) {
                let policy = response_logps(&self.model, piece)?;
                let frozen = response_logps(&reference.model, piece)?;
                let ratio_terms: Vec<f64> =
                    policy.iter().zip(&frozen).map(|(ours, theirs)| f64::from(ours - theirs)).collect();
                let branches = piece.iter().flat_map(|tree| &tree.branches);
                let sums = Branch::split_by_loss_tokens(branches, &ratio_terms);
                ratios.extend(sums.map(|terms| terms.iter().copied().sum::<f64>() as f32));
            }
            for (branch, ratio) in trees.iter_mut().flat_map(|tree| &mut tree.branches).zip(ratios) {
                branch.mismatched_ratio = Some(ratio);
            }
        }
        Ok(Some(trees))
    }

    /// Lets the reference follow the policy, if a step of this number is one behind which it does.
    pub(super) fn update_reference(&mut self, steps: usize) -> Result<()> {
        match self.objective.needs().sync {
            Some(sync) if steps.is_multiple_of(sync.every) => {
                let policy = self.weights();
                self.reference.as_mut().map_or(Ok(()), |reference| reference.follow(&policy, sync.alpha))
            }
            _ => Ok(()),
        }
    }
}

/// The prompts of a batch, each with as many responses as it has, of other prompts: those that stand before its own in the
/// batch, the last ones before the first. The distance is the largest number of responses that a prompt has, so that none of
/// its own are among them, unless the batch has no others. What does not fit behind a prompt loses its end.
fn mismatched(batch: &[&Tree], max_positions: usize) -> Vec<Tree> {
    let responses: Vec<&Branch> = batch.iter().flat_map(|tree| &tree.branches).collect();
    let distance = batch.iter().map(|tree| tree.branches.len()).max().unwrap_or(0);
    let mut others = responses.iter().cycle().skip(responses.len().saturating_sub(distance));
    let behind = |tree: &&Tree| {
        let room = max_positions.saturating_sub(tree.prompt.len());
        let cut = |other: &&Branch| Branch {
            sample: other.sample,
            tokens: other.tokens.iter().take(room).copied().collect(),
            is_context: other.is_context.iter().take(room).copied().collect(),
            ..Branch::default()
        };
        let branches = others.by_ref().take(tree.branches.len()).map(cut).collect();
        Tree { prompt_id: tree.prompt_id, prompt: tree.prompt.clone(), branches, ..Tree::default() }
    };
    batch.iter().map(behind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(id: u64, responses: &[&[u32]]) -> Tree {
        let branch = |tokens: &&[u32]| Branch { tokens: tokens.to_vec(), ..Branch::default() };
        Tree {
            prompt_id: id,
            prompt: vec![1; 3],
            branches: responses.iter().map(branch).collect(),
            ..Tree::default()
        }
    }

    fn responses(batch: &[Tree], max_positions: usize) -> Vec<Vec<Vec<u32>>> {
        let others = mismatched(&batch.iter().collect::<Vec<_>>(), max_positions);
        let of = |tree: &Tree| tree.branches.iter().map(|branch| branch.tokens.clone()).collect();
        others.iter().map(of).collect()
    }

    /// (x₁, y₁), (x₂, y₂), (x₃, y₃) become (x₁, y₃), (x₂, y₁), (x₃, y₂), as in TRL.
    #[test]
    fn single_responses_are_rotated_by_one() {
        let batch = [tree(1, &[&[11]]), tree(2, &[&[12, 13]]), tree(3, &[&[14, 15, 16]])];
        assert_eq!(responses(&batch, 9), [[vec![14, 15, 16]], [vec![11]], [vec![12, 13]]]);
        // Two places are left behind the prompt.
        assert_eq!(responses(&batch, 5), [[vec![14, 15]], [vec![11]], [vec![12, 13]]]);
    }

    #[test]
    fn no_prompt_gets_a_response_of_its_own_unless_there_is_no_other() {
        let batch = [tree(1, &[&[11], &[12]]), tree(2, &[&[21]]), tree(3, &[&[31], &[32]])];
        let found = responses(&batch, 9);
        assert_eq!(found, [vec![vec![31], vec![32]], vec![vec![11]], vec![vec![12], vec![21]]]);
        assert_eq!(responses(&batch[..1], 9), [[vec![11], vec![12]]]);
    }
}
