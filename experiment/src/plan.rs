//! An experiment with nothing left open.

use arriero_buffers::SelectionConfig;
use arriero_reward::RewardConfig;
use serde::{Deserialize, Serialize};

use crate::arm::Arm;
use crate::devices::DevicePlan;
use crate::error::ExperimentError;
use crate::evaluation::EvaluationPlan;
use crate::generator::GeneratorPlan;
use crate::mode::Mode;
use crate::model::ModelPlan;
use crate::prompts::{PromptSet, Prompts, Split};
use crate::unscored::Unscored;

/// An experiment with nothing left open.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Names the run's folder. Default: the file's name.
    pub name: String,
    /// Seed of every random number. Default 0.
    pub seed: u64,
    /// How actors take turns. Default lockstep.
    pub mode: Mode,
    /// What every arm starts from.
    pub model: ModelPlan,
    /// Where each actor computes. Default: `model.device`.
    pub devices: DevicePlan,
    /// What is asked.
    pub prompts: Prompts,
    /// What is optimised. Default `constraints`.
    pub reward: RewardConfig,
    /// What completions that cannot be scored do.
    pub unscored: Unscored,
    /// How experience is sampled.
    pub generator: GeneratorPlan,
    /// What is worth training on.
    pub selection: SelectionConfig,
    /// How the held-out prompts are answered.
    pub evaluation: EvaluationPlan,
    /// Items a data queue may hold. Default 64.
    pub queue_capacity: usize,
    /// Trees the shared buffer may hold. Default: the prompts of a round.
    pub buffer_capacity: usize,
    /// What is kept of an arm.
    pub checkpoint: CheckpointPlan,
    /// What is compared.
    pub arms: Vec<Arm>,
    /// All of this as TOML, every default written out. It reads back as the same plan.
    pub resolved: String,
}

impl Plan {
    /// The prompts of a split. The order of a dataset's rows is that of the experiment's seed.
    ///
    /// # Errors
    /// If a file cannot be read, or holds no prompts.
    pub fn load_prompts(&self, split: Split) -> Result<PromptSet, ExperimentError> {
        self.prompts.source.load(split, self.seed)
    }
}

/// Options of checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointPlan {
    /// Write the optimiser's moments too (twice the size of the weights). Default true.
    pub optimizer: bool,
}

impl Default for CheckpointPlan {
    fn default() -> Self {
        CheckpointPlan { optimizer: true }
    }
}
