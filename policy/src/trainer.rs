//! One training step: pack, forward, statistics, objective, gradient, update.

use std::collections::BTreeMap;
use std::sync::Arc;

use arriero_buffers::Tree;
use tch::{Kind, Tensor};

use crate::checkpoint::Weights;
use crate::config::ModelConfig;
use crate::device::Compute;
use crate::error::{PolicyError, Result};
use crate::forest::{Forest, micro_batches};
use crate::head::{self, StatisticGradients};
use crate::lora::{Adapter, LoraConfig};
use crate::model::Model;
use crate::objective::{Metrics, MicroBatch, Objective, TokenStatistics, Totals};
use crate::optim::{AdamW, TrainingConfig, norm_and_clip};
use crate::pass::Pass;
use crate::scoring::to_host;
use crate::snapshot::Snapshot;

/// One trained tensor.
#[derive(Debug)]
struct Parameter {
    name: String,
    /// f32, what the optimiser updates.
    master: Tensor,
    /// What the model computes with, in the compute precision; the master itself in f32.
    leaf: Tensor,
    /// f32, sum over the micro-batches.
    gradient: Tensor,
}

impl Parameter {
    fn new(name: &str, weight: &Tensor, compute: Compute) -> Self {
        let master = weight.to_device(compute.device).to_kind(Kind::Float).copy();
        let leaf = master.to_kind(compute.kind);
        Parameter { name: name.to_string(), gradient: master.zeros_like(), master, leaf }
    }

    /// The leaf, where it is a tensor of its own.
    fn own_leaf(&self) -> Option<Tensor> {
        (self.leaf.kind() != Kind::Float).then(|| self.leaf.shallow_clone())
    }
}

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

/// A model in training under one objective.
pub struct Trainer {
    config: ModelConfig,
    compute: Compute,
    /// What is trained: all weights, or the tensors of an adapter.
    parameters: Vec<Parameter>,
    /// What an adapter is trained on.
    base: Option<Base>,
    model: Model,
    optimizer: AdamW,
    objective: Box<dyn Objective>,
    training: TrainingConfig,
    total_steps: usize,
    step: usize,
    /// The factor by which the last step's gradient was clipped.
    gradient_scale: f64,
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
    let mut rest = logps;
    let mut differences = Vec::new();
    for branch in batch.responses() {
        let (own, others) = rest.split_at(branch.loss_tokens());
        differences.extend(own.iter().zip(&branch.behaviour_logps).map(|(ours, theirs)| ours - theirs));
        rest = others;
    }
    differences
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

/// Copies of these tensors, to be trained.
fn parameters(tensors: &Weights, compute: Compute) -> Vec<Parameter> {
    tensors.iter().map(|(name, tensor)| Parameter::new(name, tensor, compute)).collect()
}

fn by_name(parameters: &[Parameter], pick: impl Fn(&Parameter) -> Tensor) -> Weights {
    parameters.iter().map(|parameter| (parameter.name.clone(), pick(parameter))).collect()
}

impl Trainer {
    /// A trainer that starts from a copy of `weights` and will take `total_steps` steps (which shape
    /// the learning rate's schedule). With `training.lora` it trains a fresh adapter, drawn under seed 0;
    /// see [`Trainer::adapting`].
    ///
    /// # Errors
    /// If the weights, or the targets of adapters, do not fit the configuration.
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
        let parameters = parameters(weights, compute);
        let leaves = by_name(&parameters, |parameter| parameter.leaf.shallow_clone());
        let gradients = by_name(&parameters, |parameter| parameter.gradient.shallow_clone());
        let model = Model::trainable(config, &leaves, &gradients, compute)?;
        Ok(Trainer::assemble(model, parameters, None, objective, training, total_steps))
    }

