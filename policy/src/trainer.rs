//! One training step: pack, forward, statistics, objective, gradient, update.
//!
//! `parameters` has what is trained with its optimiser, `critic` what gives values, `reference` a reference that the trainer
//! keeps itself, `measure` what is computed without training.

mod critic;
mod measure;
mod parameters;
mod reference;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use arriero_buffers::{Branch, Tree};
use tch::Tensor;

use crate::checkpoint::Weights;
use crate::config::{ModelConfig, SCORE};
use crate::device::Compute;
use crate::error::{PolicyError, Result};
use crate::forest::{Forest, ReadAt, micro_batches};
use crate::head::{self, StatisticGradients, divergence};
use crate::lora::{Adapter, LoraConfig};
use crate::model::Model;
use crate::objective::{Metrics, MicroBatch, Objective, Statistics, TokenStatistics, Totals};
use crate::optim::TrainingConfig;
use crate::pass::Pass;
use crate::scoring::to_host;
use crate::snapshot::Snapshot;
use crate::teacher;
use critic::Critic;
pub use critic::VALUE_HEAD;
use parameters::Parameters;
use reference::OwnReference;

/// Weights that adapters are trained on; nobody writes to them.
#[derive(Debug)]
struct Base {
    lora: LoraConfig,
    /// f32, shared with whoever gave them.
    masters: Weights,
    /// What the model computes with, in the compute precision; shared with the masters in f32.
    leaves: Weights,
}

/// What a step did.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Means over the batch, by name.
    pub metrics: BTreeMap<String, f64>,
    /// Input tokens that went through the model.
    pub tokens: u64,
}

/// How far a trainer has come beside its weights: for another one of the same tensors to go on with.
#[derive(Debug)]
pub struct Position {
    /// Steps taken.
    pub steps: usize,
    /// The optimiser's moments ([`Trainer::optimizer_state`]), and the updates behind them; `None` where the tensors are
    /// others now.
    pub moments: Option<(Weights, i32)>,
}

/// A model in training under one objective.
pub struct Trainer {
    config: ModelConfig,
    compute: Compute,
    /// What is trained: all weights, or the tensors of an adapter (and a reward model's head).
    parameters: Parameters,
    /// What an adapter is trained on.
    base: Option<Base>,
    model: Model,
    critic: Option<Critic>,
    /// What the policy is compared with, frozen.
    teacher: Option<Rc<Model>>,
    /// See [`Trainer::with_reference`].
    reference: Option<OwnReference>,
    objective: Box<dyn Objective>,
    training: TrainingConfig,
    total_steps: usize,
    step: usize,
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer")
            .field("step", &self.step)
            .field("compute", &self.compute)
            .finish_non_exhaustive()
    }
}

/// log π(y_t) − log μ(y_t) of the response tokens that have a log-probability under the policy that sampled them.
fn behaviour_differences(logps: &[f32], batch: &MicroBatch<'_>) -> Vec<f32> {
    if logps.is_empty() {
        return Vec::new();
    }
    let pieces = batch.responses().zip(Branch::split_by_loss_tokens(batch.responses(), logps));
    let differences = |(branch, own): (&Branch, &[f32])| -> Vec<f32> {
        own.iter().zip(&branch.behaviour_logps).map(|(ours, theirs)| ours - theirs).collect()
    };
    pieces.flat_map(differences).collect()
}

/// What log π(y_t) − log μ(y_t) of a batch's response tokens, μ being the policy that sampled them, comes to.
///
/// On the first step after sampling both have the same weights, so that this is what generation and
/// training differ by in rounding; on later steps it is how far training has moved the policy.
fn behaviour_metrics(differences: &[f32]) -> BTreeMap<String, f64> {
    let mut sizes: Vec<f64> = differences.iter().map(|&difference| f64::from(difference).abs()).collect();
    sizes.sort_unstable_by(f64::total_cmp);
    let count = sizes.len() as f64;
    let Some(&max) = sizes.last() else { return BTreeMap::new() };
    let ratios: f64 = differences.iter().map(|&difference| f64::from(difference).exp()).sum();
    // The least size that 99.9% of the tokens do not exceed.
    let rank = (0.999 * count).ceil() as usize;
    [
        ("behaviour_logp_difference/mean", sizes.iter().sum::<f64>() / count),
        ("behaviour_logp_difference/p99.9", sizes[rank.clamp(1, sizes.len()) - 1]),
        ("behaviour_logp_difference/max", max),
        ("behaviour_ratio/mean", ratios / count),
    ]
    .map(|(name, value)| (name.to_string(), value))
    .into()
}

