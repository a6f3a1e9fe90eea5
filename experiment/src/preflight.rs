//! What can be wrong with what a plan names, found before weights are read or anything is written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use arriero_buffers::Prompt;
use arriero_data::{Reason, RowError};
use arriero_policy::PolicyError;
use arriero_policy::average;
use arriero_policy::checkpoint::{Checkpoint, read_adapter};
use arriero_policy::config::ModelConfig;
use arriero_policy::objective::{CriticKind, Statistics};
use arriero_policy::teacher;
use arriero_policy::tokenizer::Tokenizer;
use arriero_store::RunDir;

use crate::arm::{Arm, Stage};
use crate::data::DataPlan;
use crate::devices::Computes;
use crate::error::PreflightError;
use crate::examples;
use crate::plan::Plan;
use crate::prompts::{PromptSet, Split};

/// What the checks of a plan find. The run that follows needs all of it.
#[derive(Debug)]
pub struct Preflight {
    /// The model's architecture.
    pub model: ModelConfig,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// What each actor computes with on this machine.
    pub computes: Computes,
    /// The training prompts, in the order in which rounds take them.
    pub train: Vec<Arc<Prompt>>,
    /// The held-out prompts.
    pub held_out: Vec<Arc<Prompt>>,
    /// Rows of the datasets of offline stages, by the numbers of arm and stage.
    pub rows: BTreeMap<(usize, usize), u64>,
    /// What a person must know before the run begins.
    pub notes: Vec<String>,
    /// What the run will take on the disk.
    pub needed_bytes: u64,
}

/// Checks everything that a plan names, in the order of what it costs: the model's headers, adapters, teachers, models
/// to average, devices, the run's name and place in the folder `runs`, prompts, rows, suites.
///
/// # Errors
/// Names what is wrong, and where it stands.
pub fn preflight(plan: &Plan, runs: &Path) -> Result<Preflight, PreflightError> {
    let (model, tokenizer) = Checkpoint::inspect(&plan.model.path)?;
    let tokenizer = match plan.model.path.is_file() {
        true => tokenizer.with_rule(plan.model.tokenizer),
        false => tokenizer, // a directory's tokenizer.json says how text is cut
    };
    if let Some(folder) = &plan.model.adapter {
        read_adapter(folder, &model)?;
    }
    let stages = || plan.arms.iter().flat_map(Arm::trainings).map(|(_, stage)| stage);
    stages().filter_map(|stage| stage.training.lora.as_ref()).try_for_each(|lora| lora.check(&model))?;
    for path in stages().filter_map(|stage| stage.algorithm.teacher()).collect::<BTreeSet<_>>() {
        teacher::check(path, &model, &tokenizer)?;
    }
    for path in plan.arms.iter().flat_map(Arm::averaged_paths) {
        average::check(path, &model, &tokenizer)?;
    }
    let computes = Computes::resolve(&plan.devices, plan.model.dtype)?;
    let needed_bytes = needed_bytes(plan, &model);
    RunDir::check(runs, &plan.name, needed_bytes)?;
    let mut notes = Vec::new();
    let train = checked_prompts(plan, Split::Train, &model, &tokenizer, &mut notes)?;
    let held_out = checked_prompts(plan, Split::HeldOut, &model, &tokenizer, &mut notes)?;
    let rows = checked_rows(plan)?;
    for suite in &plan.evaluation.suites {
        arriero_eval::Evaluation::check(suite, &tokenizer, model.max_positions)?;
    }
    Ok(Preflight { model, tokenizer, computes, train, held_out, rows, notes, needed_bytes })
}

/// How many rows each offline stage has. All of them are read once.
fn checked_rows(plan: &Plan) -> Result<BTreeMap<(usize, usize), u64>, PreflightError> {
    let mut rows = BTreeMap::new();
    // Stages that differ in nothing that matters here share one reading.
    let mut known: Vec<(&DataPlan, &Stage, u64)> = Vec::new();
    for (arm_number, arm) in plan.arms.iter().enumerate() {
        for (number, stage) in arm.trainings() {
            let Some(data) = &stage.data else { continue };
            let is_same = |&&(other, of, _): &&(&DataPlan, &Stage, u64)| {
                other == &**data && of.algorithm == stage.algorithm
            };
            let count = match known.iter().find(is_same) {
                Some(&(_, _, count)) => count,
                None => examples::check(stage, data, plan.seed)?,
            };
            known.push((data, stage, count));
            rows.insert((arm_number, number), count);
        }
    }
    Ok(rows)
}

