//! `kind = "average"`: a stage that averages models.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::document::{ExperimentError, Section};
use super::stages::{Arm, ArmStage};

/// The `kind` of these stages.
pub(super) const KIND: &str = "average";

/// The initial weights, and those that the stage before left.
const INITIAL: &str = "initial";
const PREVIOUS: &str = "previous";

/// A stage that averages models.
#[derive(Debug, Clone, PartialEq)]
pub struct AverageStage {
    /// `average`; with a number after it where an arm has several.
    pub name: String,
    /// What is averaged.
    pub of: Vec<AverageSource>,
    /// The share of each, in the order of `of`. Default: 1 each. They are divided by their sum.
    pub weights: Vec<f64>,
    /// True if these are reward models, and the policy stays as it is.
    pub of_reward_models: bool,
}

/// What an average is made of.
#[derive(Debug, Clone, PartialEq)]
pub enum AverageSource {
    /// What every arm starts from.
    Initial,
    /// What the stage before left.
    Previous,
    /// What a stage of this arm came to in its last rounds, as many of them as there are.
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
enum Written {
    Name(String),
    Stage(WrittenStage),
    Arm(WrittenArm),
    Path(WrittenPath),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenStage {
    stage: String,
    #[serde(default = "one")]
    rounds: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenArm {
    arm: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPath {
    path: PathBuf,
}

fn one() -> usize {
    1
}

/// Reads a stage of this kind.
pub(super) fn average(
    mut section: Section<'_>,
    earlier: &[ArmStage],
    arms: &[Arm],
) -> Result<AverageStage, ExperimentError> {
    let _: Option<String> = section.take("kind")?;
    let written: Vec<Written> = section.take("of")?.unwrap_or_default();
    if written.is_empty() {
        return Err(section.fail("of", "is missing; list what to average, such as [\"sft\", \"sft-2\"]"));
    }
    let sources = written.into_iter().map(|written| source(&section, written, earlier, arms));
    let of = sources.collect::<Result<Vec<_>, _>>()?;
    let weights: Vec<f64> = section.take("weights")?.unwrap_or_else(|| vec![1.0; of.len()]);
    if weights.len() != of.len() {
        let message = format!("has {} numbers, but \"of\" has {} entries", weights.len(), of.len());
        return Err(section.fail("weights", &message));
    }
    if let Some(wrong) = weights.iter().find(|weight| !weight.is_finite() || **weight < 0.0) {
        return Err(section.fail("weights", &format!("has {wrong}; a weight must be at least 0")));
    }
    if weights.iter().sum::<f64>() <= 0.0 {
        return Err(section.fail("weights", "adds up to 0; a weight must be above 0"));
    }
    let is_reward_model = |source: &&AverageSource| match source {
        AverageSource::Stage { stage, .. } => {
            earlier.iter().any(|other| other.name() == stage && other.gives_reward_model())
        }
        _ => false,
    };
    let reward_models = of.iter().filter(is_reward_model).count();
    if reward_models != 0 && reward_models != of.len() {
        let message = "has reward models and others; average models of one sort";
        return Err(section.fail("of", message));
    }
    section.finish()?;
    let before = earlier.iter().filter(|stage| matches!(stage, ArmStage::Average(_))).count();
    let name = if before == 0 { KIND.to_string() } else { format!("{KIND}-{}", before + 1) };
    Ok(AverageStage { name, of, weights, of_reward_models: reward_models > 0 })
}

fn source(
    section: &Section<'_>,
    written: Written,
    earlier: &[ArmStage],
    arms: &[Arm],
) -> Result<AverageSource, ExperimentError> {
    let stage = |stage: String, rounds: usize| {
        let known: Vec<&str> = earlier.iter().map(ArmStage::name).collect();
        if !known.contains(&stage.as_str()) {
            let known = if known.is_empty() { "none".to_string() } else { known.join(", ") };
            let message =
                format!("names \"{stage}\", which is no stage before this one (those are: {known})");
            return Err(section.fail("of", &message));
        }
        if rounds == 0 {
            return Err(section.fail("of", "has rounds = 0; it must be at least 1"));
        }
        Ok(AverageSource::Stage { stage, rounds })
    };
    match written {
        Written::Name(name) if name == INITIAL => Ok(AverageSource::Initial),
        Written::Name(name) if name == PREVIOUS => Ok(AverageSource::Previous),
        Written::Name(name) => stage(name, 1),
        Written::Stage(WrittenStage { stage: name, rounds }) => stage(name, rounds),
        Written::Arm(WrittenArm { arm }) => {
            if !arms.iter().any(|other| other.name == arm) {
                let message = format!("names the arm \"{arm}\", which is none of those before this one");
                return Err(section.fail("of", &message));
            }
            Ok(AverageSource::Arm(arm))
        }
        Written::Path(WrittenPath { path }) => {
            if !path.exists() {
                let message =
                    format!("names {}, where there is nothing; name a model's folder", path.display());
                return Err(section.fail("of", &message));
            }
            Ok(AverageSource::Path(path))
        }
    }
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
    pub(super) fn to_table(&self) -> Result<Table, toml::ser::Error> {
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
