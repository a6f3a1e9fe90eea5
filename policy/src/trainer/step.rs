//! One training step, in two halves: the gradient of a part of a batch, and the update by the gradient of all of it.
//!
//! What goes from the first half to the second is a sum: the gradients, and [`Contribution`]. So several learners can each take a
//! part of the batch, add up what they have, and all take the same update.

use std::collections::BTreeMap;

use arriero_buffers::Tree;
use tch::Tensor;

use super::Trainer;
use super::behaviour::BehaviourDifferences;
use super::blame::broken;
use super::of_critic;
use crate::checkpoint::Weights;
use crate::error::{PolicyError, Result};
use crate::forest::{Forest, ReadAt, micro_batches};
use crate::head::{self, StatisticGradients, divergence};
use crate::objective::{Metrics, MicroBatch, Statistics};
use crate::pass::Pass;
use crate::scoring::to_host;

/// What a step did.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Means over the batch, by name.
    pub metrics: BTreeMap<String, f64>,
    /// Input tokens that went through the model.
    pub tokens: u64,
}

/// What a part of a batch adds to the step's report. Its gradient stands in the trainer: see [`Trainer::accumulated`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Contribution {
    metrics: Metrics,
    /// Input tokens that went through the model.
    tokens: u64,
    differences: BehaviourDifferences,
}

impl Contribution {
    /// Adds that of another part.
    pub fn merge(&mut self, other: Contribution) {
        self.metrics.merge(&other.metrics);
        self.tokens += other.tokens;
        self.differences.merge(other.differences);
    }
}

impl Trainer {
    /// One optimiser step on `batch`: [`Trainer::gradient`] of all of it, and [`Trainer::apply`].
    ///
    /// # Errors
    /// As these.
    pub fn step(&mut self, batch: &[&Tree]) -> Result<StepReport> {
        let scored = self.with_reference_scores(batch)?;
        let views: Option<Vec<&Tree>> = scored.as_ref().map(|trees| trees.iter().collect());
        let batch = MicroBatch::whole(views.as_deref().unwrap_or(batch));
        let contribution = self.gradient(&batch)?;
        self.apply(contribution, &batch)
    }

    /// The first half of a step: the gradient of `part`'s share of its batch's loss, which stands in the trainer then, in the
    /// place of what stood there ([`Trainer::accumulated`]). No weight changes.
    ///
    /// The trees carry what the objective needs of them, the scores of [`Trainer::with_reference_scores`] among them.
    ///
    /// # Errors
    /// If a sequence does not fit the model, `part` is less than a batch that cannot be cut
    /// ([`Needs::whole_batch`](crate::objective::Needs::whole_batch)), or the loss is not finite: the error names the responses
    /// that are to blame.
    pub fn gradient(&mut self, part: &MicroBatch<'_>) -> Result<Contribution> {
        let (trees, batch) = (part.trees.len(), part.batch.len());
        if self.objective.needs().whole_batch && trees != batch {
            return Err(PolicyError::CoupledBatch { trees, batch });
        }
        self.zero_gradients();
        let mut sum = Contribution::default();
        for trees in self.pieces(part.trees)? {
            let forest = self.pack(trees)?;
            match self.accumulate(&forest, &MicroBatch { trees, ..*part }) {
                Err(PolicyError::NotFinite { what, .. }) => return Err(self.blame(what, part)),
                piece => sum.merge(piece?),
            }
        }
        Ok(sum)
    }

    /// The gradients of all parts so far, before clipping, by name: handles, which [`Trainer::apply`] reads. To sum them over
    /// learners, add those of the others to them. Those of a critic stand under `critic.NAME`.
    pub fn accumulated(&self) -> Weights {
        let mut gradients = self.parameters.gradients();
        if let Some(critic) = &self.critic {
            gradients.extend(of_critic(critic.parameters.gradients()));
        }
        gradients
    }

    /// The second half of a step: clips the gradients, which must be those of the whole batch, and updates the weights, the
    /// schedule, a reference that follows, and the objective's running state. `sum` is of the whole batch, too; `own` is the
    /// part that this trainer was given.
    ///
    /// # Errors
    /// If the gradient is not finite: then no weight has changed, and the error names the responses of `own` that are to blame.
    pub fn apply(&mut self, sum: Contribution, own: &MicroBatch<'_>) -> Result<StepReport> {
        let limit = self.training.max_grad_norm;
        let mut metrics = sum.metrics.values();
        let norms = [
            ("grad_norm", Some(self.parameters.clip(limit))),
            ("critic/grad_norm", self.critic.as_mut().map(|critic| critic.parameters.clip(limit))),
        ];
        for (name, norm) in norms {
            let Some(norm) = norm else { continue };
            if !norm.is_finite() {
                return Err(self.blame("gradient norm", own));
            }
            metrics.insert(name.to_string(), norm);
        }
        let rate = self.training.learning_rate_at(self.step, self.total_steps);
        self.parameters.step(rate, &self.training);
        if let Some(critic) = &mut self.critic {
            critic.parameters.step(critic.learning_rate(rate, self.training.learning_rate), &self.training);
        }
        self.step += 1;
        self.update_reference(self.step)?;
        metrics.extend(sum.differences.metrics());
        metrics.insert("learning_rate".to_string(), rate);
        self.objective.stepped(&metrics);
        Ok(StepReport { metrics, tokens: sum.tokens })
    }

