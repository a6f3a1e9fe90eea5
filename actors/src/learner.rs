//! The learner: trains on the buffer, one optimiser step a message, and publishes the weights.
//!
//! A stage that trains a reward model starts from the run's initial weights under a fresh head; the policy stays as it is.

mod results;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use arriero_buffers::{Address, ExperienceBuffer, Tree};
use arriero_policy::PolicyError;
use arriero_policy::average;
use arriero_policy::checkpoint::{self, Beside, Weights};
use arriero_policy::config::ModelConfig;
use arriero_policy::device::Compute;
use arriero_policy::lora::{Adapter, LoraConfig};
use arriero_policy::model::Model;
use arriero_policy::objective::{CriticKind, Objective, Statistics};
use arriero_policy::optim::AcrossRounds;
use arriero_policy::reward_model;
use arriero_policy::snapshot::Snapshot;
use arriero_policy::teacher;
use arriero_policy::trainer::{Position, Trainer};
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef};
use std::sync::Arc;

use crate::context::Context;
use crate::data_reader::FILE_IDS;
use crate::job::{AverageJob, CheckpointJob, PortionJob, TrainingJob};
use crate::record::Record;
use crate::report::News;
use crate::role::ActorRole;
use arriero_experiment::{AverageStage, ExperienceOf, ReferenceWeights, StartFrom};
use results::Results;

impl TrainingJob {
    /// Whether the optimiser goes on from round to round.
    fn continues(&self) -> bool {
        self.stage.training.optimizer == Some(AcrossRounds::Continue)
    }

    /// Steps of the optimiser in all where `taken` are behind it, and this round has `steps`: as if the rounds that are
    /// left had as many.
    fn total_steps(&self, taken: usize, steps: usize) -> usize {
        let rounds = if self.continues() { self.rounds.saturating_sub(self.address.round).max(1) } else { 1 };
        taken.saturating_add(steps.saturating_mul(rounds as usize))
    }
}

#[derive(Debug)]
pub(crate) enum LearnerMessage {
    /// Go back to the initial weights: the arm of this number begins.
    Begin { address: Address, arm: usize },
    /// Train on what the buffer holds.
    Train(Box<TrainingJob>),
    /// Take the next step.
    Step,
    /// Put the average of models in the place of the policy, or of the reward model.
    Average(Box<AverageJob>),
    /// Write the weights.
    Checkpoint(CheckpointJob),
}

/// The learner's own facts: weights never travel in messages.
#[derive(Clone)]
pub(crate) struct LearnerArguments {
    pub context: Context,
    pub compute: Compute,
    /// The weights that every arm starts from, in f32.
    pub masters: Arc<Snapshot>,
}

#[derive(Default)]
pub(crate) struct Learner;

pub(crate) struct LearnerState {
    context: Context,
    compute: Compute,
    masters: Arc<Snapshot>,
    /// Handles of the f32 weights as they are now.
    weights: Weights,
    trainer: Option<Trainer>,
    /// The stage that the trainer is of.
    stage: String,
    /// Objectives of the arm's stages, whose running statistics go on from round to round.
    objectives: BTreeMap<String, Box<dyn Objective>>,
    /// How far stages have come that go on with their optimiser.
    positions: BTreeMap<String, Position>,
    /// Trees of all rounds so far, of stages that learn from those.
    kept: BTreeMap<String, Vec<Tree>>,
    /// Critics of the arm's stages, f32.
    critics: BTreeMap<String, Weights>,
    /// References of the arm's stages that follow the policy, f32.
    references: BTreeMap<String, Weights>,
    /// The reward model that the arm trained last, f32.
    reward_model: Option<(ModelConfig, Weights)>,
    adapting: Option<Adapting>,
    /// The teacher that a stage named last, where it lies and in the learner's precision.
    teacher: Option<(PathBuf, Rc<Model>)>,
    work: Option<Work>,
    /// The arm's number.
    arm: usize,
    results: Results,
    /// How often the policy's weights have changed since the arm began, by optimiser steps and averages.
    version: u32,
    /// Optimiser steps of the arm's reward models.
    reward_steps: u32,
}

