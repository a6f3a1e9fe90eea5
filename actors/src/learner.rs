//! The learner: trains on the buffer, one optimiser step a message, and publishes the weights.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;

use arriero_buffers::{ExperienceBuffer, Tree};
use arriero_policy::checkpoint::{self, Weights};
use arriero_policy::device::Compute;
use arriero_policy::lora::{Adapter, LoraConfig};
use arriero_policy::model::Model;
use arriero_policy::scoring::score_old;
use arriero_policy::snapshot::{Snapshot, WeightSource};
use arriero_policy::trainer::Trainer;
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef};
use std::sync::Arc;

use crate::conductor::ConductorMessage;
use crate::experiment::Stage;
use crate::faults::Role;
use crate::recorder::Record;
use crate::wiring::Wiring;

/// One stage's training.
#[derive(Debug, Clone)]
pub(crate) struct TrainingJob {
    pub arm: String,
    pub stage: Stage,
    pub round: u64,
    pub portion: PortionJob,
}

/// The part of a stage's experience that the buffer holds: all of it, but where a dataset comes in portions.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PortionJob {
    /// From 0. Those after the first go on with the optimiser of the one before.
    pub number: u64,
    /// Passes over it.
    pub epochs: usize,
    /// Optimiser steps of all portions together, where these are more than one.
    pub total_steps: Option<usize>,
    /// Whether each pass has an order of its own.
    pub shuffle: bool,
}

impl PortionJob {
    /// Everything that a stage learns from.
    pub fn whole(epochs: usize, shuffle: bool) -> Self {
        PortionJob { number: 0, epochs, total_steps: None, shuffle }
    }
}

/// What there is to save beside the model.
#[derive(Debug, Clone)]
pub(crate) struct CheckpointJob {
    /// Holds the arm's checkpoints; this one goes into `step-VERSION`.
    pub root: PathBuf,
    pub optimizer: bool,
    /// Written as `state.json`, with the learner's own position added: where every stream stands.
    pub state: serde_json::Value,
}

#[derive(Debug)]
pub(crate) enum LearnerMessage {
    /// Go back to the initial weights: an arm begins.
    Begin,
    /// Train on what the buffer holds.
    Train(Box<TrainingJob>),
    /// Take the next step.
    Step,
    /// Write the weights.
    Checkpoint(CheckpointJob),
}

/// The learner's own facts: weights never travel in messages.
#[derive(Clone)]
pub(crate) struct LearnerArguments {
    pub wiring: Wiring,
    pub compute: Compute,
    /// The weights that every arm starts from, in f32.
    pub masters: Arc<Snapshot>,
}

#[derive(Default)]
pub(crate) struct Learner;

pub(crate) struct LearnerState {
    wiring: Wiring,
    compute: Compute,
    masters: Arc<Snapshot>,
    /// Handles of the f32 weights as they are now.
    weights: Weights,
    trainer: Option<Trainer>,
    adapting: Option<Adapting>,
    work: Option<Work>,
    /// Optimiser steps since the arm began: the version of the weights.
    version: u32,
}

/// Adapters in training: as long as stages have the same options, they go on with the same ones.
struct Adapting {
    /// What the adapters are trained on.
    base: Weights,
    /// Whether these are the run's initial weights, so that the adapter fits the model it began with.
    is_initial: bool,
    adapter: Adapter,
}

struct Work {
    job: TrainingJob,
    experience: ExperienceBuffer,
    /// The policy that training began with, where its log-probabilities are needed.
    old: Option<Model>,
    /// Epochs begun.
    epoch: u64,
    /// What is left of the epoch.
    batches: VecDeque<Vec<Tree>>,
}

