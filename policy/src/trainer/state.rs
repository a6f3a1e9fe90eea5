//! What a trainer's later steps depend on, as one value that is written and read, and how another trainer goes on from it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::Tensor;

use super::Trainer;
use crate::checkpoint::{Weights, load_weights, read_json, save_weights, write_folder, write_json};
use crate::error::{PolicyError, Result};
use crate::objective::Objective;

/// How far a trainer has come beside its weights: for another one of the same tensors to go on with.
#[derive(Debug)]
pub struct Position {
    /// Steps taken.
    pub steps: usize,
    /// The optimiser's moments ([`Trainer::optimizer_state`]), and the updates behind them; `None` where the tensors are
    /// others now.
    pub moments: Option<(Weights, i32)>,
}

/// Everything that changes in a trainer from step to step. What does not (the options, an adapter's base, a teacher, a
/// reference that stays as it is) is given anew to the trainer that goes on: see [`Trainer::resume`].
#[derive(Debug)]
pub struct TrainerState {
    /// What is trained, f32: all weights, or the tensors of an adapter (and a reward model's head).
    pub trained: Weights,
    /// The critic's weights, f32, where there is one.
    pub critic: Option<Weights>,
    /// A reference that follows the policy, f32, where there is one.
    pub reference: Option<Weights>,
    /// Steps taken and the optimiser's moments.
    pub position: Position,
    /// Steps that there will be in all; see [`Trainer::reach`].
    pub total_steps: usize,
    /// What [`Objective::state`] gave.
    pub objective: Value,
}

/// `position.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PositionFacts {
    steps: usize,
    /// `None` where there are no moments.
    updates: Option<i32>,
}

/// `trainer.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrainerFacts {
    total_steps: usize,
    has_critic: bool,
    has_reference: bool,
    objective: Value,
}

impl Position {
    const FACTS: &str = "position.json";
    const MOMENTS: &str = "optimizer.safetensors";

    /// Writes `position.json`, and `optimizer.safetensors` where there are moments. A folder that is there already is replaced.
    ///
    /// # Errors
    /// If the disk is full or the place is not writable; then nothing is left behind.
    pub fn save(&self, folder: &Path) -> Result<()> {
        write_folder(folder, |folder| {
            let updates = self.moments.as_ref().map(|(_, updates)| *updates);
            write_json(&folder.join(Self::FACTS), &json!(PositionFacts { steps: self.steps, updates }))?;
            match &self.moments {
                Some((moments, _)) => save_weights(&folder.join(Self::MOMENTS), moments),
                None => Ok(()),
            }
        })
    }

    /// Reads what [`Position::save`] wrote, to the last bit.
    ///
    /// # Errors
    /// If a file is missing or broken.
    pub fn load(folder: &Path) -> Result<Self> {
        let PositionFacts { steps, updates } = facts(&folder.join(Self::FACTS))?;
        let moments = updates.map(|updates| Ok((state_weights(&folder.join(Self::MOMENTS))?, updates)));
        Ok(Position { steps, moments: moments.transpose()? })
    }
}

impl TrainerState {
    const FACTS: &str = "trainer.json";
    const TRAINED: &str = "trained.safetensors";
    const CRITIC: &str = "critic.safetensors";
    const REFERENCE: &str = "reference.safetensors";
    const POSITION: &str = "position";

    /// Writes `trained.safetensors`, `trainer.json`, the folder `position`, and where there are such things
    /// `critic.safetensors` and `reference.safetensors`. A folder that is there already is replaced.
    ///
    /// # Errors
    /// If the disk is full or the place is not writable; then nothing is left behind.
    pub fn save(&self, folder: &Path) -> Result<()> {
        write_folder(folder, |folder| {
            save_weights(&folder.join(Self::TRAINED), &self.trained)?;
            for (name, weights) in [(Self::CRITIC, &self.critic), (Self::REFERENCE, &self.reference)] {
                if let Some(weights) = weights {
                    save_weights(&folder.join(name), weights)?;
                }
            }
            self.position.save(&folder.join(Self::POSITION))?;
            let facts = TrainerFacts {
                total_steps: self.total_steps,
                has_critic: self.critic.is_some(),
                has_reference: self.reference.is_some(),
                objective: self.objective.clone(),
            };
            write_json(&folder.join(Self::FACTS), &json!(facts))
        })
    }