/// Adapters in training: as long as stages have the same options, they go on with the same ones.
struct Adapting {
    /// What the adapters are trained on.
    base: Weights,
    /// Whether these are the weights of the run's model, so that the adapter fits it.
    is_initial: bool,
    adapter: Adapter,
}

struct Work {
    job: TrainingJob,
    /// Of the weights that training began with.
    version: u32,
    experience: ExperienceBuffer,
    /// Trees that the policy and the critic have not scored yet as they were when training began.
    unscored: VecDeque<Tree>,
    /// What scoring took since the last step.
    scoring_seconds: f64,
    /// Epochs begun.
    epoch: u64,
    /// What is left of the epoch.
    batches: VecDeque<Vec<Tree>>,
}

impl Work {
    /// Of an experience that the trainer scores first where its objective wants that.
    fn new(job: TrainingJob, version: u32, experience: ExperienceBuffer, trainer: &mut Trainer) -> Self {
        let mut unscored = VecDeque::new();
        if trainer.scores_old() {
            unscored.extend(experience.trees().cloned());
        } else {
            trainer.begin(&experience.trees().collect::<Vec<_>>());
        }
        Work { job, version, experience, unscored, scoring_seconds: 0.0, epoch: 0, batches: VecDeque::new() }
    }

    fn next_batch(&mut self, seed: u64) -> Option<Vec<Tree>> {
        let PortionJob { number, epochs, shuffle, .. } = self.job.portion;
        let size = self.job.stage.training.batch_size;
        if self.batches.is_empty() && self.epoch < epochs as u64 {
            let batches = match shuffle {
                true => self.experience.minibatches(seed, self.job.address.round, number + self.epoch, size),
                false => self.experience.minibatches_in_order(size),
            };
            self.batches = batches.into_iter().map(|batch| batch.into_iter().cloned().collect()).collect();
            self.epoch += 1;
        }
        self.batches.pop_front()
    }

    /// Scores the next tree as training began with; false when there is none left.
    fn score(&mut self, trainer: &mut Trainer) -> arriero_policy::Result<bool> {
        let Some(mut tree) = self.unscored.pop_front() else { return Ok(false) };
        let began = Instant::now();
        trainer.score_old(&mut tree)?;
        self.experience.replace(tree);
        if self.unscored.is_empty() {
            trainer.begin(&self.experience.trees().collect::<Vec<_>>());
        }
        self.scoring_seconds += began.elapsed().as_secs_f64();
        Ok(true)
    }

    fn is_done(&self) -> bool {
        self.batches.is_empty() && self.epoch >= self.job.portion.epochs as u64
    }
}

impl ThreadLocalActor for Learner {
    type Msg = LearnerMessage;
    type State = LearnerState;
    type Arguments = LearnerArguments;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        arguments: LearnerArguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let LearnerArguments { context, compute, masters } = arguments;
        let weights = masters.weights();
        Ok(LearnerState {
            context,
            compute,
            masters,
            weights,
            trainer: None,
            stage: String::new(),
            objectives: BTreeMap::new(),
            positions: BTreeMap::new(),
            kept: BTreeMap::new(),
            critics: BTreeMap::new(),
            references: BTreeMap::new(),
            reward_model: None,
            adapting: None,
            teacher: None,
            work: None,
            arm: 0,
            results: Results::default(),
            version: 0,
            reward_steps: 0,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            LearnerMessage::Begin { address, arm } => state.begin(&address, arm),
            LearnerMessage::Train(job) => {
                state.train(*job)?;
                myself.cast(LearnerMessage::Step)?;
            }
            LearnerMessage::Step if state.context.shutdown.has_begun() => {}
            LearnerMessage::Step => {
                if state.step()? {
                    myself.cast(LearnerMessage::Step)?;
                }
            }
            LearnerMessage::Average(_) if state.context.shutdown.has_begun() => {}
            LearnerMessage::Average(job) => {
                let began = Instant::now();
                let news = match state.average(&job.stage) {
                    Ok(()) => {
                        News::Averaged { version: state.version, seconds: began.elapsed().as_secs_f64() }
                    }
                    Err(cause) => News::Failed { role: ActorRole::Learner, cause },
                };
                state.context.tell(&job.address, news);
            }
            LearnerMessage::Checkpoint(job) => {
                let address = job.address.clone();
                let news = match state.checkpoint(job) {
                    Ok(written) => written,
                    Err(cause) => News::Failed { role: ActorRole::Learner, cause },
                };
                state.context.tell(&address, news);
            }
        }
        Ok(())
    }
}

