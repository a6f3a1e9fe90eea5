//! What a frozen model says of given responses.

use arriero_buffers::{Branch, Tree};
use tch::no_grad;

use crate::error::Result;
use crate::forest::{Forest, micro_batches};
use crate::head;
use crate::model::Model;
use crate::weights::to_host;

/// Fills in every branch's reference log-probabilities.
///
/// # Errors
/// If a sequence does not fit the model.
pub fn score_reference(model: &Model, trees: &mut [Tree], micro_batch_tokens: usize) -> Result<()> {
    let mut scores = Vec::with_capacity(trees.len());
    {
        let views: Vec<&Tree> = trees.iter().collect();
        for batch in micro_batches(&views, micro_batch_tokens) {
            let logps = response_logps(model, batch)?;
            let branches = batch.iter().flat_map(|tree| &tree.branches);
            scores.extend(Branch::split_by_loss_tokens(branches, &logps).map(<[f32]>::to_vec));
        }
    }
    for (branch, scores) in trees.iter_mut().flat_map(|tree| &mut tree.branches).zip(scores) {
        branch.reference_logps = scores;
    }
    Ok(())
}

/// Log-probability of every response token that carries loss, in the order of trees, branches, tokens.
///
/// # Errors
/// If a sequence does not fit the model.
pub fn response_logps(model: &Model, trees: &[&Tree]) -> Result<Vec<f32>> {
    no_grad(|| {
        let forest = Forest::pack(trees, model.config().max_positions, model.compute().device)?;
        let rows = head::statistics(&model.predictors(&forest), model.output(), &forest.targets);
        Ok(to_host(&rows.statistics.logps))
    })
}

/// KL(policy ‖ reference) of the next-token distribution at every response token, exact over the
/// vocabulary, in nats: its sum, and the number of tokens.
///
/// # Errors
/// If a sequence does not fit the models.
pub fn token_kl(
    policy: &Model,
    reference: &Model,
    trees: &[&Tree],
    micro_batch_tokens: usize,
) -> Result<(f64, u64)> {
    no_grad(|| {
        let (mut sum, mut tokens) = (0.0, 0);
        for batch in micro_batches(trees, micro_batch_tokens) {
            let forest = Forest::pack(batch, policy.config().max_positions, policy.compute().device)?;
            let ours = policy.predictors(&forest);
            let theirs = reference.predictors(&forest);
            let kl = head::distribution_kl((&ours, policy.output()), (&theirs, reference.output()));
            sum += to_host(&kl).into_iter().map(f64::from).sum::<f64>();
            tokens += kl.numel() as u64;
        }
        Ok((sum, tokens))
    })
}
