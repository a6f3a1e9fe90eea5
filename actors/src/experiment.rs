//! Experiment files: from TOML to a validated [`Plan`].
//!
//! - `document`: the file with the positions of its keys, and `--set` on top of it; sections that are
//!   read key by key and complain about what is left over;
//! - `prompts`: where prompts come from; `data`: what offline stages learn from; `stages`: arms and their stages; `average`: stages
//!   that average models;
//! - here: which sections there are, and what they amount to.
//!
//! Everything that can be wrong with a file is found here, before anything heavy loads.

mod average;
mod data;
mod document;
mod preparation;
mod prompts;
mod stages;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arriero_buffers::SelectionConfig;
use arriero_eval::{Kind, SuiteConfig};
use arriero_policy::PolicyError;
use arriero_policy::checkpoint::{DEFAULT, locate};
use arriero_policy::device::{DeviceSpec, DtypeSpec};
use arriero_policy::sampling::SamplingConfig;
use arriero_policy::tokenizer::TokenizerRule;
use arriero_reward::RewardConfig;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::devices::DevicePlan;
pub use crate::scoring::Unscored;
use document::{Document, Section};
use stages::Surroundings;

pub use average::{AverageSource, AverageStage};
pub use data::{DataPlan, ExampleConfig, TooLong, read_data};
pub use document::{ExperimentError, nearest};
pub use preparation::{PreparationPlan, read_preparation};
pub use prompts::{PromptData, PromptFiles, PromptSet, PromptSource, Prompts, Split, read_prompts};
pub use stages::{Arm, ArmStage, ExperienceOf, ReferenceWeights, ScoredBy, Stage, StartFrom};

/// Sequences decoded at once: more is a slip of the finger, and would only run out of memory.
const MOST_SEQUENCES: usize = 65_536;
/// Items of a queue, whose slots are allocated at once.
const MOST_QUEUED: usize = 65_536;
/// MiB of a cache: what 64 bits can count in bytes, and more than there is.
const MOST_MEBIBYTES: usize = 1 << 40;

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

/// The model and what it is computed with.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelPlan {
    /// A Hugging Face directory or a GGUF file.
    pub path: PathBuf,
    /// A LoRA adapter in PEFT's layout, merged into the weights before anything else.
    pub adapter: Option<PathBuf>,
    /// How the tokenizer of a GGUF file cuts text. Default `own`.
    pub tokenizer: TokenizerRule,
    /// Default `auto`.
    pub device: DeviceSpec,
    /// Default `auto`.
    pub dtype: DtypeSpec,
}

/// Options of the generator.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratorPlan {
    /// How tokens are drawn.
    pub sampling: SamplingConfig,
    /// Completions of a prompt: Llama 3's K. Default 8.
    pub samples: usize,
    /// Sequences decoded at once. Default 64.
    pub batch: usize,
    /// MiB of the KV cache. Default: half of the memory that is free.
    pub cache_memory: Option<usize>,
}

/// Options of the evaluator.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluationPlan {
    /// How tokens are drawn. Default: greedily, with the generator's limit and stop strings.
    pub sampling: SamplingConfig,
    /// Sequences decoded at once. Default 64.
    pub batch: usize,
    /// Held-out prompts on whose answers the KL to the reference is measured. Default 64.
    pub kl_prompts: usize,
    /// Benchmarks of the initial weights and of each arm's. Default none.
    pub suites: Vec<SuiteConfig>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct GeneratorSizes {
    samples: usize,
    batch: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_memory: Option<usize>,
}

impl Default for GeneratorPlan {
    fn default() -> Self {
        let GeneratorSizes { samples, batch, cache_memory } = GeneratorSizes::default();
        GeneratorPlan { sampling: SamplingConfig::default(), samples, batch, cache_memory }
    }
}

impl GeneratorPlan {
    fn sizes(&self) -> GeneratorSizes {
        let GeneratorPlan { samples, batch, cache_memory, .. } = *self;
        GeneratorSizes { samples, batch, cache_memory }
    }

    fn to_table(&self) -> Result<Table, toml::ser::Error> {
        let mut table = Table::try_from(self.sizes())?;
        table.extend(Table::try_from(&self.sampling)?);
        Ok(table)
    }
}

