//! The learner's state on disk: `state.json`, and a file or a folder of each thing that it names.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use arriero_buffers::{Address, ExperienceBuffer, Tree};
use arriero_experiment::Stage;
use arriero_policy::checkpoint::{
    Weights, handles, load_weights, read_json, save_weights, write_folder, write_json,
};
use arriero_policy::lora::{Adapter, LoraConfig};
use arriero_policy::objective::Statistics;
use arriero_policy::trainer::{Position, TrainerState};
use arriero_policy::{PolicyError, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Adapting, LearnerState, Origin, Results, RewardModel, Running, Work, trees};
use crate::job::{PortionJob, TrainingJob};
use crate::learner::trainers::{Start, Trainers};

const FACTS: &str = "state.json";
const WEIGHTS: &str = "weights.safetensors";
const REWARD_MODEL: &str = "reward_model.safetensors";
const BASE: &str = "adapting_base.safetensors";
const ADAPTER: &str = "adapter.safetensors";
const TRAINER: &str = "trainer";
const TRAINER_BASE: &str = "trainer_base.safetensors";
const TRAINER_REFERENCE: &str = "trainer_reference.safetensors";
const EXPERIENCE: &str = "experience.jsonl";

/// `state.json`. Things by name stand in files with the names' numbers, in this order.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Facts {
    arm: usize,
    version: u32,
    reward_steps: u32,
    /// [`RewardModel::steps`].
    reward_model: Option<u32>,
    adapting: Option<AdaptingFacts>,
    /// What [`arriero_policy::objective::Objective::state`] gave, by stage.
    objectives: BTreeMap<String, Value>,
    positions: Vec<String>,
    kept: Vec<String>,
    critics: Vec<String>,
    references: Vec<String>,
    /// How many results there are of a stage.
    results: Vec<(String, usize)>,
    results_of_arms: Vec<String>,
    running: Option<RunningFacts>,
    work: Option<WorkFacts>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AdaptingFacts {
    is_initial: bool,
    config: LoraConfig,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunningFacts {
    stage: String,
    has_base: bool,
    has_reference: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkFacts {
    address: Address,
    rounds: u64,
    portion: PortionJob,
    version: u32,
    /// Prompts of the trees that have not been scored.
    unscored: BTreeSet<u64>,
    scoring_seconds: f64,
    epoch: u64,
    /// Minibatches that are left of the epoch.
    batches: usize,
}

impl LearnerState {
    /// Writes everything. A folder that is there already is replaced.
    ///
    /// # Errors
    /// If the disk is full or the place is not writable; then nothing is left behind.
    pub fn save(&self, folder: &Path) -> Result<()> {
        write_folder(folder, |folder| {
            let weights = |name: &str, weights: &Weights| save_weights(&folder.join(name), weights);
            weights(WEIGHTS, &self.weights)?;
            if let Some(model) = &self.reward_model {
                weights(REWARD_MODEL, &model.weights)?;
            }
            if let Some(Adapting { base, adapter, .. }) = &self.adapting {
                weights(BASE, base)?;
                weights(ADAPTER, &adapter.tensors)?;
            }
            for (number, position) in self.positions.values().enumerate() {
                position.save(&folder.join(position_folder(number)))?;
            }
            for (number, kept) in self.kept.values().enumerate() {
                trees::write(&folder.join(kept_file(number)), kept.iter())?;
            }
            for (what, by_name) in [("critic", &self.critics), ("reference", &self.references)] {
                for (number, tensors) in by_name.values().enumerate() {
                    weights(&numbered(what, number), tensors)?;
                }
            }
            for (number, results) in self.results.stages.values().enumerate() {
                for (place, result) in results.iter().enumerate() {
                    weights(&result_file(number, place), result)?;
                }
            }
            for (number, result) in self.results.arms.values().enumerate() {
                weights(&numbered("arm", number), result)?;
            }
            if let Some(Running { trainer, origin, .. }) = &self.running {
                trainer.state().save(&folder.join(TRAINER))?;
                for (name, origin) in [(TRAINER_BASE, &origin.base), (TRAINER_REFERENCE, &origin.reference)] {
                    origin.as_ref().map_or(Ok(()), |origin| weights(name, origin))?;
                }
            }
            if let Some(work) = &self.work {
                trees::write(&folder.join(EXPERIENCE), work.experience.trees())?;
            }
            write_json(&folder.join(FACTS), &json!(self.facts()))
        })
    }

    fn facts(&self) -> Facts {
        let results = self.results.stages.iter().map(|(stage, results)| (stage.clone(), results.len()));
        Facts {
            arm: self.arm,
            version: self.version,
            reward_steps: self.reward_steps,
            reward_model: self.reward_model.as_ref().map(|model| model.steps),
            adapting: self.adapting.as_ref().map(|adapting| AdaptingFacts {
                is_initial: adapting.is_initial,
                config: adapting.adapter.config.clone(),
            }),
            objectives: self
                .objectives
                .iter()
                .map(|(stage, objective)| (stage.clone(), objective.state()))
                .collect(),
            positions: self.positions.keys().cloned().collect(),
            kept: self.kept.keys().cloned().collect(),
            critics: self.critics.keys().cloned().collect(),
            references: self.references.keys().cloned().collect(),
            results: results.collect(),
            results_of_arms: self.results.arms.keys().cloned().collect(),
            running: self.running.as_ref().map(|running| RunningFacts {
                stage: running.stage.clone(),
                has_base: running.origin.base.is_some(),
                has_reference: running.origin.reference.is_some(),
            }),
            work: self.work.as_ref().map(|work| WorkFacts {
                address: work.job.address.clone(),
                rounds: work.job.rounds,
                portion: work.job.portion,
                version: work.version,
                unscored: work.unscored.iter().map(|tree| tree.prompt_id).collect(),
                scoring_seconds: work.scoring_seconds,
                epoch: work.epoch,
                batches: work.batches.len(),
            }),
        }
    }

    /// Reads what [`LearnerState::save`] wrote, to the last bit; tensors are on the CPU. The trainer is made anew for the
    /// stage that the plan has under its name, and goes on from where the other one stood.
    ///
    /// # Errors
    /// If a file is missing or broken, or the state is of another plan or model.
    pub fn load(folder: &Path, trainers: &mut Trainers) -> Result<Self> {
        let path = folder.join(FACTS);
        let facts: Facts = serde_json::from_value(read_json(&path)?)
            .map_err(|error| wrong(format!("{} is broken ({error})", path.display())))?;
        let weights = |name: &str| load_weights(&folder.join(name));
        let mut state = LearnerState::new(weights(WEIGHTS)?);
        (state.arm, state.version, state.reward_steps) = (facts.arm, facts.version, facts.reward_steps);
        if let Some(steps) = facts.reward_model {
            let config = trainers.model.with_score(trainers.tokenizer.pad_id());
            state.reward_model = Some(RewardModel { config, weights: weights(REWARD_MODEL)?, steps });
        }
        if let Some(AdaptingFacts { is_initial, config }) = facts.adapting {
            let adapter = Adapter { config, tensors: weights(ADAPTER)? };
            state.adapting = Some(Adapting { base: weights(BASE)?, is_initial, adapter });
        }
        for (name, value) in facts.objectives {
            let mut objective = stage(trainers, facts.arm, &name)?.algorithm.objective();
            objective
                .restore(&value)
                .map_err(|cause| wrong(format!("the objective of stage {name}: {cause}")))?;
            state.objectives.insert(name, objective);
        }
        for (number, name) in facts.positions.into_iter().enumerate() {
            state.positions.insert(name, Position::load(&folder.join(position_folder(number)))?);
        }
        for (number, name) in facts.kept.into_iter().enumerate() {
            state.kept.insert(name, trees::read(&folder.join(kept_file(number)))?);
        }
        let by_name = |what: &str, names: Vec<String>| -> Result<BTreeMap<String, Weights>> {
            let named = names.into_iter().enumerate();
            named.map(|(number, name)| Ok((name, weights(&numbered(what, number))?))).collect()
        };
        state.critics = by_name("critic", facts.critics)?;
        state.references = by_name("reference", facts.references)?;
        let mut stages = BTreeMap::new();
        for (number, (name, count)) in facts.results.into_iter().enumerate() {
            let results = (0..count).map(|place| weights(&result_file(number, place)));
            stages.insert(name, results.collect::<Result<VecDeque<Weights>>>()?);
        }
        state.results = Results { stages, arms: by_name("arm", facts.results_of_arms)? };
        if let Some(running) = facts.running {
            state.running = Some(state.load_running(folder, running, trainers)?);
        }
        if let Some(work) = facts.work {
            let name =
                &state.running.as_ref().ok_or_else(|| wrong("no stage runs, but one works".into()))?.stage;
            let stage = stage(trainers, facts.arm, name)?.clone();
            let experience = trees::read(&folder.join(EXPERIENCE))?;
            state.work = Some(work.load(stage, experience, trainers.plan.seed)?);
        }
        Ok(state)
    }

    fn load_running(&self, folder: &Path, facts: RunningFacts, trainers: &mut Trainers) -> Result<Running> {
        let RunningFacts { stage: name, has_base, has_reference } = facts;
        let optional =
            |is_there: bool, name: &str| is_there.then(|| load_weights(&folder.join(name))).transpose();
        let origin = Origin {
            base: optional(has_base, TRAINER_BASE)?,
            reference: optional(has_reference, TRAINER_REFERENCE)?,
        };
        let stage = stage(trainers, self.arm, &name)?.clone();
        let written = TrainerState::load(&folder.join(TRAINER))?;
        let objective = stage.algorithm.objective();
        let needs = objective.needs();
        let is_policy = needs.statistics != Statistics::Scores;
        let adapting = self.adapting.as_ref().filter(|_| is_policy);
        let config = match is_policy {
            true => (*trainers.model).clone(),
            false => trainers.model.with_score(trainers.tokenizer.pad_id()),
        };
        // A reference that follows the policy is a part of what was written.
        let is_frozen = needs.keeps_reference() && needs.sync.is_none();
        let reference = is_frozen.then(|| match &origin.reference {
            Some(reference) => handles(reference),
            None => trainers.initial.weights(),
        });
        let base = origin.base.as_ref().or(adapting.map(|adapting| &adapting.base));
        let start = Start {
            config: &config,
            weights: base.unwrap_or(&written.trained),
            adapter: adapting.map(|adapting| &adapting.adapter),
            critic: None,
            reference: reference.as_ref(),
        };
        let trainer = trainers.make(&stage, objective, &start, written.total_steps)?.resume(&written)?;
        Ok(Running { stage: name, trainer, origin })
    }
}

impl WorkFacts {
    fn load(self, stage: Stage, experience: Vec<Tree>, seed: u64) -> Result<Work> {
        let WorkFacts { address, rounds, portion, version, unscored, scoring_seconds, epoch, batches } = self;
        let is_unscored = |tree: &&Tree| unscored.contains(&tree.prompt_id);
        let mut work = Work {
            job: TrainingJob { address, stage, rounds, portion },
            version,
            unscored: experience.iter().filter(is_unscored).cloned().collect(),
            experience: ExperienceBuffer::of(experience),
            scoring_seconds,
            epoch,
            batches: VecDeque::new(),
        };
        if let Some(epoch) = epoch.checked_sub(1) {
            work.batches = work.minibatches(seed, epoch);
        }
        let taken = work.batches.len().checked_sub(batches).ok_or_else(|| {
            wrong(format!("{batches} minibatches are left of an epoch that has {}", work.batches.len()))
        })?;
        work.batches.drain(..taken);
        Ok(work)
    }
}

fn wrong(cause: String) -> PolicyError {
    PolicyError::WrongState { cause }
}

/// The stage that an arm trains under this name.
fn stage<'a>(trainers: &'a Trainers, arm: usize, name: &str) -> Result<&'a Stage> {
    let arm = trainers.plan.arms.get(arm);
    let stage = arm.and_then(|arm| arm.trainings().map(|(_, stage)| stage).find(|stage| stage.name == name));
    stage
        .ok_or_else(|| wrong(format!("it is of a stage \"{name}\", which the arm does not have in the plan")))
}

fn numbered(what: &str, number: usize) -> String {
    format!("{what}_{number}.safetensors")
}

fn position_folder(number: usize) -> String {
    format!("position_{number}")
}

fn kept_file(number: usize) -> String {
    format!("kept_{number}.jsonl")
}

fn result_file(stage: usize, place: usize) -> String {
    numbered(&format!("result_{stage}"), place)
}
