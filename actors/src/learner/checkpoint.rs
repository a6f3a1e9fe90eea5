//! The learner writes the weights, and what stands beside them.

use arriero_policy::checkpoint::{self, Beside, handles};
use arriero_policy::trainer::Trainer;

use super::Learning;
use crate::job::CheckpointJob;
use crate::report::News;

impl Learning {
    /// Writes everything beside the final place, then puts it there by one rename.
    ///
    /// # Errors
    /// If the disk is full or the place is not writable.
    pub fn checkpoint(&self, job: CheckpointJob) -> Result<News, String> {
        let learned = &self.state;
        let version = learned.version;
        let directory = job.root.join(format!("step-{version}"));
        let mut state = job.state;
        state["step"] = version.into();
        state["steps_of_stage"] = learned.trainer().map_or(0, Trainer::steps).into();
        // Of a stage that is cut short, the weights as they are.
        let policy = learned.trainer().filter(|trainer| !trainer.config().has_score());
        let weights = policy.map_or_else(|| handles(&learned.weights), Trainer::weights);
        let optimizer = policy.filter(|_| job.optimizer).map(Trainer::optimizer_state);
        let critic = policy.and_then(Trainer::critic);
        let reward_model = match learned.trainer() {
            Some(trainer) if trainer.config().has_score() => {
                Some((trainer.config().clone(), trainer.weights()))
            }
            _ => learned.reward_model.as_ref().map(|model| (model.config.clone(), handles(&model.weights))),
        };
        let adapter = policy.and_then(Trainer::adapter);
        let fits_initial = learned.adapting.as_ref().is_some_and(|adapting| adapting.is_initial);
        if adapter.is_some() {
            state["adapter"] = match fits_initial {
                true => "adapter".into(),
                false => {
                    "not written: it fits the weights that training it began with, not the model's".into()
                }
            };
        }
        let base = self.trainers.plan.model.path.display().to_string();
        checkpoint::write_training(
            &directory,
            &self.trainers.model,
            &self.trainers.tokenizer,
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
        Ok(News::Checkpointed { directory, version, state })
    }
}
