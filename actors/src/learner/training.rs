//! The learner trains: a stage's trainer, and one optimiser step after the other.

use std::collections::BTreeMap;
use std::time::Instant;

use arriero_buffers::Tree;
use arriero_experiment::{ReferenceWeights, StartFrom};
use arriero_policy::PolicyError;
use arriero_policy::checkpoint::handles;
use arriero_policy::lora::{Adapter, LoraConfig};
use arriero_policy::objective::{CriticKind, Objective, Statistics};
use arriero_policy::optim::AcrossRounds;
use arriero_policy::reward_model;
use arriero_policy::trainer::Position;
use ractor::ActorProcessingErr;

use super::Learning;
use super::state::{Adapting, Origin, RewardModel, Running, Work};
use super::trainers::Start;
use crate::data_reader::FILE_IDS;
use crate::job::TrainingJob;
use crate::record::Record;
use crate::report::News;
use crate::role::ActorRole;

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

impl Learning {
    /// Begins to train a stage on what the buffer holds, which is empty then.
    ///
    /// # Errors
    /// If something does not fit.
    pub fn train(&mut self, job: TrainingJob) -> Result<(), PolicyError> {
        let fresh = {
            let mut buffer = self.context.buffer();
            let fresh = buffer.clone();
            buffer.clear();
            fresh
        };
        let experience = self.state.experience(&job, fresh);
        self.context.tell(&job.address, News::Taken);
        let version = self.state.version;
        if let Some(running) = self.state.running.as_mut().filter(|_| job.portion.number > 0) {
            self.state.work = Some(Work::new(job, version, experience, &mut running.trainer));
            return Ok(());
        }
        let own_steps =
            job.portion.epochs.saturating_mul(experience.len().div_ceil(job.stage.training.batch_size));
        let steps = job.portion.total_steps.unwrap_or(own_steps);
        // The old optimiser goes before the new one comes: both at once would set the peak memory.
        let mut running = match self.state.running.take() {
            Some(mut running) if job.continues() && running.stage == job.stage.name => {
                running.trainer.reach(job.total_steps(running.trainer.steps(), steps));
                running
            }
            other => {
                self.state.put_away(other);
                let objective = self.state.objectives.remove(&job.stage.name);
                self.run_stage(&job, objective.unwrap_or_else(|| job.stage.algorithm.objective()), steps)?
            }
        };
        if let Err(cause) = running.trainer.check(&experience.trees().collect::<Vec<_>>()) {
            let cause = format!("{}: {cause}", job.stage.algorithm.kind());
            self.context.tell_failure(&job.address, ActorRole::Learner, cause);
        } else {
            self.state.work = Some(Work::new(job, version, experience, &mut running.trainer));
        }
        self.state.running = Some(running);
        Ok(())
    }

    /// A stage that begins, or comes back after others, with a trainer of `steps` steps in this round.
    fn run_stage(
        &mut self,
        job: &TrainingJob,
        objective: Box<dyn Objective>,
        steps: usize,
    ) -> Result<Running, PolicyError> {
        let (stage, training) = (&job.stage, &job.stage.training);
        let state = &mut self.state;
        let mut position = state.positions.remove(&stage.name);
        let steps = job.total_steps(position.as_ref().map_or(0, |position| position.steps), steps);
        let needs = objective.needs();
        let mut origin = Origin::default();
        let (config, weights, adapter) = if needs.statistics == Statistics::Scores {
            let (config, weights) = match &state.reward_model {
                Some(model) if stage.from == StartFrom::Previous => {
                    (model.config.clone(), handles(&model.weights))
                }
                _ => {
                    let masters = self.trainers.masters.weights();
                    let (tokenizer, seed) = (&self.trainers.tokenizer, self.trainers.plan.seed);
                    reward_model::initial(&self.trainers.model, &masters, tokenizer, seed)
                }
            };
            origin.base = training.lora.is_some().then(|| handles(&weights));
            (config, weights, None)
        } else {
            if stage.from == StartFrom::Initial {
                state.weights = self.trainers.masters.weights();
                state.adapting = None;
            }
            let before =
                state.adapting.take().filter(|before| Some(&before.adapter.config) == training.lora.as_ref());
            if before.is_none() && training.lora.is_some() {
                // Moments of another adapter say nothing of a fresh one.
                position = position.map(|position| Position { moments: None, ..position });
            }
            self.state.adapting = match (before, &training.lora) {
                (Some(before), _) => Some(before),
                (None, Some(lora)) => Some(self.fresh_adapter(lora, stage.from)?),
                (None, None) => None,
            };
            let model = (*self.trainers.model).clone();
            match &self.state.adapting {
                Some(Adapting { base, adapter, .. }) => {
                    let tensors = handles(&adapter.tensors);
                    let adapter = Adapter { config: adapter.config.clone(), tensors };
                    (model, handles(base), Some(adapter))
                }
                None => (model, handles(&self.state.weights), None),
            }
        };
        let state = &self.state;
        let is_model = matches!(
            needs.statistics,
            Statistics::ProbabilitiesAndValues(critic) if critic.kind == CriticKind::Model
        );
        let reward_model = state.reward_model.as_ref().filter(|_| is_model).map(|model| &model.weights);
        let critic = state.critics.get(&stage.name).or(reward_model);
        // One that follows the policy goes on from round to round.
        let reference = needs.keeps_reference().then(|| match state.references.get(&stage.name) {
            Some(reference) => handles(reference),
            None if stage.reference == ReferenceWeights::Start => handles(&state.weights),
            None if needs.sync.is_some() => self.trainers.masters.weights(),
            None => self.trainers.initial.weights(),
        });
        let is_kept = needs.sync.is_none() && stage.reference == ReferenceWeights::Start;
        origin.reference = reference.as_ref().filter(|_| is_kept).map(handles);
        let start = Start {
            config: &config,
            weights: &weights,
            adapter: adapter.as_ref(),
            critic,
            reference: reference.as_ref(),
        };
        let trainer = self.trainers.make(stage, objective, &start, steps)?;
        let trainer = match position {
            Some(position) => trainer.from_position(position)?,
            None => trainer,
        };
        Ok(Running { stage: stage.name.clone(), trainer, origin })
    }

