//! One training step: pack, forward, statistics, objective, gradient, update.

use std::collections::BTreeMap;
use std::sync::Arc;

use arriero_buffers::Tree;
use tch::{Kind, Tensor, no_grad};

use crate::checkpoint::Weights;
use crate::config::ModelConfig;
use crate::device::Compute;
use crate::error::{PolicyError, Result};
use crate::forest::{Forest, micro_batches};
use crate::head::{self, StatisticGradients};
use crate::model::Model;
use crate::objective::{Metrics, MicroBatch, Objective, TokenStatistics, Totals};
use crate::optim::{AdamW, TrainingConfig, clip_by_global_norm};
use crate::snapshot::Snapshot;

/// One trained tensor.
#[derive(Debug)]
struct Parameter {
    name: String,
    /// f32, what the optimiser updates.
    master: Tensor,
    /// What the model computes with, in the compute precision; the master itself in f32.
    leaf: Tensor,
    /// f32, sum over the micro-batches; the leaf's own gradient in f32.
    gradient: Tensor,
}

impl Parameter {
    fn new(name: &str, weight: &Tensor, compute: Compute) -> Self {
        let master = weight.to_device(compute.device).to_kind(Kind::Float).copy();
        let leaf =
            if compute.kind == Kind::Float { master.shallow_clone() } else { master.to_kind(compute.kind) };
        let leaf = leaf.set_requires_grad(true);
        // From the first backward on autograd adds to the gradient in place, so it can be handed
        // around by its handle.
        leaf.sum(compute.kind).backward();
        let mut own = leaf.grad();
        let _ = own.zero_();
        let gradient = if compute.kind == Kind::Float { own } else { master.zeros_like() };
        Parameter { name: name.to_string(), master: master.detach(), leaf, gradient }
    }

    fn is_shared(&self) -> bool {
        self.leaf.kind() == Kind::Float
    }
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
    parameters: Vec<Parameter>,
    model: Model,
    optimizer: AdamW,
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

/// Adds |log π(y_t) − log μ(y_t)| over the response tokens, μ being the policy that sampled them, as a mean
/// and a maximum.
///
/// On the first step after sampling both have the same weights, so that this is what generation and
/// training differ by in rounding; on later steps it is how far training has moved the policy.
fn behaviour_difference(metrics: &mut Metrics, logps: &Tensor, batch: &MicroBatch<'_>) {
    let behaviour = batch.per_token(logps, |branch| branch.behaviour_logps.clone());
    let difference = (logps - behaviour).abs();
    if difference.numel() > 0 {
        metrics.add_entries("behaviour_logp_difference/mean", &difference);
        metrics.raise("behaviour_logp_difference/max", difference.max().double_value(&[]));
    }
}

impl Trainer {
    /// A trainer that starts from a copy of `weights` and will take `total_steps` steps (which shape
    /// the learning rate's schedule).
    ///
    /// # Errors
    /// If the weights do not fit the configuration.
    pub fn new(
        config: &ModelConfig,
        weights: &Weights,
        compute: Compute,
        objective: Box<dyn Objective>,
        training: TrainingConfig,
        total_steps: usize,
    ) -> Result<Self> {
        let parameters: Vec<Parameter> =
            weights.iter().map(|(name, weight)| Parameter::new(name, weight, compute)).collect();
        let leaves: Weights = parameters
            .iter()
            .map(|parameter| (parameter.name.clone(), parameter.leaf.shallow_clone()))
            .collect();
        let model = Model::new(config, &leaves, compute)?;
        let masters: Vec<Tensor> =
            parameters.iter().map(|parameter| parameter.master.shallow_clone()).collect();
        Ok(Trainer {
            config: config.clone(),
            compute,
            model,
            optimizer: AdamW::new(&masters),
            parameters,
            objective,
            training,
            total_steps,
            step: 0,
        })
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
        let totals = Totals::of(batch);
        let mut metrics = Metrics::default();
        let mut tokens = 0;
        for trees in micro_batches(batch, self.training.micro_batch_tokens) {
            let forest = Forest::pack(trees, self.config.max_positions, self.compute.device)?;
            tokens += forest.len() as u64;
            metrics.merge(&self.accumulate(&forest, &MicroBatch { trees, totals, batch })?);
        }
        let mut gradients: Vec<Tensor> =
            self.parameters.iter().map(|parameter| parameter.gradient.shallow_clone()).collect();
        let grad_norm = clip_by_global_norm(&mut gradients, self.training.max_grad_norm);
        if !grad_norm.is_finite() {
            let prompt_ids = batch.iter().map(|tree| tree.prompt_id).collect();
            return Err(PolicyError::NotFinite { what: "gradient norm", prompt_ids });
        }
        let rate = self.training.learning_rate_at(self.step, self.total_steps);
        let mut masters: Vec<Tensor> =
            self.parameters.iter().map(|parameter| parameter.master.shallow_clone()).collect();
        self.optimizer.step(&mut masters, &gradients, rate, &self.training);
        no_grad(|| {
            for parameter in self.parameters.iter_mut().filter(|parameter| !parameter.is_shared()) {
                parameter.leaf.copy_(&parameter.master);
            }
        });
        self.step += 1;
        let mut metrics = metrics.values();
        metrics.insert("grad_norm".to_string(), grad_norm);
        metrics.insert("learning_rate".to_string(), rate);
        Ok(StepReport { metrics, tokens })
    }