impl Work {
    fn next_batch(&mut self, seed: u64) -> Option<Vec<Tree>> {
        let PortionJob { number, epochs, shuffle, .. } = self.job.portion;
        let size = self.job.stage.training.batch_size;
        if self.batches.is_empty() && self.epoch < epochs as u64 {
            let batches = match shuffle {
                true => self.experience.minibatches(seed, self.job.round, number + self.epoch, size),
                false => self.experience.minibatches_in_order(size),
            };
            self.batches = batches.into_iter().map(|batch| batch.into_iter().cloned().collect()).collect();
            self.epoch += 1;
        }
        self.batches.pop_front()
    }

    /// Scores the trees of a batch that no epoch has met yet under the policy that training began with, and keeps
    /// the result for the epochs to come.
    fn score_old(&mut self, batch: &mut [Tree]) -> arriero_policy::Result<()> {
        let Some(old) = &self.old else { return Ok(()) };
        for tree in
            batch.iter_mut().filter(|tree| tree.branches.iter().any(|branch| branch.old_logps.is_empty()))
        {
            // Alone, as the reference scores, so that its scores do not depend on what else was there.
            score_old(old, std::slice::from_mut(tree), usize::MAX)?;
            self.experience.replace(tree.clone());
        }
        Ok(())
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
        let LearnerArguments { wiring, compute, masters } = arguments;
        let weights = masters.weights();
        Ok(LearnerState {
            wiring,
            compute,
            masters,
            weights,
            trainer: None,
            adapting: None,
            work: None,
            version: 0,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            LearnerMessage::Begin => state.begin(),
            LearnerMessage::Train(job) => {
                state.train(*job)?;
                myself.cast(LearnerMessage::Step)?;
            }
            LearnerMessage::Step if state.wiring.shutdown.has_begun() => {}
            LearnerMessage::Step => {
                if state.step()? {
                    myself.cast(LearnerMessage::Step)?;
                }
            }
            LearnerMessage::Checkpoint(job) => {
                let reply = match state.checkpoint(job) {
                    Ok(written) => written,
                    Err(cause) => ConductorMessage::Failed { role: Role::Learner, cause },
                };
                state.wiring.tell(reply);
            }
        }
        Ok(())
    }
}

impl LearnerState {
    fn begin(&mut self) {
        self.trainer = None;
        self.adapting = None;
        self.work = None;
        self.version = 0;
        self.weights = self.masters.weights();
        self.wiring.weights.publish(Arc::clone(&self.wiring.initial));
        self.wiring.tell(ConductorMessage::Begun);
    }

    fn train(&mut self, job: TrainingJob) -> Result<(), ActorProcessingErr> {
        let training = &job.stage.training;
        let experience = {
            let mut buffer = self.wiring.buffer();
            let experience = buffer.clone();
            buffer.clear();
            experience
        };
        if job.portion.number > 0 && self.trainer.is_some() {
            self.work = Some(Work { job, experience, old: None, epoch: 0, batches: VecDeque::new() });
            return Ok(());
        }
        let objective = job.stage.algorithm.objective();
        if let Err(cause) = objective.check(&experience.trees().collect::<Vec<_>>()) {
            let cause = format!("{}: {cause}", job.stage.algorithm.kind());
            self.wiring.tell(ConductorMessage::Failed { role: Role::Learner, cause });
            return Ok(());
        }
        let own_steps = job.portion.epochs.saturating_mul(experience.len().div_ceil(training.batch_size));
        let steps = job.portion.total_steps.unwrap_or(own_steps);
        let old = match objective.needs().old {
            true => Some(self.wiring.weights.pull(self.version)?.model()?),
            false => None,
        };
        // The old optimiser goes before the new one comes: both at once would set the peak memory.
        self.trainer = None;
        self.adapting = match &training.lora {
            Some(lora) => Some(self.adapting(lora)?),
            None => None,
        };
        let model = &self.wiring.model;
        self.trainer = Some(match &self.adapting {
            Some(Adapting { base, adapter, .. }) => {
                Trainer::adapting(model, base, adapter, self.compute, objective, training.clone(), steps)?
            }
            None => Trainer::new(model, &self.weights, self.compute, objective, training.clone(), steps)?,
        });
        self.work = Some(Work { job, experience, old, epoch: 0, batches: VecDeque::new() });
        Ok(())
    }