impl Default for GeneratorSizes {
    fn default() -> Self {
        GeneratorSizes { samples: 8, batch: 64, cache_memory: None }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EvaluationSizes {
    batch: usize,
    kl_prompts: usize,
}

impl Default for EvaluationSizes {
    fn default() -> Self {
        EvaluationSizes { batch: 64, kl_prompts: 64 }
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

/// How actors take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One phase after the other.
    Lockstep,
    /// The generator samples while the learner trains.
    Async {
        /// Versions of the weights between those that drew a token and those that training on it begins with, at most.
        max_staleness: u32,
    },
}

impl Mode {
    /// True if actors work at the same time.
    pub fn overlaps(self) -> bool {
        self != Mode::Lockstep
    }
}

/// `mode` in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ModeName {
    Lockstep,
    Async,
}

/// `max_staleness` where nothing is said: enough for the last steps of a round to overlap with the next one's samples.
const DEFAULT_STALENESS: u32 = 4;

fn mode(root: &mut Section<'_>) -> Result<Mode, ExperimentError> {
    let name = root.take("mode")?.unwrap_or(ModeName::Lockstep);
    let max_staleness: Option<u32> = root.take("max_staleness")?;
    match (name, max_staleness) {
        (ModeName::Lockstep, None) => Ok(Mode::Lockstep),
        (ModeName::Lockstep, Some(_)) => {
            let message =
                "is an option of mode = \"async\"; in lockstep nothing is stale. Remove it, or set the mode";
            Err(root.fail("max_staleness", message))
        }
        (ModeName::Async, given) => Ok(Mode::Async { max_staleness: given.unwrap_or(DEFAULT_STALENESS) }),
    }
}

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

/// Reads the `[reward]` of a file, if one is given, with `kind` and `set` (`option=value`) on top of it. Other
/// tables of the file are not looked at.
///
/// # Errors
/// As [`load`].
pub fn read_reward(
    path: Option<&Path>,
    kind: Option<&str>,
    set: &[String],
) -> Result<(RewardConfig, Unscored), ExperimentError> {
    let text = path.map_or(Ok(String::new()), |path| {
        std::fs::read_to_string(path)
            .map_err(|cause| ExperimentError::Unreadable { path: path.to_path_buf(), cause })
    })?;
    let kind = kind.map(|kind| format!("reward.kind={}", toml::Value::from(kind)));
    let set: Vec<String> =
        kind.into_iter().chain(set.iter().map(|assignment| format!("reward.{assignment}"))).collect();
    let document = Document::parse(path.unwrap_or(Path::new("--reward")), &text, &set)?;
    reward(document.root().child("reward")?)
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
    let arms = stages::arms(&mut root, rounds.unwrap_or(1), &around)?;
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

fn model(mut section: Section<'_>) -> Result<(ModelPlan, String), ExperimentError> {
    let written: String = section.take("path")?.unwrap_or_else(|| DEFAULT.to_string());
    let path = locate(Path::new(&written))
        .map_err(|error| section.fail("path", &format!("is \"{DEFAULT}\", but {error}")))?;
    if !path.exists() {
        return Err(section.fail("path", &format!("is wrong: {}", PolicyError::NoModel { path })));
    }
    let adapter: Option<PathBuf> = section.take("adapter")?;
    if let Some(folder) = adapter.as_ref().filter(|folder| !folder.is_dir()) {
        let message = format!(
            "is \"{}\", which is no folder; expected one with adapter_config.json and adapter_model.safetensors",
            folder.display()
        );
        return Err(section.fail("adapter", &message));
    }
    let tokenizer = section.take("tokenizer")?.unwrap_or_default();
    let device = section.take("device")?.unwrap_or_default();
    let dtype = section.take("dtype")?.unwrap_or_default();
    section.finish()?;
    Ok((ModelPlan { path, adapter, tokenizer, device, dtype }, written))
}

fn generator(mut section: Section<'_>, default: &GeneratorPlan) -> Result<GeneratorPlan, ExperimentError> {
    let GeneratorSizes { samples, batch, cache_memory } = section.read(&default.sizes())?;
    let sampling: SamplingConfig = section.read(&default.sampling)?;
    section.check(sampling.validate())?;
    section.counts(&[
        ("samples", samples, MOST_SEQUENCES),
        ("batch", batch, MOST_SEQUENCES),
        ("cache_memory", cache_memory.unwrap_or(1), MOST_MEBIBYTES),
    ])?;
    section.finish()?;
    Ok(GeneratorPlan { sampling, samples, batch, cache_memory })
}

fn evaluation(
    mut section: Section<'_>,
    generator: &GeneratorPlan,
) -> Result<EvaluationPlan, ExperimentError> {
    let EvaluationSizes { batch, kl_prompts } = section.read(&EvaluationSizes::default())?;
    let greedy = SamplingConfig {
        temperature: 0.0,
        max_new_tokens: generator.sampling.max_new_tokens,
        stop: generator.sampling.stop.clone(),
        ..SamplingConfig::default()
    };
    let sampling: SamplingConfig = section.read(&greedy)?;
    section.check(sampling.validate())?;
    section.counts(&[("batch", batch, MOST_SEQUENCES), ("kl_prompts", kl_prompts, usize::MAX)])?;
    let suites = section.children("suites")?.into_iter().map(suite).collect::<Result<Vec<_>, _>>()?;
    let repeated =
        (1..suites.len()).find(|&place| suites[..place].iter().any(|one| one.name() == suites[place].name()));
    if let Some(place) = repeated {
        let name = suites[place].name();
        return Err(section.fail("suites", &format!("has \"{name}\" twice; give one of them another name")));
    }
    section.finish()?;
    Ok(EvaluationPlan { sampling, batch, kl_prompts, suites })
}

/// A suite of the evaluation.
fn suite(mut section: Section<'_>) -> Result<SuiteConfig, ExperimentError> {
    let names: Vec<&str> = Kind::ALL.iter().map(|(name, _)| *name).collect();
    let Some(name) = section.take::<String>("kind")? else {
        return Err(section.fail("kind", &format!("is missing; expected one of {}", names.join(", "))));
    };
    let kind = Kind::parse(&name).map_err(|error| section.fail("kind", &format!("is wrong: {error}")))?;
    let config: SuiteConfig = section.read(&SuiteConfig::new(kind))?;
    if kind.is_of_reward_models() {
        return Err(
            section.fail("kind", "asks a reward model, and a run evaluates a policy; use `arriero eval`")
        );
    }
    section.check(config.validate())?;
    section.finish()?;
    Ok(config)
}

fn selection(
    mut section: Section<'_>,
    default: &SelectionConfig,
) -> Result<SelectionConfig, ExperimentError> {
    let selection: SelectionConfig = section.read(default)?;
    section.check(selection.validate())?;
    section.finish()?;
    Ok(selection)
}

fn reward(mut section: Section<'_>) -> Result<(RewardConfig, Unscored), ExperimentError> {
    let unscored: Unscored = section.read(&Unscored::default())?;
    section.check(unscored.validate())?;
    let default = RewardConfig::default();
    let reward: RewardConfig =
        section.read_kind(RewardConfig::KINDS, RewardConfig::option_names, Some(default.kind()))?;
    section.check(reward.validate())?;
    section.finish()?;
    Ok((reward, unscored))
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

/// Writes the plan out.
fn resolve(plan: &Plan, model_path: &str) -> Result<String, ExperimentError> {
    let table = || -> Result<Table, toml::ser::Error> {
        let mut root = Table::new();
        let mut put = |key: &str, value: Value| root.insert(key.to_string(), value);
        put("name", Value::String(plan.name.clone()));
        put("seed", Value::try_from(plan.seed)?);
        match plan.mode {
            Mode::Lockstep => put("mode", Value::try_from(ModeName::Lockstep)?),
            Mode::Async { max_staleness } => {
                put("max_staleness", Value::try_from(max_staleness)?);
                put("mode", Value::try_from(ModeName::Async)?)
            }
        };
        let mut model = Table::new();
        model.insert("path".to_string(), Value::String(model_path.to_string()));
        if let Some(adapter) = &plan.model.adapter {
            model.insert("adapter".to_string(), Value::String(adapter.display().to_string()));
        }
        model.insert("tokenizer".to_string(), Value::try_from(plan.model.tokenizer)?);
        model.insert("device".to_string(), Value::try_from(plan.model.device)?);
        model.insert("dtype".to_string(), Value::try_from(plan.model.dtype)?);
        put("model", Value::Table(model));
        put("devices", Value::try_from(plan.devices)?);
        put("prompts", Value::Table(plan.prompts.to_table()?));
        put("reward", merged(&[Table::try_from(&plan.reward)?, Table::try_from(plan.unscored)?]));
        put("generator", Value::Table(plan.generator.to_table()?));
        put("selection", Value::try_from(&plan.selection)?);
        let EvaluationPlan { batch, kl_prompts, .. } = plan.evaluation;
        let sizes = EvaluationSizes { batch, kl_prompts };
        let mut suites = Table::new();
        if !plan.evaluation.suites.is_empty() {
            suites.insert("suites".to_string(), Value::try_from(&plan.evaluation.suites)?);
        }
        let sampling = Table::try_from(&plan.evaluation.sampling)?;
        put("evaluation", merged(&[Table::try_from(sizes)?, sampling, suites]));
        let mut queues = Table::new();
        queues.insert("capacity".to_string(), Value::try_from(plan.queue_capacity)?);
        queues.insert("buffer".to_string(), Value::try_from(plan.buffer_capacity)?);
        put("queues", Value::Table(queues));
        put("checkpoint", Value::try_from(plan.checkpoint)?);
        let arms =
            plan.arms.iter().map(|arm| arm.to_table(&plan.generator, &plan.selection).map(Value::Table));
        let arms = arms.collect::<Result<_, _>>()?;
        put("arm", Value::Array(arms));
        Ok(root)
    };
    let text = table().and_then(|table| toml::to_string(&table));
    text.map_err(|error| ExperimentError::Unwritable { cause: error.to_string() })
}

fn merged(tables: &[Table]) -> Value {
    Value::Table(tables.iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect())
}

#[cfg(test)]
mod tests;
