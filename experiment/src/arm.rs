//! Arms and their stages: what is compared.

use std::path::Path;
use std::sync::Arc;

use arriero_buffers::SelectionConfig;
use arriero_policy::objective::{Algorithm, Statistics};
use arriero_policy::optim::TrainingConfig;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::average::{AverageSource, AverageStage};
use crate::data::{self, DataPlan};
use crate::generator::GeneratorPlan;

/// One of the things that are compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Arm {
    /// Names its folder and its column.
    pub name: String,
    /// How often its stages run, each time on the next prompts. Default 1.
    pub rounds: usize,
    /// In this order.
    pub stages: Vec<ArmStage>,
}

/// A step of an arm's recipe.
#[derive(Debug, Clone, PartialEq)]
pub enum ArmStage {
    /// An algorithm trains.
    Train(Box<Stage>),
    /// Models are averaged.
    Average(AverageStage),
}

impl ArmStage {
    /// Its name in the arm.
    pub fn name(&self) -> &str {
        match self {
            ArmStage::Train(stage) => &stage.name,
            ArmStage::Average(stage) => &stage.name,
        }
    }

    /// The algorithm with its hyperparameters, if one trains.
    pub fn training(&self) -> Option<&Stage> {
        match self {
            ArmStage::Train(stage) => Some(stage),
            ArmStage::Average(_) => None,
        }
    }

    /// True if what it comes to is a reward model.
    pub(crate) fn gives_reward_model(&self) -> bool {
        match self {
            ArmStage::Train(stage) => stage.trains_reward_model(),
            ArmStage::Average(stage) => stage.of_reward_models,
        }
    }
}

impl Arm {
    /// The stages that train, with their numbers.
    pub fn trainings(&self) -> impl Iterator<Item = (usize, &Stage)> {
        self.stages.iter().enumerate().filter_map(|(number, stage)| Some((number, stage.training()?)))
    }

    /// Models on disk that the arm's averages are made of.
    pub fn averaged_paths(&self) -> impl Iterator<Item = &Path> {
        let sources = self.stages.iter().flat_map(|stage| match stage {
            ArmStage::Average(average) => &average.of[..],
            ArmStage::Train(_) => &[],
        });
        sources.filter_map(|source| match source {
            AverageSource::Path(path) => Some(path.as_path()),
            _ => None,
        })
    }

    /// True if an average is made of what this other arm came to.
    pub fn averages_arm(&self, name: &str) -> bool {
        let is_it = |source: &AverageSource| matches!(source, AverageSource::Arm(arm) if arm == name);
        self.stages.iter().any(|stage| match stage {
            ArmStage::Average(average) => average.of.iter().any(is_it),
            ArmStage::Train(_) => false,
        })
    }

    /// How many results of a stage the arm's averages are made of at most.
    pub fn results_of(&self, stage: &str) -> usize {
        let results = self.stages.iter().map(|other| match other {
            ArmStage::Average(average) => average.results_of(stage),
            ArmStage::Train(_) => 0,
        });
        results.max().unwrap_or(0)
    }
}

/// A stage that trains: one algorithm with its hyperparameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// The algorithm's kind, with a number after it where an arm has several of a kind.
    pub name: String,
    /// What is optimised.
    pub algorithm: Algorithm,
    /// How.
    pub training: TrainingConfig,
    /// What from, where it does not learn from samples.
    pub data: Option<Arc<DataPlan>>,
    /// An earlier stage whose samples it learns from, where it does not sample itself.
    pub samples_of: Option<String>,
    /// How it samples. Default: `[generator]`.
    pub generator: GeneratorPlan,
    /// What of its samples is worth training on. Default: `[selection]`.
    pub selection: SelectionConfig,
    /// Who scores its samples. Default: the experiment's `[reward]`.
    pub reward: ScoredBy,
    /// The weights that training starts from.
    pub from: StartFrom,
    /// The weights of the frozen reference. Default: the initial ones.
    pub reference: ReferenceWeights,
    /// Whose rounds' trees it learns from. Default: the round's own.
    pub experience: ExperienceOf,
}

impl Stage {
    /// True if it trains a reward model. The policy then stays as it is.
    pub fn trains_reward_model(&self) -> bool {
        self.algorithm.objective().needs().statistics == Statistics::Scores
    }

    /// True if the generator samples for it.
    pub fn samples(&self) -> bool {
        self.data.is_none() && self.samples_of.is_none()
    }
}

/// Who scores samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoredBy {
    /// `[reward]`.
    #[default]
    Experiment,
    /// The reward model that the arm trained last.
    RewardModel,
}

/// The weights that a stage's training starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartFrom {
    /// What the stage before left. Of a reward model: what the round before trained.
    Previous,
    /// What every arm starts from. Of a reward model: that under a fresh head.
    Initial,
}

/// The weights of the frozen reference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceWeights {
    /// What every arm starts from.
    #[default]
    Initial,
    /// What the stage's training starts from, in each round anew.
    Start,
}

/// Whose rounds' trees a stage learns from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExperienceOf {
    /// The round's own.
    #[default]
    Round,
    /// Those of all rounds so far.
    All,
}

impl Arm {
    /// As a table. In a file with these `[generator]` and `[selection]` it reads back as the same arm.
    pub(crate) fn to_table(
        &self,
        generator: &GeneratorPlan,
        selection: &SelectionConfig,
    ) -> Result<Table, toml::ser::Error> {
        let stage = |stage: &ArmStage| match stage {
            ArmStage::Train(stage) => stage.to_table(generator, selection).map(Value::Table),
            ArmStage::Average(stage) => stage.to_table().map(Value::Table),
        };
        let stages = self.stages.iter().map(stage);
        let mut table = Table::new();
        table.insert("name".to_string(), Value::String(self.name.clone()));
        table.insert("rounds".to_string(), Value::try_from(self.rounds)?);
        table.insert("stage".to_string(), Value::Array(stages.collect::<Result<_, _>>()?));
        Ok(table)
    }
}

impl Stage {
    fn to_table(
        &self,
        generator: &GeneratorPlan,
        selection: &SelectionConfig,
    ) -> Result<Table, toml::ser::Error> {
        let mut table = Table::try_from(&self.algorithm)?;
        table.extend(Table::try_from(&self.training)?);
        let data = match &self.samples_of {
            Some(source) => Value::String(source.clone()),
            None => data::written(self.data.as_ref())?,
        };
        let mut put = |key: &str, value: Value| table.insert(key.to_string(), value);
        put("data", data);
        put("from", Value::try_from(self.from)?);
        put("reference", Value::try_from(self.reference)?);
        put("experience", Value::try_from(self.experience)?);
        if self.samples() {
            put("reward", Value::try_from(self.reward)?);
            if self.generator != *generator {
                put("generator", Value::Table(self.generator.to_table()?));
            }
        }
        if self.selection != *selection {
            put("selection", Value::try_from(&self.selection)?);
        }
        Ok(table)
    }
}
