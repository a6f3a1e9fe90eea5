//! The learner averages models.

use arriero_experiment::AverageStage;
use arriero_policy::average;
use arriero_policy::checkpoint::handles;
use arriero_policy::device::Compute;
use arriero_policy::snapshot::Snapshot;

use super::Learning;

impl Learning {
    /// Puts an average of models in the place of the policy, or of the reward model.
    ///
    /// # Errors
    /// If there is nothing to average, or a model cannot be read.
    pub fn average(&mut self, stage: &AverageStage) -> Result<(), String> {
        let state = &mut self.state;
        let parts = state.results.parts(stage, &self.trainers.masters, &state.weights)?;
        let mean = average::average(&parts).map_err(|error| error.to_string())?;
        drop(parts);
        state.results.keep(&self.trainers.plan.arms[state.arm], &stage.name, &mean);
        // What the stage before trained is history: stages that follow begin with the mean.
        let running = state.running.take();
        state.put_away(running);
        let compute = self.trainers.compute;
        if stage.of_reward_models {
            let model = state.reward_model.as_mut().ok_or("there is no reward model to replace")?;
            model.weights = mean;
            state.reward_steps += 1;
            model.steps = state.reward_steps;
            let (config, weights) = (model.config.clone(), handles(&model.weights));
            let masters = Snapshot::new(model.steps, config, Compute::CPU_F32, weights);
            self.context.reward_model.publish(Some(masters.in_precision(compute)));
            return Ok(());
        }
        state.adapting = None;
        state.weights = mean;
        state.version += 1;
        let model = (*self.trainers.model).clone();
        let masters = Snapshot::new(state.version, model, Compute::CPU_F32, handles(&state.weights));
        self.context.weights.publish(masters.in_precision(compute));
        Ok(())
    }
}