impl LearnerState {
    fn begin(&mut self, address: &Address, arm: usize) {
        if arm > 0 {
            self.results.arm_ends(&self.context.plan, self.arm, &self.weights);
        }
        self.arm = arm;
        self.trainer = None;
        self.objectives.clear();
        self.positions.clear();
        self.kept.clear();
        self.critics.clear();
        self.references.clear();
        self.reward_model = None;
        self.context.reward_model.publish(None);
        self.adapting = None;
        self.work = None;
        (self.version, self.reward_steps) = (0, 0);
        self.weights = self.masters.weights();
        self.context.weights.publish(Arc::clone(&self.context.initial));
        self.context.tell(address, News::Begun);
    }

    fn train(&mut self, job: TrainingJob) -> Result<(), ActorProcessingErr> {
        let experience = self.experience(&job);
        self.context.tell(&job.address, News::Taken);
        if let Some(trainer) = self.trainer.as_mut().filter(|_| job.portion.number > 0) {
            self.work = Some(Work::new(job, self.version, experience, trainer));
            return Ok(());
        }
        let own_steps =
            job.portion.epochs.saturating_mul(experience.len().div_ceil(job.stage.training.batch_size));
        let steps = job.portion.total_steps.unwrap_or(own_steps);
        let goes_on = job.continues() && self.stage == job.stage.name;
        // The old optimiser goes before the new one comes: both at once would set the peak memory.
        let mut trainer = match self.trainer.take() {
            Some(mut trainer) if goes_on => {
                trainer.reach(job.total_steps(trainer.steps(), steps));
                trainer
            }
            other => {
                self.put_away(other);
                let objective = self.objectives.remove(&job.stage.name);
                self.trainer(&job, objective.unwrap_or_else(|| job.stage.algorithm.objective()), steps)?
            }
        };
        self.stage.clone_from(&job.stage.name);
        if let Err(cause) = trainer.check(&experience.trees().collect::<Vec<_>>()) {
            let cause = format!("{}: {cause}", job.stage.algorithm.kind());
            self.context.tell_failure(&job.address, ActorRole::Learner, cause);
        } else {
            self.work = Some(Work::new(job, self.version, experience, &mut trainer));
        }
        self.trainer = Some(trainer);
        Ok(())
    }

    /// What is to be learned from: what the buffer holds, which is empty then, and what is kept of earlier rounds.
    fn experience(&mut self, job: &TrainingJob) -> ExperienceBuffer {
        let fresh = {
            let mut buffer = self.context.buffer();
            let fresh = buffer.clone();
            buffer.clear();
            fresh
        };
        if job.stage.experience == ExperienceOf::Round {
            return fresh;
        }
        let kept = self.kept.entry(job.stage.name.clone()).or_default();
        kept.extend(fresh.trees().cloned());
        ExperienceBuffer::of(kept.iter().cloned())
    }

    /// Keeps of a stage's trainer what its next round goes on with.
    fn put_away(&mut self, trainer: Option<Trainer>) {
        let Some(trainer) = trainer else { return };
        let stage = std::mem::take(&mut self.stage);
        let continues = trainer.training().optimizer == Some(AcrossRounds::Continue);
        let (objective, position) = trainer.into_parts();
        self.objectives.insert(stage.clone(), objective);
        if continues {
            self.positions.insert(stage, position);
        }
    }

