//! Reads arms and their stages: `[algorithm]`, or `[[arm]]` with `[[arm.stage]]`.

use std::sync::Arc;

use arriero_buffers::{SelectionConfig, SelectionRule};
use arriero_policy::objective::Algorithm;
use arriero_policy::optim::{AcrossRounds, TrainingConfig};

use crate::arm::{Arm, ArmStage, ExperienceOf, ReferenceWeights, ScoredBy, Stage, StartFrom};
use crate::average;
use crate::averages::average_stage;
use crate::data::{self, DataPlan};
use crate::document::Section;
use crate::error::ExperimentError;
use crate::generator::{GeneratorPlan, generator};
use crate::selection::selection;

/// Rounds of an arm.
const MOST_ROUNDS: usize = 1_000_000;

/// What a stage must fit.
pub(crate) struct Surroundings<'a> {
    pub generator: &'a GeneratorPlan,
    pub selection: &'a SelectionConfig,
    /// `[data]`.
    pub data: Option<Arc<DataPlan>>,
}

/// One `[algorithm]`, or any number of `[[arm]]`.
pub(crate) fn arms(
    root: &mut Section<'_>,
    rounds: usize,
    around: &Surroundings<'_>,
) -> Result<Vec<Arm>, ExperimentError> {
    root.counts(&[("rounds", rounds, MOST_ROUNDS)])?;
    let listed = root.children("arm")?;
    if root.has("algorithm") {
        if !listed.is_empty() {
            return Err(root.fail("algorithm", "cannot stand beside [[arm]]; make it a stage of an arm"));
        }
        let stage = stage(root.child("algorithm")?, around, &[], Algorithm::KINDS)?;
        let name = stage.algorithm.kind().to_string();
        return Ok(vec![Arm { name, rounds, stages: vec![ArmStage::Train(Box::new(stage))] }]);
    }
    if listed.is_empty() {
        let kinds = Algorithm::KINDS.join(", ");
        let message = format!("is missing; add [algorithm] with a kind ({kinds}), or [[arm]] tables");
        return Err(root.fail("algorithm", &message));
    }
    let mut arms: Vec<Arm> = Vec::new();
    let kinds = [Algorithm::KINDS, &[average::KIND]].concat();
    for mut section in listed {
        let sections = section.children("stage")?;
        if sections.is_empty() {
            return Err(section.fail("stage", "is missing; add at least one [[arm.stage]] with a kind"));
        }
        let mut stages: Vec<ArmStage> = Vec::new();
        for section in sections {
            let stage = match section.text("kind") {
                Some(kind) if kind == average::KIND => {
                    ArmStage::Average(average_stage(section, &stages, &arms)?)
                }
                _ => ArmStage::Train(Box::new(stage(section, around, &stages, &kinds)?)),
            };
            stages.push(stage);
        }
        let names: Vec<&str> = stages.iter().map(ArmStage::name).collect();
        let name: String = section.take("name")?.unwrap_or_else(|| names.join("-"));
        let rounds: usize = section.take("rounds")?.unwrap_or(rounds);
        section.counts(&[("rounds", rounds, MOST_ROUNDS)])?;
        arriero_store::check_arm_name(&name)
            .map_err(|error| section.fail("name", &format!("is wrong: {error}")))?;
        if arms.iter().any(|arm| arm.name == name) {
            return Err(section.fail("name", &format!("\"{name}\" is the name of two arms; choose another")));
        }
        section.finish()?;
        arms.push(Arm { name, rounds, stages });
    }
    Ok(arms)
}

/// The name of a stage of this kind after `earlier` ones. A number tells stages of one kind apart.
fn name(kind: &str, earlier: &[ArmStage]) -> String {
    let of_kind = |stage: &&Stage| stage.algorithm.kind() == kind;
    match earlier.iter().filter_map(ArmStage::training).filter(of_kind).count() {
        0 => kind.to_string(),
        count => format!("{kind}-{}", count + 1),
    }
}

fn stage(
    mut section: Section<'_>,
    around: &Surroundings<'_>,
    earlier: &[ArmStage],
    kinds: &[&'static str],
) -> Result<Stage, ExperimentError> {
    let source = source(&mut section, earlier)?;
    let data = match source {
        Some(_) => None,
        None => data::of_stage(&mut section, around.data.as_ref())?,
    };
    let reward = reward(&mut section, earlier)?;
    let (generator, selection) = sampling(&mut section, around, source, data.is_some(), reward)?;
    let training: TrainingConfig = section.read(&TrainingConfig::default())?;
    section.check(training.validate())?;
    let mut algorithm: Algorithm = section.read_kind(kinds, Algorithm::option_names, None)?;
    section.check(algorithm.validate())?;
    algorithm.fit(generator.sampling.max_new_tokens);
    let algorithm = algorithm.resolved();
    let rule = algorithm.objective().needs().selection;
    check_rule(&section, algorithm.kind(), rule, data.is_some(), &generator)?;
    if let Some(source) = source {
        check_source(&section, algorithm.kind(), rule, source)?;
    }
    let given_from: Option<StartFrom> = section.take("from")?;
    let mut stage = Stage {
        name: name(algorithm.kind(), earlier),
        algorithm,
        training,
        data,
        samples_of: source.map(|source| source.name.clone()),
        generator,
        selection,
        reward: source.map_or(reward, |source| source.reward),
        from: StartFrom::Previous,
        reference: section.take("reference")?.unwrap_or_default(),
        experience: section.take("experience")?.unwrap_or_default(),
    };
    // A reward model begins anew with each round, whether the policy has moved or not.
    let default = if stage.trains_reward_model() { StartFrom::Initial } else { StartFrom::Previous };
    stage.from = given_from.unwrap_or(default);
    let goes_on = stage.algorithm.is_online() && stage.from == StartFrom::Previous;
    let default = if goes_on { AcrossRounds::Continue } else { AcrossRounds::Fresh };
    stage.training.optimizer.get_or_insert(default);
    check_rounds(&section, &stage)?;
    section.finish()?;
    Ok(stage)
}

/// The earlier stage that `data` names.
fn source<'a>(
    section: &mut Section<'_>,
    earlier: &'a [ArmStage],
) -> Result<Option<&'a Stage>, ExperimentError> {
    let Some(named) = section.text("data") else { return Ok(None) };
    let mut trainings = earlier.iter().filter_map(ArmStage::training);
    let Some(stage) = trainings.find(|stage| stage.name == named) else { return Ok(None) };
    if !stage.samples() {
        let message = format!(
            "is \"{named}\", a stage that samples nothing itself; name the stage that its samples come from, or \
             write \"{}\"",
            data::SAMPLED
        );
        return Err(section.fail("data", &message));
    }
    let _: Option<String> = section.take("data")?;
    Ok(Some(stage))
}

