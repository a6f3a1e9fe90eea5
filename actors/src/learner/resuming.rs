//! A learner whose state is written, and one that goes on from there.

use std::path::Path;

use arriero_policy::Result;
use arriero_policy::checkpoint::handles;
use arriero_policy::device::Compute;
use arriero_policy::snapshot::Snapshot;

use super::state::LearnerState;
use super::{LearnerArguments, Learning};

impl Learning {
    /// Writes its state, as [`LearnerState::save`].
    ///
    /// # Errors
    /// As it.
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.state.save(folder)
    }

    /// A learner that goes on from what [`Learning::save`] wrote, with the policy and the reward model published as they
    /// are. The run is the same one: the same plan and initial weights.
    ///
    /// # Errors
    /// As [`LearnerState::load`].
    pub fn load(arguments: LearnerArguments, folder: &Path) -> Result<Self> {
        let mut learning = Learning::new(arguments);
        learning.state = LearnerState::load(folder, &mut learning.trainers)?;
        let Learning { context, trainers, state } = &learning;
        let policy = match state.trainer().filter(|trainer| !trainer.config().has_score()) {
            Some(trainer) => trainer.snapshot(state.version),
            None => {
                let (model, weights) = ((*trainers.model).clone(), handles(&state.weights));
                Snapshot::new(state.version, model, Compute::CPU_F32, weights).in_precision(trainers.compute)
            }
        };
        context.weights.publish(policy);
        context.reward_model.publish(state.reward_model.as_ref().map(|model| {
            let (config, weights) = (model.config.clone(), handles(&model.weights));
            Snapshot::new(model.steps, config, Compute::CPU_F32, weights).in_precision(trainers.compute)
        }));
        Ok(learning)
    }
}
