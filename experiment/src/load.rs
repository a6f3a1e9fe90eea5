//! From a file to a [`Plan`].

use std::path::Path;
use std::sync::Arc;

use arriero_buffers::SelectionConfig;

use crate::arm::Arm;
use crate::devices::DevicePlan;
use crate::document::{Document, Section};
use crate::error::ExperimentError;
use crate::evaluation::evaluation;
use crate::generator::{GeneratorPlan, generator};
use crate::mode::mode;
use crate::model::model;
use crate::plan::{CheckpointPlan, Plan};
use crate::resolve::resolve;
use crate::reward::reward;
use crate::selection::selection;
use crate::stages::{Surroundings, arms};
use crate::{data, prompts};

/// Items of a queue, whose slots are allocated at once.
const MOST_QUEUED: usize = 65_536;

/// Reads an experiment file, with `set` (`key=value`) on top of it.
///
/// # Errors
/// Names the line (or the `--set`), the key, what was expected, and the nearest valid key.
pub fn load(path: &Path, set: &[String]) -> Result<Plan, ExperimentError> {
    let text = std::fs::read_to_string(path)
        .map_err(|cause| ExperimentError::Unreadable { path: path.to_path_buf(), cause })?;
    let stem = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    plan(&Document::parse(path, &text, set)?, &stem)
}

fn plan(document: &Document, stem: &str) -> Result<Plan, ExperimentError> {
    let mut root = document.root();
    let name: String = root.take("name")?.unwrap_or_else(|| stem.to_string());
    arriero_store::check_run_name(&name).map_err(|error| root.fail("name", &format!("is wrong: {error}")))?;
    let seed: u64 = root.take("seed")?.unwrap_or(0);
    let mode = mode(&mut root)?;
    let rounds: Option<usize> = root.take("rounds")?;

    let (model, model_path) = model(root.child("model")?)?;
    let devices: DevicePlan = root.child("devices")?.read_whole(&DevicePlan::all(model.device))?;
    let generator = generator(root.child("generator")?, &GeneratorPlan::default())?;
    let evaluation = evaluation(root.child("evaluation")?, &generator)?;
    let (reward, unscored) = reward(root.child("reward")?)?;
    let selection = selection(root.child("selection")?, &SelectionConfig::default())?;
    let checkpoint: CheckpointPlan = root.child("checkpoint")?.read_whole(&CheckpointPlan::default())?;
    let shared = if root.has("data") { Some(Arc::new(data::data(root.child("data")?)?)) } else { None };
    root.knows("data");
    let around = Surroundings { generator: &generator, selection: &selection, data: shared };
    let arms = arms(&mut root, rounds.unwrap_or(1), &around)?;
    let most_rounds = arms.iter().map(|arm| arm.rounds).max().unwrap_or(1);
    let stages = || arms.iter().flat_map(Arm::trainings).map(|(_, stage)| stage);
    let samples = stages().any(|stage| stage.data.is_none());
    let prompts = prompts::prompts(root.child("prompts")?, most_rounds, samples, seed)?;
    let portions = stages().filter_map(|stage| Some(stage.data.as_ref()?.portion(stage.training.batch_size)));
    let most_trees = portions.chain([prompts.per_round()]).max().unwrap_or(0);
    let (queue_capacity, buffer_capacity) = capacities(root.child("queues")?, most_trees)?;
    root.finish()?;

    let mut plan = Plan {
        name,
        seed,
        mode,
        model,
        devices,
        prompts,
        reward,
        unscored,
        generator,
        selection,
        evaluation,
        queue_capacity,
        buffer_capacity,
        checkpoint,
        arms,
        resolved: String::new(),
    };
    plan.resolved = resolve(&plan, &model_path)?;
    Ok(plan)
}

fn capacities(mut section: Section<'_>, most_trees: usize) -> Result<(usize, usize), ExperimentError> {
    let queue: usize = section.take("capacity")?.unwrap_or(64);
    let buffer: usize = section.take("buffer")?.unwrap_or(most_trees);
    section.counts(&[("capacity", queue, MOST_QUEUED)])?;
    if buffer < most_trees {
        let message = format!(
            "is {buffer}, less than the {most_trees} prompts of a round, or rows of a portion, that it must hold"
        );
        return Err(section.fail("buffer", &message));
    }
    section.finish()?;
    Ok((queue, buffer))
}