    /// A trainer of a stage that begins, or comes back after others, with `steps` steps in this round.
    fn trainer(
        &mut self,
        job: &TrainingJob,
        objective: Box<dyn Objective>,
        steps: usize,
    ) -> Result<Trainer, ActorProcessingErr> {
        let (stage, training) = (&job.stage, &job.stage.training);
        let mut position = self.positions.remove(&stage.name);
        let steps = job.total_steps(position.as_ref().map_or(0, |position| position.steps), steps);
        let needs = objective.needs();
        let statistics = needs.statistics;
        let (compute, plan) = (self.compute, Arc::clone(&self.context.plan));
        let trainer = if statistics == Statistics::Scores {
            let (model, weights) = match &self.reward_model {
                Some((model, weights)) if stage.from == StartFrom::Previous => {
                    (model.clone(), handles(weights))
                }
                _ => {
                    let (tokenizer, weights) = (&self.context.tokenizer, self.masters.weights());
                    reward_model::initial(&self.context.model, &weights, tokenizer, plan.seed)
                }
            };
            Trainer::new(&model, &weights, compute, objective, training.clone(), steps)?
        } else {
            if stage.from == StartFrom::Initial {
                self.weights = self.masters.weights();
                self.adapting = None;
            }
            let before =
                self.adapting.take().filter(|before| Some(&before.adapter.config) == training.lora.as_ref());
            if before.is_none() && training.lora.is_some() {
                // Moments of another adapter say nothing of a fresh one.
                position = position.map(|position| Position { moments: None, ..position });
            }
            self.adapting = match (before, &training.lora) {
                (Some(before), _) => Some(before),
                (None, Some(lora)) => Some(self.fresh_adapter(lora, stage.from)?),
                (None, None) => None,
            };
            let model = &self.context.model;
            match &self.adapting {
                Some(Adapting { base, adapter, .. }) => {
                    Trainer::adapting(model, base, adapter, compute, objective, training.clone(), steps)?
                }
                None => Trainer::new(model, &self.weights, compute, objective, training.clone(), steps)?,
            }
        };
        let is_model = matches!(
            statistics,
            Statistics::ProbabilitiesAndValues(critic) if critic.kind == CriticKind::Model
        );
        let reward_model = self.reward_model.as_ref().filter(|_| is_model).map(|(_, weights)| weights);
        let mut trainer = match self.critics.get(&stage.name).or(reward_model) {
            Some(critic) => trainer.with_critic(critic)?,
            None => trainer,
        };
        if let Some(path) = stage.algorithm.teacher() {
            trainer = trainer.with_teacher(self.teacher(path)?)?;
        }
        if needs.keeps_reference() {
            // One that follows the policy goes on from round to round.
            let weights = match self.references.get(&stage.name) {
                Some(reference) => handles(reference),
                None if stage.reference == ReferenceWeights::Start => handles(&self.weights),
                None if needs.sync.is_some() => self.masters.weights(),
                None => self.context.initial.weights(),
            };
            trainer = trainer.with_reference(&weights)?;
        }
        Ok(match position {
            Some(position) => trainer.from_position(position)?,
            None => trainer,
        })
    }

    /// The model at `path`, which is read when a stage first names it.
    fn teacher(&mut self, path: &Path) -> Result<Rc<Model>, PolicyError> {
        if let Some((_, teacher)) = self.teacher.as_ref().filter(|(known, _)| known == path) {
            return Ok(Rc::clone(teacher));
        }
        self.teacher = None;
        let Context { model, tokenizer, .. } = &self.context;
        let teacher = Rc::new(teacher::open(path, model, tokenizer, self.compute)?);
        self.teacher = Some((path.to_path_buf(), Rc::clone(&teacher)));
        Ok(teacher)
    }

