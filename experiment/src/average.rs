//! `kind = "average"`: a stage that averages models.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// The `kind` of these stages.
pub(crate) const KIND: &str = "average";

/// The initial weights, and those that the stage before left.
pub(crate) const INITIAL: &str = "initial";

pub(crate) const PREVIOUS: &str = "previous";

/// A stage that averages models.
#[derive(Debug, Clone, PartialEq)]
pub struct AverageStage {
    /// `average`; with a number after it where an arm has several.
    pub name: String,
    /// What is averaged.
    pub of: Vec<AverageSource>,
    /// The share of each, in the order of `of`. Default: 1 each. They are divided by their sum.
    pub weights: Vec<f64>,
    /// True if these are reward models. The policy then stays as it is.
    pub of_reward_models: bool,
}

/// What an average is made of.
#[derive(Debug, Clone, PartialEq)]
pub enum AverageSource {
    /// What every arm starts from.
    Initial,
    /// What the stage before left.
    Previous,
    /// What a stage of this arm came to in its last rounds, or in as many as there are.
    Stage {
        /// Its name.
        stage: String,
        /// At most so many.
        rounds: usize,
    },
    /// What an earlier arm came to.
    Arm(String),
    /// A model on disk.
    Path(PathBuf),
}

/// A source as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected \"initial\", \"previous\", the name of an earlier stage, or one of { stage = \"dpo\", rounds = 2 }, \
                 { arm = \"other\" }, { path = \"runs/other/dpo/0/checkpoints/step-64\" }"
)]
pub(crate) enum Written {
    Name(String),
    Stage(WrittenStage),
    Arm(WrittenArm),
    Path(WrittenPath),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenStage {
    pub stage: String,
    #[serde(default = "one")]
    pub rounds: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenArm {
    pub arm: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenPath {
    pub path: PathBuf,
}

fn one() -> usize {
    1
}

impl AverageSource {
    fn written(&self) -> Written {
        match self.clone() {
            AverageSource::Initial => Written::Name(INITIAL.to_string()),
            AverageSource::Previous => Written::Name(PREVIOUS.to_string()),
            AverageSource::Stage { stage, rounds } => Written::Stage(WrittenStage { stage, rounds }),
            AverageSource::Arm(arm) => Written::Arm(WrittenArm { arm }),
            AverageSource::Path(path) => Written::Path(WrittenPath { path }),
        }
    }
}

impl AverageStage {
    pub(crate) fn to_table(&self) -> Result<Table, toml::ser::Error> {
        let of: Vec<Written> = self.of.iter().map(AverageSource::written).collect();
        Ok(Table::from_iter([
            ("kind".to_string(), Value::String(KIND.to_string())),
            ("of".to_string(), Value::try_from(of)?),
            ("weights".to_string(), Value::try_from(&self.weights)?),
        ]))
    }

    /// How many results of a stage it is made of at most.
    pub fn results_of(&self, name: &str) -> usize {
        let rounds = self.of.iter().map(|source| match source {
            AverageSource::Stage { stage, rounds } if stage == name => *rounds,
            _ => 0,
        });
        rounds.max().unwrap_or(0)
    }
}