/// Each response by the numbers of its prompt and of itself.
fn names_of(trees: &[&Tree]) -> Vec<(u64, u32)> {
    let names = |tree: &&Tree| {
        let prompt = tree.prompt_id;
        tree.branches.iter().map(move |branch| (prompt, branch.sample)).collect::<Vec<_>>()
    };
    trees.iter().flat_map(names).collect()
}

/// The responses of which the model itself gives a number that is not finite; all, where it gives none.
fn broken(statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Vec<(u64, u32)> {
    let all = names_of(batch.trees);
    let numbers = [Some(&statistics.logps), statistics.values.as_ref()].into_iter().flatten();
    let is_sound: Vec<bool> = numbers.fold(vec![true; all.len()], |sound, numbers| {
        // The scores of a reward model stand without probabilities of tokens.
        if numbers.numel() == 0 {
            return sound;
        }
        let sums = to_host(&batch.sum_per_response(&numbers.detach()));
        sound.iter().zip(sums).map(|(sound, sum)| *sound && sum.is_finite()).collect()
    });
    if is_sound.iter().all(|&sound| sound) {
        return all;
    }
    all.into_iter().zip(is_sound).filter(|(_, sound)| !sound).map(|(name, _)| name).collect()
}

impl Trainer {
    /// A trainer that starts from a copy of `weights` and will take `total_steps` steps (which shape
    /// the learning rate's schedule). With `training.lora` it trains a fresh adapter, drawn under seed 0;
    /// see [`Trainer::adapting`]. An objective that needs a critic gets a fresh one; see
    /// [`Trainer::with_critic`].
    ///
    /// # Errors
    /// If the weights, or the targets of adapters, do not fit the configuration, or the model has not the head
    /// that the objective reads.
    pub fn new(
        config: &ModelConfig,
        weights: &Weights,
        compute: Compute,
        objective: Box<dyn Objective>,
        training: TrainingConfig,
        total_steps: usize,
    ) -> Result<Self> {
        if let Some(lora) = &training.lora {
            let adapter = Adapter::new(lora, config, 0)?;
            return Trainer::adapting(config, weights, &adapter, compute, objective, training, total_steps);
        }
        let wanted = |name: &String| config.tensor_shapes().iter().any(|(wanted, _)| wanted == name);
        let own: Weights = handles(weights).into_iter().filter(|(name, _)| wanted(name)).collect();
        let parameters = Parameters::new(&own, compute);
        let model = Model::trainable(config, &parameters.leaves(), &parameters.gradients(), compute)?;
        Trainer::assemble(model, parameters, None, weights, objective, training, total_steps)
    }

    /// A trainer of adapters that starts from a copy of `adapter`. The weights stay as they are: it shares
    /// them, and keeps neither gradients nor moments of them. A reward model's head is trained beside the adapter.
    ///
    /// # Errors
    /// As [`Trainer::new`], or if the adapter does not fit the configuration.
    pub fn adapting(
        config: &ModelConfig,
        weights: &Weights,
        adapter: &Adapter,
        compute: Compute,
        objective: Box<dyn Objective>,
        training: TrainingConfig,
        total_steps: usize,
    ) -> Result<Self> {
        let lora = adapter.config.clone();
        let mut trained = handles(&adapter.tensors);
        let head = weights.get_key_value(SCORE).filter(|_| config.has_score());
        trained.extend(head.map(|(name, head)| (name.clone(), head.shallow_clone())));
        let parameters = Parameters::new(&trained, compute);
        let in_precision = |compute: Compute| -> Weights {
            weights.iter().map(|(name, tensor)| (name.clone(), compute.place(name, tensor))).collect()
        };
        let (masters, mut frozen) = (in_precision(compute.master()), in_precision(compute));
        let mut leaves = parameters.leaves();
        frozen.extend(leaves.remove_entry(SCORE));
        let leaves = Adapter { config: lora.clone(), tensors: leaves };
        let model = Model::adapted(config, &frozen, &leaves, &parameters.gradients(), compute)?;
        let base = Base { lora, masters, leaves: frozen };
        Trainer::assemble(model, parameters, Some(base), weights, objective, training, total_steps)
    }

    fn assemble(
        model: Model,
        parameters: Parameters,
        base: Option<Base>,
        weights: &Weights,
        objective: Box<dyn Objective>,
        training: TrainingConfig,
        total_steps: usize,
    ) -> Result<Self> {
        let (config, compute) = (model.config().clone(), model.compute());
        let statistics = objective.needs().statistics;
        if (statistics == Statistics::Scores) != config.has_score() {
            let name = if config.has_score() { "lm_head.weight" } else { SCORE };
            return Err(PolicyError::MissingTensor { name: name.to_string() });
        }
        let critic = match statistics {
            Statistics::ProbabilitiesAndValues(critic) => {
                Some(Critic::fresh(critic, &config, weights, compute)?)
            }
            _ => None,
        };
        Ok(Trainer {
            config,
            compute,
            model,
            parameters,
            base,
            critic,
            teacher: None,
            reference: None,
            objective,
            training,
            total_steps,
            step: 0,
        })
    }

    /// The same with a critic that starts from a copy of `weights`: what [`Trainer::critic`] gave, or for a critic with a
    /// decoder of its own a whole reward model. Nothing happens where the objective has no critic.
    ///
    /// # Errors
    /// If the weights do not fit.
    pub fn with_critic(mut self, weights: &Weights) -> Result<Self> {
        if let Statistics::ProbabilitiesAndValues(critic) = self.objective.needs().statistics {
            self.critic = None;
            self.critic = Some(Critic::new(critic, &self.config, weights, self.compute)?);
        }
        Ok(self)
    }

    /// The same with the teacher that the objective compares the policy with, on the trainer's device and in its precision.
    ///
    /// # Errors
    /// If it has another vocabulary.
    pub fn with_teacher(mut self, teacher: Rc<Model>) -> Result<Self> {
        teacher::check_sizes(teacher.config(), &self.config)
            .map_err(|cause| PolicyError::WrongTeacher { teacher: "given".to_string(), cause })?;
        self.teacher = Some(teacher);
        Ok(self)
    }

    /// The same from where an earlier trainer stopped: its steps count, and its moments go on. A critic's are among them, so
    /// it comes after [`Trainer::with_critic`].
    ///
    /// # Errors
    /// If the moments do not fit.
    pub fn from_position(mut self, position: Position) -> Result<Self> {
        self.step = position.steps;
        if let Some((moments, updates)) = position.moments {
            self.parameters.resume(&moments, updates)?;
            if let Some(critic) = &mut self.critic {
                let own = |(name, tensor): (String, Tensor)| {
                    Some((name.strip_prefix("critic.")?.to_string(), tensor))
                };
                critic.parameters.resume(&moments.into_iter().filter_map(own).collect(), updates)?;
            }
        }
        Ok(self)
    }

    /// Sets how many steps there will be in all, those taken included: they shape the learning rate's schedule.
    pub fn reach(&mut self, total_steps: usize) {
        self.total_steps = total_steps;
    }

    /// As [`Objective::check`].
    ///
    /// # Errors
    /// As it.
    pub fn check(&self, experience: &[&Tree]) -> std::result::Result<(), String> {
        self.objective.check(experience)
    }

    /// Shows the objective all of the experience, scored, before the first step.
    pub fn begin(&mut self, experience: &[&Tree]) {
        self.objective.begin(experience);
    }

    /// One optimiser step on `batch`.
    ///
    /// # Errors
    /// If a sequence does not fit the model, or the loss or the gradient is not finite: then no weight has changed,
    /// and the error names the responses that are to blame.
    pub fn step(&mut self, batch: &[&Tree]) -> Result<StepReport> {
        let scored = self.with_reference_scores(batch)?;
        let views: Option<Vec<&Tree>> = scored.as_ref().map(|trees| trees.iter().collect());
        let batch = views.as_deref().unwrap_or(batch);
        self.zero_gradients();
        let totals = Totals::of(batch);
        let mut metrics = Metrics::default();
        let mut differences = Vec::new();
        let mut tokens = 0;
        for trees in self.pieces(batch)? {
            let forest = self.pack(trees)?;
            tokens += forest.len() as u64;
            let accumulated = self.accumulate(&forest, &MicroBatch { trees, totals, batch });
            let (piece, of_its_tokens) = match accumulated {
                Err(PolicyError::NotFinite { what, .. }) => return Err(self.blame(what, batch)),
                accumulated => accumulated?,
            };
            metrics.merge(&piece);
            differences.extend(of_its_tokens);
        }
        let limit = self.training.max_grad_norm;
        let mut metrics = metrics.values();
        let norms = [
            ("grad_norm", Some(self.parameters.clip(limit))),
            ("critic/grad_norm", self.critic.as_mut().map(|critic| critic.parameters.clip(limit))),
        ];
        for (name, norm) in norms {
            let Some(norm) = norm else { continue };
            if !norm.is_finite() {
                return Err(self.blame("gradient norm", batch));
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
        metrics.extend(behaviour_metrics(&differences));
        metrics.insert("learning_rate".to_string(), rate);
        self.objective.stepped(&metrics);
        Ok(StepReport { metrics, tokens })
    }

    fn zero_gradients(&mut self) {
        self.parameters.zero();
        if let Some(critic) = &mut self.critic {
            critic.parameters.zero();
        }
    }

    /// The error of a batch whose `what` is not finite: it names the responses of the trees whose share of the loss, or its
    /// gradient, is not finite on its own. Where each is finite alone, it names all.
    fn blame(&mut self, what: &'static str, batch: &[&Tree]) -> PolicyError {
        let totals = Totals::of(batch);
        let mut sequences = Vec::new();
        for tree in batch {
            self.zero_gradients();
            let trees = [*tree];
            let alone = self
                .pack(&trees)
                .and_then(|forest| self.accumulate(&forest, &MicroBatch { trees: &trees, totals, batch }));
            let norms =
                [Some(&mut self.parameters), self.critic.as_mut().map(|critic| &mut critic.parameters)];
            let is_finite = norms.into_iter().flatten().all(|one| one.clip(f64::INFINITY).is_finite());
            match alone {
                Err(PolicyError::NotFinite { sequences: own, .. }) => sequences.extend(own),
                _ if !is_finite => sequences.extend(names_of(&trees)),
                _ => {}
            }
        }
        self.zero_gradients();
        if sequences.is_empty() {
            sequences = names_of(batch);
        }
        PolicyError::NotFinite { what, sequences }
    }

    /// The micro-batches of a batch.
    fn pieces<'a, 'b>(&self, batch: &'b [&'a Tree]) -> Result<Vec<&'b [&'a Tree]>> {
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

    fn pack(&self, trees: &[&Tree]) -> Result<Forest> {
        let read = match self.objective.needs().statistics {
            Statistics::Scores => ReadAt::Token,
            _ => ReadAt::Predictor,
        };
        let teacher = self.teacher.as_ref().map_or(usize::MAX, |teacher| teacher.config().max_positions);
        Forest::pack_for(read, trees, self.config.max_positions.min(teacher), self.compute.device)
    }

    /// Adds the gradient of one micro-batch's share of the loss.
    ///
    /// Returns its metrics, and by how much the log-probability of each response token that was sampled differs
    /// from the sampler's.
    fn accumulate(&mut self, forest: &Forest, batch: &MicroBatch<'_>) -> Result<(Metrics, Vec<f32>)> {
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
        Ok((loss.metrics, behaviour_differences(&to_host(&statistics.logps.detach()), batch)))
    }

    /// The gradient of the last step, after clipping, by name: copies. Those of a critic stand under `critic.NAME`.
    pub fn gradients(&self) -> Weights {
        let mut gradients = self.parameters.clipped_gradients();
        if let Some(critic) = &self.critic {
            gradients.extend(of_critic(critic.parameters.clipped_gradients()));
        }
        gradients
    }

    /// The f32 weights: handles of the master weights, which change with the next step; with adapters, the
    /// weights that these were merged into. A critic is not among them.
    pub fn weights(&self) -> Weights {
        match self.base.as_ref().zip(self.adapter()) {
            Some((base, adapter)) => {
                let mut weights = adapter.merged_into(&base.masters, &base.masters);
                weights.extend(self.parameters.masters().remove_entry(SCORE));
                weights
            }
            None => self.parameters.masters(),
        }
    }

    /// The adapter that is trained: handles, which change with the next step.
    pub fn adapter(&self) -> Option<Adapter> {
        let base = self.base.as_ref()?;
        let mut tensors = self.parameters.masters();
        tensors.remove(SCORE);
        Some(Adapter { config: base.lora.clone(), tensors })
    }

    /// The critic's f32 weights, where there is one: handles, which change with the next step. They are the head alone
    /// ([`VALUE_HEAD`]), or a decoder under its own names with a reward model's head.
    pub fn critic(&self) -> Option<Weights> {
        self.critic.as_ref().map(|critic| critic.parameters.masters())
    }

    /// The optimiser's moments, as `NAME.exp_avg` and `NAME.exp_avg_sq` (PyTorch's names); a critic's as
    /// `critic.NAME.exp_avg`.
    pub fn optimizer_state(&self) -> Weights {
        let mut moments = self.parameters.moments();
        if let Some(critic) = &self.critic {
            moments.extend(of_critic(critic.parameters.moments()));
        }
        moments
    }

    /// How it trains.
    pub fn training(&self) -> &TrainingConfig {
        &self.training
    }

    /// The architecture of what is trained.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Steps taken under this objective.
    pub fn steps(&self) -> usize {
        self.step
    }

    /// What is trained on, with its running statistics, and how far training has come: for another trainer to go on with.
    pub fn into_parts(self) -> (Box<dyn Objective>, Position) {
        let moments = Some((self.optimizer_state(), self.parameters.updates()));
        (self.objective, Position { steps: self.step, moments })
    }

    /// An immutable copy of the weights in the compute precision.
    pub fn snapshot(&self, version: u32) -> Arc<Snapshot> {
        let weights = match self.base.as_ref().zip(self.adapter()) {
            Some((base, adapter)) => {
                let mut weights = adapter.merged_into(&base.masters, &base.leaves);
                weights.extend(self.parameters.copies().remove_entry(SCORE));
                weights
            }
            None => self.parameters.copies(),
        };
        Snapshot::new(version, self.config.clone(), self.compute, weights)
    }
}

fn handles(weights: &Weights) -> Weights {
    weights.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}

fn of_critic(weights: Weights) -> impl Iterator<Item = (String, Tensor)> {
    weights.into_iter().map(|(name, tensor)| (format!("critic.{name}"), tensor))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1,000 tokens, of which one differs by −ln 2 and one by ln 3: 99.9% differ by at most ln 2, and the
    /// ratios are 998 times 1, 1/2 and 3.
    #[test]
    fn what_the_sampler_says_is_compared_token_by_token() {
        let mut differences = vec![0.0f32; 1000];
        (differences[7], differences[400]) = (-std::f32::consts::LN_2, 3.0f32.ln());
        let metrics = behaviour_metrics(&differences);
        let (ln2, ln3) = (std::f64::consts::LN_2, 3.0f64.ln());
        for (name, expected) in [
            ("behaviour_logp_difference/mean", (ln2 + ln3) / 1000.0),
            ("behaviour_logp_difference/p99.9", ln2),
            ("behaviour_logp_difference/max", ln3),
            ("behaviour_ratio/mean", 1.0015),
        ] {
            assert!((metrics[name] - expected).abs() < 1e-6, "{name}: {}", metrics[name]);
        }
        assert!(behaviour_metrics(&[]).is_empty());
    }
}
