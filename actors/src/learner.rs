//! The learner: trains on the buffer, one optimiser step a message, and publishes the weights.
//!
//! A stage that trains a reward model starts from the run's initial weights under a fresh head; the policy stays as it is.
//!
//! - `state`: everything that changes while it works, as one value that is written and read;
//! - `training`, `averaging`, `checkpoint`: its work;
//! - `resuming`: a learner that goes on from a state that was written;
//! - `trainers`: what does not change, and the trainers that are made of it.

mod averaging;
mod checkpoint;
#[cfg_attr(not(test), expect(dead_code, reason = "a run that goes on after its end will use it"))]
mod resuming;
mod state;
#[cfg(test)]
mod tests;
mod trainers;
mod training;

use std::sync::Arc;
use std::time::Instant;

use arriero_buffers::Address;
use arriero_policy::device::Compute;
use arriero_policy::snapshot::Snapshot;
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef};

use crate::context::Context;
use crate::job::{AverageJob, CheckpointJob, TrainingJob};
use crate::report::News;
use crate::role::ActorRole;
use state::LearnerState;
use trainers::Trainers;

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

/// The learner at work.
pub(crate) struct Learning {
    context: Context,
    trainers: Trainers,
    state: LearnerState,
}

impl ThreadLocalActor for Learner {
    type Msg = LearnerMessage;
    type State = Learning;
    type Arguments = LearnerArguments;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        arguments: LearnerArguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(Learning::new(arguments))
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        learning: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            LearnerMessage::Begin { address, arm } => learning.begin(&address, arm),
            LearnerMessage::Train(job) => {
                learning.train(*job)?;
                myself.cast(LearnerMessage::Step)?;
            }
            LearnerMessage::Step if learning.context.shutdown.has_begun() => {}
            LearnerMessage::Step => {
                if learning.step()? {
                    myself.cast(LearnerMessage::Step)?;
                }
            }
            LearnerMessage::Average(_) if learning.context.shutdown.has_begun() => {}
            LearnerMessage::Average(job) => {
                let began = Instant::now();
                let news = match learning.average(&job.stage) {
                    Ok(()) => {
                        let version = learning.state.version;
                        News::Averaged { version, seconds: began.elapsed().as_secs_f64() }
                    }
                    Err(cause) => News::Failed { role: ActorRole::Learner, cause },
                };
                learning.context.tell(&job.address, news);
            }
            LearnerMessage::Checkpoint(job) => {
                let address = job.address.clone();
                let news = match learning.checkpoint(job) {
                    Ok(written) => written,
                    Err(cause) => News::Failed { role: ActorRole::Learner, cause },
                };
                learning.context.tell(&address, news);
            }
        }
        Ok(())
    }
}

impl Learning {
    fn new(arguments: LearnerArguments) -> Self {
        let LearnerArguments { context, compute, masters } = arguments;
        let state = LearnerState::new(masters.weights());
        let trainers = Trainers {
            plan: Arc::clone(&context.plan),
            model: Arc::clone(&context.model),
            tokenizer: context.tokenizer.clone(),
            compute,
            masters,
            initial: Arc::clone(&context.initial),
            teacher: None,
        };
        Learning { context, trainers, state }
    }

    fn begin(&mut self, address: &Address, arm: usize) {
        if arm > 0 {
            self.state.results.arm_ends(&self.context.plan, self.state.arm, &self.state.weights);
        }
        let results = std::mem::take(&mut self.state.results);
        self.state = LearnerState { arm, results, ..LearnerState::new(self.trainers.masters.weights()) };
        self.context.reward_model.publish(None);
        self.context.weights.publish(Arc::clone(&self.context.initial));
        self.context.tell(address, News::Begun);
    }
}