    /// A fresh adapter on the weights as they are.
    fn fresh_adapter(&self, lora: &LoraConfig, from: StartFrom) -> Result<Adapting, ActorProcessingErr> {
        let is_untrained = self.version == 0 || from == StartFrom::Initial;
        Ok(Adapting {
            base: handles(&self.weights),
            is_initial: is_untrained && self.context.plan.model.adapter.is_none(),
            adapter: Adapter::new(lora, &self.context.model, self.context.plan.seed)?,
        })
    }

    /// One optimiser step; false when there is no more to do.
    fn step(&mut self) -> Result<bool, ActorProcessingErr> {
        let (Some(work), Some(trainer)) = (&mut self.work, &mut self.trainer) else { return Ok(false) };
        let (data, address) = (work.job.stage.data.clone(), work.job.address.clone());
        let failed = |error: PolicyError| {
            let rows = match (&data, &error) {
                (Some(data), PolicyError::NotFinite { sequences, .. }) => {
                    let is_further = sequences.iter().any(|&(prompt, _)| prompt >= FILE_IDS);
                    let more = format!(", and {FILE_IDS} more for each file before its own");
                    let more = if is_further { more } else { String::new() };
                    format!("; a prompt's number is its row's in {}{more}", data.rows.path)
                }
                _ => String::new(),
            };
            let cause = format!("{error}{rows}");
            News::Failed { role: ActorRole::Learner, cause }
        };
        match work.score(trainer) {
            Ok(false) => {}
            Ok(true) => return Ok(true),
            Err(error) => {
                self.context.tell(&address, failed(error));
                return Ok(false);
            }
        }
        let is_reward_model = trainer.config().has_score();
        if let Some(batch) = work.next_batch(self.context.plan.seed) {
            let began = Instant::now();
            self.context.faults.begin(ActorRole::Learner);
            let mut report = match trainer.step(&batch.iter().collect::<Vec<_>>()) {
                Ok(report) => report,
                Err(error) => {
                    self.context.tell(&address, failed(error));
                    return Ok(false);
                }
            };
            report.metrics.extend(staleness(&batch, work.version));
            let counter = if is_reward_model { &mut self.reward_steps } else { &mut self.version };
            *counter += 1;
            let step = *counter;
            if self.context.plan.mode.overlaps() && !is_reward_model {
                // Before the conductor hears of the step: it lets a generator begin that takes these weights.
                self.context.weights.publish(trainer.snapshot(self.version));
            }
            let record = Record::Metrics {
                address: address.clone(),
                series: work.job.stage.name.clone(),
                step: step.into(),
                part: 0,
                metrics: report.metrics.clone(),
            };
            self.context.push(&self.context.records, record)?;
            let news = News::Stepped {
                version: self.version,
                metrics: report.metrics,
                tokens: report.tokens,
                seconds: began.elapsed().as_secs_f64() + std::mem::take(&mut work.scoring_seconds),
            };
            self.context.tell(&address, news);
        }
        if !work.is_done() {
            return Ok(true);
        }
        if is_reward_model {
            let weights = trainer.weights();
            self.results.keep(&self.context.plan.arms[self.arm], &work.job.stage.name, &weights);
            self.reward_model = Some((trainer.config().clone(), weights));
            self.context.reward_model.publish(Some(trainer.snapshot(self.reward_steps)));
        } else {
            self.weights = trainer.weights();
            if let (Some(adapting), Some(adapter)) = (&mut self.adapting, trainer.adapter()) {
                adapting.adapter = adapter;
            }
            if let Some(critic) = trainer.critic() {
                self.critics.insert(work.job.stage.name.clone(), critic);
            }
            if let Some(reference) = trainer.reference() {
                self.references.insert(work.job.stage.name.clone(), reference);
            }
            if !self.context.plan.mode.overlaps() {
                self.context.weights.publish(trainer.snapshot(self.version));
            }
            self.results.keep(&self.context.plan.arms[self.arm], &work.job.stage.name, &self.weights);
        }
        self.context.tell(&address, News::Trained { version: self.version });
        self.work = None;
        Ok(false)
    }