/// The prompts of a split. Each fits the model's context and has what the reward checks. Where rows of a dataset may be
/// skipped, those that do not are skipped, and `notes` says so.
fn checked_prompts(
    plan: &Plan,
    split: Split,
    model: &ModelConfig,
    tokenizer: &Tokenizer,
    notes: &mut Vec<String>,
) -> Result<Vec<Arc<Prompt>>, PreflightError> {
    let PromptSet { prompts, mut counts } = plan.load_prompts(split)?;
    let source = &plan.prompts.source;
    let max_skipped = source.skips(split);
    let loaded = prompts.len();
    let mut checked = Vec::with_capacity(loaded);
    for prompt in prompts {
        let place = || source.place(split, prompt.id);
        match check_prompt(plan, &prompt, model, tokenizer) {
            Ok(()) => checked.push(Arc::new(prompt)),
            Err(cause) if max_skipped.is_some() => {
                counts.skip(place(), RowError::new(Reason::Unusable, cause.to_string()));
            }
            Err(cause) => return Err(PreflightError::Prompt { place: place(), cause: Box::new(cause) }),
        }
    }
    if let Some(max_skipped) = max_skipped {
        counts.check(max_skipped)?;
        let what = if split == Split::Train { "training" } else { "held-out" };
        notes.extend(counts.skipped_line().map(|line| format!("{what} prompts: skipped {line}")));
    }
    let rounds = plan.arms.iter().map(|arm| arm.rounds).max().unwrap_or(1);
    // The last round may be a smaller one, but not an empty one.
    let needed = plan.prompts.per_round() * (rounds - 1) + usize::from(plan.prompts.per_round() > 0);
    if split == Split::Train && checked.len() < loaded && checked.len() < needed {
        return Err(PreflightError::FewPrompts { left: checked.len(), needed, rounds });
    }
    Ok(checked)
}

fn check_prompt(
    plan: &Plan,
    prompt: &Prompt,
    model: &ModelConfig,
    tokenizer: &Tokenizer,
) -> Result<(), PreflightError> {
    plan.reward.check_prompt(prompt)?;
    let (tokens, limit) = (tokenizer.prompt_tokens(&prompt.messages)?.len(), model.max_positions);
    if tokens >= limit {
        return Err(PolicyError::PromptTooLong { prompt_id: prompt.id, tokens, limit }.into());
    }
    Ok(())
}

/// What the checkpoints will take: the f32 weights of each arm, twice as much more with the optimiser's moments, and a
/// little for the records.
fn needed_bytes(plan: &Plan, model: &ModelConfig) -> u64 {
    let parameters: i64 = model.tensor_shapes().iter().map(|(_, shape)| shape.iter().product::<i64>()).sum();
    let copies = if plan.checkpoint.optimizer { 3 } else { 1 };
    // A reward model, and a critic of its own, which may have moments, too.
    let beside = |arm: &Arm| {
        let has = |wanted: fn(Statistics) -> bool| {
            arm.trainings().any(|(_, stage)| wanted(stage.algorithm.objective().needs().statistics))
        };
        let has_critic = has(
            |statistics| matches!(statistics, Statistics::ProbabilitiesAndValues(critic) if critic.kind == CriticKind::Model),
        );
        u64::from(has(|statistics| statistics == Statistics::Scores)) + if has_critic { copies } else { 0 }
    };
    const RECORDS: u64 = 64 << 20;
    let of_arm = |arm: &Arm| parameters.unsigned_abs() * 4 * (copies + beside(arm)) + RECORDS;
    plan.arms.iter().map(of_arm).sum()
}
