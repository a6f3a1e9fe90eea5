//! A stage's training that is under way: scores first where the objective wants them, then minibatches.

use std::collections::VecDeque;
use std::time::Instant;

use arriero_buffers::{ExperienceBuffer, Tree};
use arriero_policy::trainer::Trainer;

use crate::job::{PortionJob, TrainingJob};

/// See the module.
pub(crate) struct Work {
    pub job: TrainingJob,
    /// Of the weights that training began with.
    pub version: u32,
    pub experience: ExperienceBuffer,
    /// Trees that the policy and the critic have not scored yet as they were when training began.
    pub unscored: VecDeque<Tree>,
    /// What scoring took since the last step.
    pub scoring_seconds: f64,
    /// Epochs begun.
    pub epoch: u64,
    /// What is left of the epoch.
    pub batches: VecDeque<Vec<Tree>>,
}

impl Work {
    /// Of an experience that the trainer scores first where its objective wants that.
    pub fn new(job: TrainingJob, version: u32, experience: ExperienceBuffer, trainer: &mut Trainer) -> Self {
        let mut unscored = VecDeque::new();
        if trainer.scores_old() {
            unscored.extend(experience.trees().cloned());
        } else {
            trainer.begin(&experience.trees().collect::<Vec<_>>());
        }
        Work { job, version, experience, unscored, scoring_seconds: 0.0, epoch: 0, batches: VecDeque::new() }
    }

    pub fn next_batch(&mut self, seed: u64) -> Option<Vec<Tree>> {
        if self.batches.is_empty() && self.epoch < self.job.portion.epochs as u64 {
            self.batches = self.minibatches(seed, self.epoch);
            self.epoch += 1;
        }
        self.batches.pop_front()
    }

    /// All minibatches of an epoch of this number, from 0.
    pub fn minibatches(&self, seed: u64, epoch: u64) -> VecDeque<Vec<Tree>> {
        let PortionJob { number, shuffle, .. } = self.job.portion;
        let size = self.job.stage.training.batch_size;
        let batches = match shuffle {
            true => self.experience.minibatches(seed, self.job.address.round, number + epoch, size),
            false => self.experience.minibatches_in_order(size),
        };
        batches.into_iter().map(|batch| batch.into_iter().cloned().collect()).collect()
    }

    /// Scores the next tree as training began with; false when there is none left.
    pub fn score(&mut self, trainer: &mut Trainer) -> arriero_policy::Result<bool> {
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

    pub fn is_done(&self) -> bool {
        self.batches.is_empty() && self.epoch >= self.job.portion.epochs as u64
    }
}