    /// Averages models.
    fn average(&mut self, stage: &AverageStage) -> Result<(), String> {
        let parts = self.results.parts(stage, &self.masters, &self.weights)?;
        let mean = average::average(&parts).map_err(|error| error.to_string())?;
        drop(parts);
        self.results.keep(&self.context.plan.arms[self.arm], &stage.name, &mean);
        // What the stage before trained is history: stages that follow begin with the mean.
        let trainer = self.trainer.take();
        self.put_away(trainer);
        if stage.of_reward_models {
            let (config, weights) =
                self.reward_model.as_mut().ok_or("there is no reward model to replace")?;
            *weights = mean;
            self.reward_steps += 1;
            let masters =
                Snapshot::new(self.reward_steps, config.clone(), Compute::CPU_F32, handles(weights));
            self.context.reward_model.publish(Some(masters.in_precision(self.compute)));
            return Ok(());
        }
        self.adapting = None;
        self.weights = mean;
        self.version += 1;
        let model = (*self.context.model).clone();
        let masters = Snapshot::new(self.version, model, Compute::CPU_F32, handles(&self.weights));
        self.context.weights.publish(masters.in_precision(self.compute));
        Ok(())
    }

    /// Writes everything beside the final place, then puts it there by one rename.
    fn checkpoint(&self, job: CheckpointJob) -> Result<News, String> {
        let directory = job.root.join(format!("step-{}", self.version));
        let mut state = job.state;
        state["step"] = self.version.into();
        state["steps_of_stage"] = self.trainer.as_ref().map_or(0, Trainer::steps).into();
        // Of a stage that is cut short, the weights as they are.
        let policy = self.trainer.as_ref().filter(|trainer| !trainer.config().has_score());
        let weights = policy.map_or_else(|| handles(&self.weights), Trainer::weights);
        let optimizer = policy.filter(|_| job.optimizer).map(Trainer::optimizer_state);
        let critic = policy.and_then(Trainer::critic);
        let reward_model = match &self.trainer {
            Some(trainer) if trainer.config().has_score() => {
                Some((trainer.config().clone(), trainer.weights()))
            }
            _ => self.reward_model.as_ref().map(|(config, weights)| (config.clone(), handles(weights))),
        };
        let adapter = policy.and_then(Trainer::adapter);
        let fits_initial = self.adapting.as_ref().is_some_and(|adapting| adapting.is_initial);
        if adapter.is_some() {
            state["adapter"] = match fits_initial {
                true => "adapter".into(),
                false => {
                    "not written: it fits the weights that training it began with, not the model's".into()
                }
            };
        }
        let base = self.context.plan.model.path.display().to_string();
        checkpoint::write_training(
            &directory,
            &self.context.model,
            &self.context.tokenizer,
            &weights,
            &Beside {
                optimizer: optimizer.as_ref(),
                adapter: adapter.as_ref().filter(|_| fits_initial).map(|adapter| (adapter, base.as_str())),
                critic: critic.as_ref(),
                reward_model: reward_model.as_ref().map(|(config, weights)| (config, weights)),
            },
            &state,
        )
        .map_err(|error| error.to_string())?;
        Ok(News::Checkpointed { directory, version: self.version, state })
    }
}

/// How old the samples of a batch are: versions from the oldest weights that drew a token of a tree to those that training
/// began with.
fn staleness(batch: &[Tree], version: u32) -> BTreeMap<String, f64> {
    let ages = batch.iter().filter_map(|tree| Some(f64::from(version.saturating_sub(tree.version?))));
    let ages: Vec<f64> = ages.collect();
    let Some(max) = ages.iter().copied().reduce(f64::max) else { return BTreeMap::new() };
    let mean = ages.iter().sum::<f64>() / ages.len() as f64;
    BTreeMap::from([("staleness/mean".to_string(), mean), ("staleness/max".to_string(), max)])
}

fn handles(weights: &Weights) -> Weights {
    weights.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}