    /// Reads what [`TrainerState::save`] wrote, to the last bit; tensors are on the CPU.
    ///
    /// # Errors
    /// If a file is missing or broken.
    pub fn load(folder: &Path) -> Result<Self> {
        let TrainerFacts { total_steps, has_critic, has_reference, objective } =
            facts(&folder.join(Self::FACTS))?;
        let optional =
            |is_there: bool, name: &str| is_there.then(|| state_weights(&folder.join(name))).transpose();
        Ok(TrainerState {
            trained: state_weights(&folder.join(Self::TRAINED))?,
            critic: optional(has_critic, Self::CRITIC)?,
            reference: optional(has_reference, Self::REFERENCE)?,
            position: Position::load(&folder.join(Self::POSITION))?,
            total_steps,
            objective,
        })
    }
}

impl Trainer {
    /// What its later steps depend on. Tensors are handles, which change with the next step: write them, or resume another
    /// trainer, before.
    pub fn state(&self) -> TrainerState {
        TrainerState {
            trained: self.parameters.masters(),
            critic: self.critic(),
            reference: self.reference(),
            position: self.position(),
            total_steps: self.total_steps,
            objective: self.objective.state(),
        }
    }

    /// The same from where another trainer stood, whose `state` it copies. This one was made as that one was: with the same
    /// options and objective, the same base under an adapter, teacher, and reference, unless the reference follows. The weights
    /// that it was made from do not matter. Its steps are those that the other would have taken, to the last bit.
    ///
    /// # Errors
    /// If the state is of other tensors, or of another objective.
    pub fn resume(mut self, state: &TrainerState) -> Result<Self> {
        let has = |here: bool| if here { "has" } else { "has not" };
        let follows = self.objective.needs().sync.is_some();
        for (what, here, there) in [
            ("a critic", self.critic.is_some(), state.critic.is_some()),
            ("a reference that follows the policy", follows, state.reference.is_some()),
        ] {
            if here != there {
                let cause = format!("it {} {what}, and the objective {} one", has(there), has(here));
                return Err(PolicyError::WrongState { cause });
            }
        }
        let wrong =
            |cause: String| PolicyError::WrongState { cause: format!("the objective's part: {cause}") };
        self.objective.restore(&state.objective).map_err(wrong)?;
        self.parameters.restore(&state.trained, self.compute)?;
        if let (Some(critic), Some(weights)) = (&mut self.critic, &state.critic) {
            critic.parameters.restore(weights, self.compute)?;
        }
        if let Some(weights) = &state.reference {
            self = self.with_reference(weights)?;
        }
        self.total_steps = state.total_steps;
        let copy = |moments: &Weights| -> Weights {
            moments.iter().map(|(name, tensor)| (name.clone(), tensor.copy())).collect()
        };
        let moments = state.position.moments.as_ref().map(|(moments, updates)| (copy(moments), *updates));
        self.from_position(Position { steps: state.position.steps, moments })
    }

    /// The same from where an earlier trainer stopped: its steps count, and its moments go on. A critic's are among them, so
    /// it comes after [`Trainer::with_critic`].
    ///
    /// # Errors
    /// If the moments do not fit.
    pub fn from_position(mut self, position: Position) -> Result<Self> {
        self.step = position.steps;
        if let Some((moments, updates)) = position.moments {
            self.parameters.resume(&moments, updates)?;
            if let Some(critic) = &mut self.critic {
                let own = |(name, tensor): (String, Tensor)| {
                    Some((name.strip_prefix("critic.")?.to_string(), tensor))
                };
                critic.parameters.resume(&moments.into_iter().filter_map(own).collect(), updates)?;
            }
        }
        Ok(self)
    }

    fn position(&self) -> Position {
        let moments = Some((self.optimizer_state(), self.parameters.updates()));
        Position { steps: self.step, moments }
    }

    /// What is trained on, with its running statistics, and how far training has come: for another trainer to go on with.
    pub fn into_parts(self) -> (Box<dyn Objective>, Position) {
        let position = self.position();
        (self.objective, position)
    }
}

/// An error about a broken file as one about the training's state.
fn of_state(error: PolicyError) -> PolicyError {
    match error {
        PolicyError::Broken { path, cause } => {
            PolicyError::WrongState { cause: format!("{} is broken ({cause})", path.display()) }
        }
        error => error,
    }
}

fn state_weights(path: &Path) -> Result<Weights> {
    load_weights(path).map_err(of_state)
}

fn facts<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let value = read_json(path).map_err(of_state)?;
    serde_json::from_value(value).map_err(|error| of_state(PolicyError::broken(path, error)))
}