    /// The adapter of the stage before under the same options, or a fresh one on the weights as they are.
    fn adapting(&mut self, lora: &LoraConfig) -> Result<Adapting, ActorProcessingErr> {
        if let Some(adapting) = self.adapting.take().filter(|before| before.adapter.config == *lora) {
            return Ok(adapting);
        }
        Ok(Adapting {
            base: handles(&self.weights),
            is_initial: self.version == 0,
            adapter: Adapter::new(lora, &self.wiring.model, self.wiring.plan.seed)?,
        })
    }

    /// One optimiser step; false when there is no more to do.
    fn step(&mut self) -> Result<bool, ActorProcessingErr> {
        let (Some(work), Some(trainer)) = (&mut self.work, &mut self.trainer) else { return Ok(false) };
        if let Some(mut batch) = work.next_batch(self.wiring.plan.seed) {
            let began = Instant::now();
            self.wiring.faults.begin(Role::Learner);
            let scored = work.score_old(&mut batch);
            let report = match scored.and_then(|()| trainer.step(&batch.iter().collect::<Vec<_>>())) {
                Ok(report) => report,
                Err(error) => {
                    self.wiring
                        .tell(ConductorMessage::Failed { role: Role::Learner, cause: error.to_string() });
                    return Ok(false);
                }
            };
            self.version += 1;
            let record = Record::Metrics {
                arm: work.job.arm.clone(),
                stage: work.job.stage.name.clone(),
                step: self.version.into(),
                metrics: report.metrics.clone(),
            };
            self.wiring.push(&self.wiring.records, record)?;
            self.wiring.tell(ConductorMessage::Stepped {
                metrics: report.metrics,
                tokens: report.tokens,
                seconds: began.elapsed().as_secs_f64(),
            });
        }
        if !work.is_done() {
            return Ok(true);
        }
        self.weights = trainer.weights();
        if let (Some(adapting), Some(adapter)) = (&mut self.adapting, trainer.adapter()) {
            adapting.adapter = adapter;
        }
        self.wiring.weights.publish(trainer.snapshot(self.version));
        self.wiring.tell(ConductorMessage::Trained { version: self.version });
        self.work = None;
        Ok(false)
    }

    /// Writes everything beside the final place, then puts it there by one rename.
    fn checkpoint(&self, job: CheckpointJob) -> Result<ConductorMessage, String> {
        let directory = job.root.join(format!("step-{}", self.version));
        let mut state = job.state;
        state["step"] = self.version.into();
        state["steps_of_stage"] = self.trainer.as_ref().map_or(0, Trainer::steps).into();
        let weights = match &self.trainer {
            Some(trainer) => trainer.weights(),
            None => handles(&self.weights),
        };
        let optimizer = match (&self.trainer, job.optimizer) {
            (Some(trainer), true) => Some(trainer.optimizer_state()),
            _ => None,
        };
        let adapter = self.trainer.as_ref().and_then(Trainer::adapter);
        let fits_initial = self.adapting.as_ref().is_some_and(|adapting| adapting.is_initial);
        if adapter.is_some() {
            state["adapter"] = match fits_initial {
                true => "adapter".into(),
                false => {
                    "not written: it fits the weights that the stages before it left, not the model".into()
                }
            };
        }
        let base = self.wiring.plan.model.path.display().to_string();
        checkpoint::write_training(
            &directory,
            &self.wiring.model,
            &self.wiring.tokenizer,
            &weights,
            optimizer.as_ref(),
            adapter.as_ref().filter(|_| fits_initial).map(|adapter| (adapter, base.as_str())),
            &state,
        )
        .map_err(|error| error.to_string())?;
        Ok(ConductorMessage::Checkpointed { directory, version: self.version, state })
    }
}

fn handles(weights: &Weights) -> Weights {
    weights.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}
