//! Reads stages that average models.

use crate::arm::{Arm, ArmStage};
use crate::average::{
    AverageSource, AverageStage, INITIAL, KIND, PREVIOUS, Written, WrittenArm, WrittenPath, WrittenStage,
};
use crate::document::Section;
use crate::error::ExperimentError;

/// Reads a stage of this kind.
pub(crate) fn average_stage(
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
