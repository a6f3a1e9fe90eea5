//! Trainers as stages ask for them, and everything about these that does not change in a run.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use arriero_experiment::{Plan, Stage};
use arriero_policy::checkpoint::Weights;
use arriero_policy::config::ModelConfig;
use arriero_policy::device::Compute;
use arriero_policy::lora::Adapter;
use arriero_policy::model::Model;
use arriero_policy::objective::Objective;
use arriero_policy::snapshot::Snapshot;
use arriero_policy::tokenizer::Tokenizer;
use arriero_policy::trainer::Trainer;
use arriero_policy::{Result, teacher};

/// See the module.
pub(crate) struct Trainers {
    pub plan: Arc<Plan>,
    pub model: Arc<ModelConfig>,
    pub tokenizer: Tokenizer,
    pub compute: Compute,
    /// The weights that every arm starts from: in f32, and as the learner computes with them.
    pub masters: Arc<Snapshot>,
    pub initial: Arc<Snapshot>,
    /// The teacher that a stage named last, where it lies and in the learner's precision.
    pub teacher: Option<(PathBuf, Rc<Model>)>,
}

/// What a stage's trainer starts from, f32.
pub(super) struct Start<'a> {
    pub config: &'a ModelConfig,
    /// What is trained, or what an adapter is trained on.
    pub weights: &'a Weights,
    /// `None` for a fresh one, where the stage trains one.
    pub adapter: Option<&'a Adapter>,
    /// `None` for a fresh one, where the objective has one.
    pub critic: Option<&'a Weights>,
    /// Where the trainer keeps one itself.
    pub reference: Option<&'a Weights>,
}

impl Trainers {
    /// A trainer that will take `steps` steps in all.
    ///
    /// # Errors
    /// If something does not fit, or a teacher cannot be read.
    pub fn make(
        &mut self,
        stage: &Stage,
        objective: Box<dyn Objective>,
        start: &Start<'_>,
        steps: usize,
    ) -> Result<Trainer> {
        let Start { config, weights, adapter, critic, reference } = *start;
        let (compute, training) = (self.compute, stage.training.clone());
        let mut trainer = match adapter {
            Some(adapter) => {
                Trainer::adapting(config, weights, adapter, compute, objective, training, steps)?
            }
            None => Trainer::new(config, weights, compute, objective, training, steps)?,
        };
        if let Some(critic) = critic {
            trainer = trainer.with_critic(critic)?;
        }
        if let Some(path) = stage.algorithm.teacher() {
            trainer = trainer.with_teacher(self.teacher(path)?)?;
        }
        match reference {
            Some(reference) => trainer.with_reference(reference),
            None => Ok(trainer),
        }
    }

    /// The model at `path`, which is read when a stage first names it.
    fn teacher(&mut self, path: &Path) -> Result<Rc<Model>> {
        if let Some((_, teacher)) = self.teacher.as_ref().filter(|(known, _)| known == path) {
            return Ok(Rc::clone(teacher));
        }
        self.teacher = None;
        let teacher = Rc::new(teacher::open(path, &self.model, &self.tokenizer, self.compute)?);
        self.teacher = Some((path.to_path_buf(), Rc::clone(&teacher)));
        Ok(teacher)
    }
}