    pub(super) fn zero_gradients(&mut self) {
        self.parameters.zero();
        if let Some(critic) = &mut self.critic {
            critic.parameters.zero();
        }
    }

    /// The micro-batches of a batch.
    pub(super) fn pieces<'a, 'b>(&self, batch: &'b [&'a Tree]) -> Result<Vec<&'b [&'a Tree]>> {
        let budget = self.training.token_budget(&self.config, self.compute);
        if let Some(tree) = batch.iter().find(|tree| tree.len() > budget) {
            return Err(PolicyError::TreeOverBudget {
                prompt_id: tree.prompt_id,
                tokens: tree.len(),
                budget,
            });
        }
        let pieces = if self.objective.needs().whole_batch { usize::MAX } else { budget };
        Ok(micro_batches(batch, pieces))
    }

    pub(super) fn pack(&self, trees: &[&Tree]) -> Result<Forest> {
        let read = match self.objective.needs().statistics {
            Statistics::Scores => ReadAt::Token,
            _ => ReadAt::Predictor,
        };
        let teacher = self.teacher.as_ref().map_or(usize::MAX, |teacher| teacher.config().max_positions);
        Forest::pack_for(read, trees, self.config.max_positions.min(teacher), self.compute.device)
    }

    /// Adds the gradient of one micro-batch's share of the loss.
    ///
    /// Returns what it adds to a step's report.
    pub(super) fn accumulate(&mut self, forest: &Forest, batch: &MicroBatch<'_>) -> Result<Contribution> {
        let checkpointing = self.training.activation_checkpointing;
        let pass = Pass::record(&self.model, forest, checkpointing);
        let critic_pass = self.critic.as_ref().and_then(|critic| critic.record(forest, checkpointing));
        let hidden = pass.hidden().detach();
        let own = critic_pass.as_ref().map(|pass| pass.hidden().detach());
        let mut scalar = self.scalar_head(&hidden, own.as_ref());
        let values = scalar.as_ref().map(|scalar| head::values(&scalar.hidden, &scalar.head));
        let teacher = self.teacher_side(forest)?;
        let (rows, statistics) = self.statistics(&hidden, forest, values.as_ref(), teacher.as_ref());
        let loss = self.objective.loss(&statistics, batch);
        if !loss.value.double_value(&[]).is_finite() {
            return Err(PolicyError::NotFinite { what: "loss", sequences: broken(&statistics, batch) });
        }
        loss.value.backward();
        let gradient = |statistic: &Tensor| {
            let gradient = statistic.grad();
            gradient.defined().then_some(gradient)
        };
        let name = if self.config.tie_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let mut output_gradient = self.parameters.gradient(name);
        let output = self.model.output();
        let (d_logps, d_entropies) = (gradient(&statistics.logps), gradient(&statistics.entropies));
        let d_divergences = statistics.teacher.as_ref().and_then(|teacher| gradient(&teacher.divergences));
        // What only compares distributions does not need the way back from the tokens' own statistics.
        let is_wanted = d_logps.is_some() || d_entropies.is_some() || d_divergences.is_none();
        let from_tokens = rows.filter(|_| is_wanted).map(|rows| {
            let gradients = StatisticGradients {
                logps: d_logps.unwrap_or_else(|| statistics.logps.zeros_like()),
                entropies: d_entropies,
            };
            head::backward(&hidden, output, &forest.targets, &rows, &gradients, output_gradient.as_mut())
        });
        let from_divergences = teacher.zip(d_divergences).map(|(teacher, gradients)| {
            let sides = ((&hidden, output), (&teacher.hidden, &teacher.output));
            let divergence = teacher.divergence;
            divergence::backward(sides.0, sides.1, divergence, &gradients, output_gradient.as_mut())
        });
        let from_probabilities = match (from_tokens, from_divergences) {
            (Some(tokens), Some(divergences)) => Some(tokens + divergences),
            (tokens, divergences) => tokens.or(divergences),
        };
        let d_values = statistics.values.as_ref().and_then(&gradient);
        let from_values = scalar.as_mut().zip(d_values).map(|(scalar, d_values)| {
            head::values_backward(&scalar.hidden, &scalar.head, &d_values, &mut scalar.gradient)
        });
        let of_policy = match (critic_pass, from_values, from_probabilities) {
            (Some(pass), Some(own), from_probabilities) => {
                pass.backward(&own);
                from_probabilities
            }
            (None, Some(values), Some(probabilities)) => Some(values + probabilities),
            (_, None, one) | (None, one, None) => one,
        };
        if let Some(gradient) = of_policy {
            pass.backward(&gradient);
        }
        Ok(Contribution {
            metrics: loss.metrics,
            tokens: forest.len() as u64,
            differences: BehaviourDifferences::of(&to_host(&statistics.logps.detach()), batch),
        })
    }
}
