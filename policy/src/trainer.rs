//! A model in training: pack, forward, statistics, objective, gradient, update.
//!
//! - `step`: one step, in the two halves that several learners could share;
//! - `parameters`: what is trained, with its optimiser;
//! - `critic`: what gives values;
//! - `reference`: a reference that the trainer keeps itself;
//! - `measure`: what is computed without training;
//! - `behaviour`: how far the policy is from the one that sampled;
//! - `blame`: which responses make a number that is not finite;
//! - `state`: what later steps depend on, written and read.

mod behaviour;
mod blame;
mod critic;
mod measure;
mod parameters;
mod reference;
mod state;
mod step;

use std::rc::Rc;
use std::sync::Arc;

use arriero_buffers::Tree;
use tch::Tensor;

use crate::checkpoint::{Weights, handles};
use crate::config::{ModelConfig, SCORE};
use crate::device::Compute;
use crate::error::{PolicyError, Result};
use crate::lora::{Adapter, LoraConfig};
use crate::model::Model;
use crate::objective::{Objective, Statistics};
use crate::optim::TrainingConfig;
use crate::snapshot::Snapshot;
use crate::teacher;
use critic::Critic;
pub use critic::VALUE_HEAD;
use parameters::Parameters;
use reference::OwnReference;
pub use state::{Position, TrainerState};
pub use step::{Contribution, StepReport};

/// Weights that adapters are trained on; nobody writes to them.
#[derive(Debug)]
struct Base {
    lora: LoraConfig,
    /// f32, shared with whoever gave them.
    masters: Weights,
    /// What the model computes with, in the compute precision; shared with the masters in f32.
    leaves: Weights,
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

    /// The gradient of the last step, after clipping, by name: copies. After [`Trainer::gradient`] alone it is not clipped yet.
    /// Those of a critic stand under `critic.NAME`.
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

fn of_critic(weights: Weights) -> impl Iterator<Item = (String, Tensor)> {
    weights.into_iter().map(|(name, tensor)| (format!("critic.{name}"), tensor))
}