    /// A fresh adapter on the weights as they are.
    fn fresh_adapter(&self, lora: &LoraConfig, from: StartFrom) -> Result<Adapting, PolicyError> {
        let is_untrained = self.state.version == 0 || from == StartFrom::Initial;
        let plan = &self.trainers.plan;
        Ok(Adapting {
            base: handles(&self.state.weights),
            is_initial: is_untrained && plan.model.adapter.is_none(),
            adapter: Adapter::new(lora, &self.trainers.model, plan.seed)?,
        })
    }

    /// One optimiser step, or the scores of a tree; false when there is no more to do.
    ///
    /// # Errors
    /// If nobody takes the records.
    pub fn step(&mut self) -> Result<bool, ActorProcessingErr> {
        let (Some(work), Some(running)) = (&mut self.state.work, &mut self.state.running) else {
            return Ok(false);
        };
        let trainer = &mut running.trainer;
        let address = work.job.address.clone();
        match work.score(trainer) {
            Ok(false) => {}
            Ok(true) => return Ok(true),
            Err(error) => {
                self.context.tell(&address, failure(&work.job, &error));
                return Ok(false);
            }
        }
        let is_reward_model = trainer.config().has_score();
        if let Some(batch) = work.next_batch(self.trainers.plan.seed) {
            let began = Instant::now();
            self.context.faults.begin(ActorRole::Learner);
            let mut report = match trainer.step(&batch.iter().collect::<Vec<_>>()) {
                Ok(report) => report,
                Err(error) => {
                    self.context.tell(&address, failure(&work.job, &error));
                    return Ok(false);
                }
            };
            report.metrics.extend(staleness(&batch, work.version));
            let counter =
                if is_reward_model { &mut self.state.reward_steps } else { &mut self.state.version };
            *counter += 1;
            let step = *counter;
            if self.trainers.plan.mode.overlaps() && !is_reward_model {
                // Before the conductor hears of the step: it lets a generator begin that takes these weights.
                self.context.weights.publish(trainer.snapshot(self.state.version));
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
                version: self.state.version,
                metrics: report.metrics,
                tokens: report.tokens,
                seconds: began.elapsed().as_secs_f64() + std::mem::take(&mut work.scoring_seconds),
            };
            self.context.tell(&address, news);
        }
        if !work.is_done() {
            return Ok(true);
        }
        self.finish();
        Ok(false)
    }

    /// Keeps what the work has come to, and publishes it.
    fn finish(&mut self) {
        let state = &mut self.state;
        let (Some(work), Some(running)) = (state.work.take(), &state.running) else { return };
        let (trainer, stage) = (&running.trainer, &work.job.stage.name);
        let arm = &self.trainers.plan.arms[state.arm];
        if trainer.config().has_score() {
            let (config, weights) = (trainer.config().clone(), trainer.weights());
            state.results.keep(arm, stage, &weights);
            state.reward_model = Some(RewardModel { config, weights, steps: state.reward_steps });
            self.context.reward_model.publish(Some(trainer.snapshot(state.reward_steps)));
        } else {
            state.weights = trainer.weights();
            if let (Some(adapting), Some(adapter)) = (&mut state.adapting, trainer.adapter()) {
                adapting.adapter = adapter;
            }
            if let Some(critic) = trainer.critic() {
                state.critics.insert(stage.clone(), critic);
            }
            if let Some(reference) = trainer.reference() {
                state.references.insert(stage.clone(), reference);
            }
            if !self.trainers.plan.mode.overlaps() {
                self.context.weights.publish(trainer.snapshot(state.version));
            }
            state.results.keep(arm, stage, &state.weights);
        }
        self.context.tell(&work.job.address, News::Trained { version: state.version });
    }
}

/// A step that failed, with the way from prompts' numbers to the rows of a dataset.
fn failure(job: &TrainingJob, error: &PolicyError) -> News {
    let rows = match (&job.stage.data, error) {
        (Some(data), PolicyError::NotFinite { sequences, .. }) => {
            let is_further = sequences.iter().any(|&(prompt, _)| prompt >= FILE_IDS);
            let more = format!(", and {FILE_IDS} more for each file before its own");
            let more = if is_further { more } else { String::new() };
            format!("; a prompt's number is its row's in {}{more}", data.rows.path)
        }
        _ => String::new(),
    };
    News::Failed { role: ActorRole::Learner, cause: format!("{error}{rows}") }
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
