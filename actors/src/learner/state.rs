//! What the learner's later work depends on, as one value: everything that changes while it works.
//!
//! - `work`: a stage's training that is under way, and how far it has come;
//! - `results`: what stages and arms came to, where averages are made of it;
//! - `saved`: the value written to a folder, and read from it; `trees`: trees in a file, to the last bit.

mod results;
mod saved;
mod trees;
mod work;

use std::collections::BTreeMap;

use arriero_buffers::{ExperienceBuffer, Tree};
use arriero_experiment::ExperienceOf;
use arriero_policy::checkpoint::Weights;
use arriero_policy::config::ModelConfig;
use arriero_policy::lora::Adapter;
use arriero_policy::objective::Objective;
use arriero_policy::optim::AcrossRounds;
use arriero_policy::trainer::{Position, Trainer};

use crate::job::TrainingJob;
pub(super) use results::Results;
pub(super) use work::Work;

/// See the module. Weights are f32. Those that a trainer has a part in are handles, which change with its next step.
pub(crate) struct LearnerState {
    /// The arm's number.
    pub arm: usize,
    /// How often the policy's weights have changed since the arm began, by optimiser steps and averages.
    pub version: u32,
    /// Optimiser steps of the arm's reward models.
    pub reward_steps: u32,
    /// The policy, as the last stage left it.
    pub weights: Weights,
    /// The reward model that the arm trained last.
    pub reward_model: Option<RewardModel>,
    pub adapting: Option<Adapting>,
    /// Objectives of the arm's stages, whose running statistics go on from round to round.
    pub objectives: BTreeMap<String, Box<dyn Objective>>,
    /// How far stages have come that go on with their optimiser.
    pub positions: BTreeMap<String, Position>,
    /// Trees of all rounds so far, of stages that learn from those.
    pub kept: BTreeMap<String, Vec<Tree>>,
    /// Critics of the arm's stages.
    pub critics: BTreeMap<String, Weights>,
    /// References of the arm's stages that follow the policy.
    pub references: BTreeMap<String, Weights>,
    pub results: Results,
    pub running: Option<Running>,
    pub work: Option<Work>,
}

/// A reward model that the arm has trained.
pub(crate) struct RewardModel {
    pub config: ModelConfig,
    pub weights: Weights,
    /// Optimiser steps of the arm's reward models behind it.
    pub steps: u32,
}

/// Adapters in training: as long as stages have the same options, they go on with the same ones.
pub(crate) struct Adapting {
    /// What the adapters are trained on.
    pub base: Weights,
    /// Whether these are the weights of the run's model, so that the adapter fits it.
    pub is_initial: bool,
    pub adapter: Adapter,
}

/// The stage that trains, or has trained last.
pub(crate) struct Running {
    /// Its name.
    pub stage: String,
    pub trainer: Trainer,
    /// What its trainer was made of that no longer stands anywhere else.
    pub origin: Origin,
}

/// Handles of weights that a trainer keeps as they are.
#[derive(Default)]
pub(crate) struct Origin {
    /// What a reward model's adapter is trained on.
    pub base: Option<Weights>,
    /// The frozen reference that the trainer keeps itself, where it is the policy that the stage began with.
    pub reference: Option<Weights>,
}

impl LearnerState {
    /// As an arm begins from these weights.
    pub fn new(weights: Weights) -> Self {
        LearnerState {
            arm: 0,
            version: 0,
            reward_steps: 0,
            weights,
            reward_model: None,
            adapting: None,
            objectives: BTreeMap::new(),
            positions: BTreeMap::new(),
            kept: BTreeMap::new(),
            critics: BTreeMap::new(),
            references: BTreeMap::new(),
            results: Results::default(),
            running: None,
            work: None,
        }
    }

    /// The running stage's trainer.
    pub fn trainer(&self) -> Option<&Trainer> {
        self.running.as_ref().map(|running| &running.trainer)
    }

    /// What is to be learned from: the trees of this round, and what is kept of earlier ones.
    pub fn experience(&mut self, job: &TrainingJob, fresh: ExperienceBuffer) -> ExperienceBuffer {
        if job.stage.experience == ExperienceOf::Round {
            return fresh;
        }
        let kept = self.kept.entry(job.stage.name.clone()).or_default();
        kept.extend(fresh.trees().cloned());
        ExperienceBuffer::of(kept.iter().cloned())
    }

    /// Keeps of a stage's trainer what its next round goes on with.
    pub fn put_away(&mut self, running: Option<Running>) {
        let Some(Running { stage, trainer, .. }) = running else { return };
        let continues = trainer.training().optimizer == Some(AcrossRounds::Continue);
        let (objective, position) = trainer.into_parts();
        self.objectives.insert(stage.clone(), objective);
        if continues {
            self.positions.insert(stage, position);
        }
    }
}
