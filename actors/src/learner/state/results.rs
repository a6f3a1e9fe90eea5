//! What stages and arms came to, where averages are made of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arriero_policy::average::Part;
use arriero_policy::checkpoint::{Checkpoint, Weights, handles};
use arriero_policy::snapshot::Snapshot;

use arriero_experiment::{Arm, AverageSource, AverageStage, Plan};

/// Copies in f32: what they were made of goes on learning.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// Of the running arm's stages, the newest last.
    pub stages: BTreeMap<String, VecDeque<Weights>>,
    /// Of arms that are through.
    pub arms: BTreeMap<String, Weights>,
}

impl Results {
    /// An arm is through, and the next one begins.
    pub fn arm_ends(&mut self, plan: &Plan, number: usize, weights: &Weights) {
        self.stages.clear();
        let name = &plan.arms[number].name;
        if plan.arms.iter().any(|arm| arm.averages_arm(name)) {
            self.arms.insert(name.clone(), copies(weights));
        }
    }

    /// Keeps what a stage came to, as long as an average of the arm can ask for it.
    pub fn keep(&mut self, arm: &Arm, stage: &str, weights: &Weights) {
        let wanted = arm.results_of(stage);
        if wanted == 0 {
            return;
        }
        let results = self.stages.entry(stage.to_string()).or_default();
        results.push_back(copies(weights));
        while results.len() > wanted {
            results.pop_front();
        }
    }

    /// What a stage averages, where these are the initial weights and those that the stage before left.
    ///
    /// # Errors
    /// If a stage has come to nothing yet, or a model cannot be read.
    pub fn parts(
        &self,
        stage: &AverageStage,
        initial: &Arc<Snapshot>,
        previous: &Weights,
    ) -> Result<Vec<Part>, String> {
        let mut parts = Vec::new();
        for (source, &share) in stage.of.iter().zip(&stage.weights) {
            let mut add =
                |name: String, share: f64, weights: Weights| parts.push(Part { name, share, weights });
            match source {
                AverageSource::Initial => add("initial".to_string(), share, initial.weights()),
                AverageSource::Previous => add("previous".to_string(), share, handles(previous)),
                AverageSource::Arm(arm) => {
                    let weights = self.arms.get(arm).ok_or_else(|| format!("arm {arm} came to nothing"))?;
                    add(format!("arm {arm}"), share, handles(weights));
                }
                AverageSource::Path(path) => {
                    let model = Checkpoint::open(path).map_err(|error| error.to_string())?;
                    add(path.display().to_string(), share, model.weights);
                }
                AverageSource::Stage { stage: of, rounds } => {
                    let results = self.stages.get(of).ok_or_else(|| {
                        format!(
                            "{} averages what the stage {of} came to, but that has had nothing to train on",
                            stage.name
                        )
                    })?;
                    let newest = results.iter().rev().take(*rounds);
                    let share = share / newest.len() as f64;
                    newest.for_each(|weights| add(format!("stage {of}"), share, handles(weights)));
                }
            }
        }
        Ok(parts)
    }
}

fn copies(weights: &Weights) -> Weights {
    weights.iter().map(|(name, tensor)| (name.clone(), tensor.detach().copy())).collect()
}