    /// A trainer of adapters that starts from a copy of `adapter`. The weights stay as they are: it shares
    /// them, and keeps neither gradients nor moments of them.
    ///
    /// # Errors
    /// If the weights or the adapter do not fit the configuration.
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
        let parameters = parameters(&adapter.tensors, compute);
        let leaves = by_name(&parameters, |parameter| parameter.leaf.shallow_clone());
        let gradients = by_name(&parameters, |parameter| parameter.gradient.shallow_clone());
        let map = |place: &dyn Fn(&Tensor) -> Tensor| -> Weights {
            weights.iter().map(|(name, tensor)| (name.clone(), place(tensor))).collect()
        };
        let masters = map(&|tensor| tensor.to_device(compute.device).to_kind(Kind::Float));
        let frozen = map(&|tensor| tensor.to_device(compute.device).to_kind(compute.kind));
        let leaves = Adapter { config: lora.clone(), tensors: leaves };
        let model = Model::adapted(config, &frozen, &leaves, &gradients, compute)?;
        let base = Base { lora, masters, leaves: frozen };
        Ok(Trainer::assemble(model, parameters, Some(base), objective, training, total_steps))
    }

    fn assemble(
        model: Model,
        parameters: Vec<Parameter>,
        base: Option<Base>,
        objective: Box<dyn Objective>,
        training: TrainingConfig,
        total_steps: usize,
    ) -> Self {
        let masters: Vec<Tensor> =
            parameters.iter().map(|parameter| parameter.master.shallow_clone()).collect();
        Trainer {
            config: model.config().clone(),
            compute: model.compute(),
            model,
            optimizer: AdamW::new(&masters),
            parameters,
            base,
            objective,
            training,
            total_steps,
            step: 0,
            gradient_scale: 1.0,
        }
    }

    /// One optimiser step on `batch`.
    ///
    /// # Errors
    /// If a sequence does not fit the model, or the loss is not finite: then no weight has changed,
    /// and the error names the prompts of the micro-batch.
    pub fn step(&mut self, batch: &[&Tree]) -> Result<StepReport> {
        for parameter in &mut self.parameters {
            let _ = parameter.gradient.zero_();
        }
        let budget = self.training.token_budget(&self.config, self.compute);
        if let Some(tree) = batch.iter().find(|tree| tree.len() > budget) {
            return Err(PolicyError::TreeOverBudget {
                prompt_id: tree.prompt_id,
                tokens: tree.len(),
                budget,
            });
        }
        let totals = Totals::of(batch);
        let mut metrics = Metrics::default();
        let mut differences = Vec::new();
        let mut tokens = 0;
        let pieces = if self.objective.needs().whole_batch { usize::MAX } else { budget };
        for trees in micro_batches(batch, pieces) {
            let forest = Forest::pack(trees, self.config.max_positions, self.compute.device)?;
            tokens += forest.len() as u64;
            let (piece, of_its_tokens) = self.accumulate(&forest, &MicroBatch { trees, totals, batch })?;
            metrics.merge(&piece);
            differences.extend(of_its_tokens);
        }
        let collect =
            |pick: &dyn Fn(&Parameter) -> Tensor| self.parameters.iter().map(pick).collect::<Vec<_>>();
        let gradients = collect(&|parameter| parameter.gradient.shallow_clone());
        let (grad_norm, scale) = norm_and_clip(&gradients, self.training.max_grad_norm);
        if !grad_norm.is_finite() {
            let prompt_ids = batch.iter().map(|tree| tree.prompt_id).collect();
            return Err(PolicyError::NotFinite { what: "gradient norm", prompt_ids });
        }
        let rate = self.training.learning_rate_at(self.step, self.total_steps);
        let masters = collect(&|parameter| parameter.master.shallow_clone());
        let leaves: Vec<Option<Tensor>> = self.parameters.iter().map(Parameter::own_leaf).collect();
        self.optimizer.step(&masters, &leaves, &gradients, scale, rate, &self.training);
        self.gradient_scale = scale;
        self.step += 1;
        let mut metrics = metrics.values();
        metrics.extend(behaviour_metrics(&differences));
        metrics.insert("grad_norm".to_string(), grad_norm);
        metrics.insert("learning_rate".to_string(), rate);
        self.objective.stepped(&metrics);
        Ok(StepReport { metrics, tokens })
    }

    /// Adds the gradient of one micro-batch's share of the loss.
    ///
    /// Returns its metrics, and by how much the log-probability of each response token that was sampled differs
    /// from the sampler's.
    fn accumulate(&mut self, forest: &Forest, batch: &MicroBatch<'_>) -> Result<(Metrics, Vec<f32>)> {
        let pass = Pass::record(&self.model, forest, self.training.activation_checkpointing);
        let hidden = pass.hidden().detach();
        let output = self.model.output();
        let rows = head::statistics(&hidden, output, &forest.targets);
        let leaf = |statistic: &Tensor| statistic.detach().copy().set_requires_grad(true);
        let statistics = TokenStatistics {
            logps: leaf(&rows.statistics.logps),
            entropies: leaf(&rows.statistics.entropies),
            top1: rows.statistics.top1.shallow_clone(),
        };
        let loss = self.objective.loss(&statistics, batch);
        if !loss.value.double_value(&[]).is_finite() {
            let prompt_ids = batch.trees.iter().map(|tree| tree.prompt_id).collect();
            return Err(PolicyError::NotFinite { what: "loss", prompt_ids });
        }
        loss.value.backward();
        let gradient = |statistic: &Tensor| {
            let gradient = statistic.grad();
            gradient.defined().then_some(gradient)
        };
        let gradients = StatisticGradients {
            logps: gradient(&statistics.logps).unwrap_or_else(|| statistics.logps.zeros_like()),
            entropies: gradient(&statistics.entropies),
        };
        let name = if self.config.tie_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let owner = self.parameters.iter_mut().find(|parameter| parameter.name == name);
        let output_gradient = owner.map(|parameter| &mut parameter.gradient);
        let hidden_gradient =
            head::backward(&hidden, output, &forest.targets, &rows, &gradients, output_gradient);
        pass.backward(&hidden_gradient);
        Ok((loss.metrics, behaviour_differences(&to_host(&statistics.logps.detach()), batch)))
    }

    /// The gradient of the last step, after clipping, by name: copies.
    pub fn gradients(&self) -> Weights {
        by_name(&self.parameters, |parameter| &parameter.gradient * self.gradient_scale)
    }

    /// The f32 weights: handles of the master weights, which change with the next step; with adapters, the
    /// weights that these were merged into.
    pub fn weights(&self) -> Weights {
        match self.base.as_ref().zip(self.adapter()) {
            Some((base, adapter)) => adapter.merged_into(&base.masters, &base.masters),
            None => by_name(&self.parameters, |parameter| parameter.master.shallow_clone()),
        }
    }

    /// The adapter that is trained: handles, which change with the next step.
    pub fn adapter(&self) -> Option<Adapter> {
        let base = self.base.as_ref()?;
        let tensors = by_name(&self.parameters, |parameter| parameter.master.shallow_clone());
        Some(Adapter { config: base.lora.clone(), tensors })
    }

    /// The optimiser's moments, as `NAME.exp_avg` and `NAME.exp_avg_sq` (PyTorch's names).
    pub fn optimizer_state(&self) -> Weights {
        let pairs = self.parameters.iter().zip(self.optimizer.moments());
        pairs
            .flat_map(|(parameter, (first, second))| {
                [
                    (format!("{}.exp_avg", parameter.name), first.shallow_clone()),
                    (format!("{}.exp_avg_sq", parameter.name), second.shallow_clone()),
                ]
            })
            .collect()
    }

    /// Steps taken under this objective.
    pub fn steps(&self) -> usize {
        self.step
    }

    /// An immutable copy of the weights in the compute precision.
    pub fn snapshot(&self, version: u32) -> Arc<Snapshot> {
        let weights = match self.base.as_ref().zip(self.adapter()) {
            Some((base, adapter)) => adapter.merged_into(&base.masters, &base.leaves),
            None => by_name(&self.parameters, |parameter| parameter.leaf.detach().copy()),
        };
        Snapshot::new(version, self.config.clone(), self.compute, weights)
    }
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