fn reward(section: &mut Section<'_>, earlier: &[ArmStage]) -> Result<ScoredBy, ExperimentError> {
    let reward: ScoredBy = section.take("reward")?.unwrap_or_default();
    if reward == ScoredBy::RewardModel && !earlier.iter().any(ArmStage::gives_reward_model) {
        let message = "is \"reward_model\", but no stage before this one trains one; put a stage with kind = \
                       \"reward_model\" before it, or take the model of another run with [reward] kind = \
                       \"reward_model\"";
        return Err(section.fail("reward", message));
    }
    Ok(reward)
}

/// How the stage samples, and what it takes of its samples. Its own tables override those of the file.
fn sampling(
    section: &mut Section<'_>,
    around: &Surroundings<'_>,
    source: Option<&Stage>,
    has_data: bool,
    reward: ScoredBy,
) -> Result<(GeneratorPlan, SelectionConfig), ExperimentError> {
    let does_sample = !has_data && source.is_none();
    if !does_sample {
        let sampler = source.map_or("a dataset", |source| source.name.as_str());
        for (key, is_given) in
            [("generator", section.has("generator")), ("reward", reward != ScoredBy::default())]
        {
            if is_given {
                let message = format!(
                    "says how samples are made, but this stage learns from {sampler}; remove it, or write data = \
                     \"{}\"",
                    data::SAMPLED
                );
                return Err(section.fail(key, &message));
            }
        }
    }
    let generator = match source {
        Some(source) => {
            section.knows("generator");
            source.generator.clone()
        }
        None => generator(section.child("generator")?, around.generator)?,
    };
    // The file's bounds are in the units of its reward. A reward model's scores have no zero.
    let scored_by = source.map_or(reward, |source| source.reward);
    let bounds = match scored_by {
        ScoredBy::Experiment => around.selection.clone(),
        ScoredBy::RewardModel => {
            SelectionConfig { min_reward: f32::NEG_INFINITY, min_margin: 0.0, ..around.selection.clone() }
        }
    };
    Ok((generator, selection(section.child("selection")?, &bounds)?))
}

/// Checks that there is what the algorithm learns from.
fn check_rule(
    section: &Section<'_>,
    kind: &str,
    rule: SelectionRule,
    has_data: bool,
    generator: &GeneratorPlan,
) -> Result<(), ExperimentError> {
    if has_data && !rule.takes_rows() {
        let message = format!(
            "\"{kind}\" learns from {} of its own sampling, which no dataset holds; write data = \"{}\" beside it, \
             remove the data, or change kind",
            rule.learns_from(),
            data::SAMPLED
        );
        return Err(section.fail("kind", &message));
    }
    let (samples, least) = (generator.samples, rule.least_samples());
    if !has_data && samples < least {
        let message = format!(
            "\"{kind}\" {}, but generator.samples is {samples}; set it to {least} or more",
            rule.wants_several()
        );
        return Err(section.fail("kind", &message));
    }
    Ok(())
}

/// Checks that an algorithm can learn from the samples of another stage.
fn check_source(
    section: &Section<'_>,
    kind: &str,
    rule: SelectionRule,
    source: &Stage,
) -> Result<(), ExperimentError> {
    if rule.wants_greedy() != source.algorithm.objective().needs().selection.wants_greedy() {
        let message = format!(
            "is \"{}\", but only one of it and \"{kind}\" has a greedy answer in each group; write data = \"{}\"",
            source.name,
            data::SAMPLED
        );
        return Err(section.fail("data", &message));
    }
    Ok(())
}

/// Checks what goes on from round to round.
fn check_rounds(section: &Section<'_>, stage: &Stage) -> Result<(), ExperimentError> {
    let continues = stage.training.optimizer == Some(AcrossRounds::Continue);
    if continues && stage.from == StartFrom::Initial {
        let message = "is \"continue\", but each round starts from the initial weights, to which the moments of \
                       others would be applied; use \"fresh\", or from = \"previous\"";
        return Err(section.fail("optimizer", message));
    }
    if stage.experience == ExperienceOf::All {
        if stage.data.is_some() {
            let message = "is \"all\", but this stage learns from a dataset, which is the same in each round; \
                           remove it";
            return Err(section.fail("experience", message));
        }
        if stage.reference == ReferenceWeights::Start {
            let message = "is \"all\", but trees of earlier rounds were scored by another reference; use \
                           reference = \"initial\", or experience = \"round\"";
            return Err(section.fail("experience", message));
        }
    }
    Ok(())
}