    /// Adds the gradient of one micro-batch's share of the loss.
    fn accumulate(&mut self, forest: &Forest, batch: &MicroBatch<'_>) -> Result<Metrics> {
        let hidden = self.model.predictors(forest);
        let fixed = hidden.detach();
        let output = self.model.output().detach();
        let statistics = head::statistics(&fixed, &output, &forest.targets);
        let statistics = TokenStatistics {
            logps: statistics.logps.set_requires_grad(true),
            entropies: statistics.entropies.set_requires_grad(true),
            top1: statistics.top1,
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
            logps: gradient(&statistics.logps)
                .unwrap_or_else(|| fixed.new_zeros(statistics.logps.size(), (Kind::Float, fixed.device()))),
            entropies: gradient(&statistics.entropies),
        };
        let name = if self.config.tie_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let Some(owner) = self.parameters.iter_mut().find(|parameter| parameter.name == name) else {
            return Err(PolicyError::MissingTensor { name: name.to_string() });
        };
        let hidden_gradient =
            head::backward(&fixed, &output, &forest.targets, &gradients, &mut owner.gradient);
        // The gradient of this sum with respect to the hidden states is `hidden_gradient`.
        (hidden * hidden_gradient).sum(Kind::Float).backward();
        for parameter in self.parameters.iter_mut().filter(|parameter| !parameter.is_shared()) {
            let mut own = parameter.leaf.grad();
            if own.defined() {
                parameter.gradient += &own;
                let _ = own.zero_();
            }
        }
        let mut metrics = loss.metrics;
        behaviour_difference(&mut metrics, &statistics.logps.detach(), batch);
        Ok(metrics)
    }

    /// The gradient of the last step, after clipping, by name.
    pub fn gradients(&self) -> Weights {
        let handle = |parameter: &Parameter| (parameter.name.clone(), parameter.gradient.shallow_clone());
        self.parameters.iter().map(handle).collect()
    }

    /// Handles of the f32 master weights: they change with the next step.
    pub fn weights(&self) -> Weights {
        let handle = |parameter: &Parameter| (parameter.name.clone(), parameter.master.shallow_clone());
        self.parameters.iter().map(handle).collect()
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
        let copy = |parameter: &Parameter| (parameter.name.clone(), parameter.leaf.detach().copy());
        let weights = self.parameters.iter().map(copy).collect();
        Snapshot::new(version, self.config.clone(), self.compute, weights)
    }
}
