//! The built-in prompts: a short task about a topic, and verifiable instructions for its answer.
//!
//! - [`InstructionsConfig`]: how many prompts, and of which kinds;
//! - [`generate`]: the prompts of a [`Split`], every one a function of the seed, the split and its
//!   index (and, where two would read the same, of those before it).
//!
//! The topics are divided between the splits under the seed, so that what is measured on the
//! held-out prompts is not remembered from training.

mod draw;
mod tasks;
mod topics;

use std::collections::HashSet;

use arriero_buffers::{Message, Prompt};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::constraint::Constraint;
use draw::{Rng, constraints, nearest};

/// Every kind of constraint that is drawn.
pub const KINDS: &[&str] = Constraint::KINDS;

/// The most prompts of a split.
const MOST_PROMPTS: usize = 1_000_000;
/// The most constraints of a prompt: a small model follows few at once.
const MOST_CONSTRAINTS: usize = 3;
/// Draws after which a prompt may repeat another, or have fewer constraints than asked for.
const ATTEMPTS: usize = 64;
/// Prompts a split that are tried to see whether the kinds go together.
const TRIALS: usize = 32;
/// The first id of the held-out prompts.
const HELD_OUT_IDS: u64 = 1_000_000_000;

/// How the prompts are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InstructionsConfig {
    /// Prompts to train on, up to 1,000,000. Default 256.
    pub train: usize,
    /// Prompts to evaluate on, about other topics, up to 1,000,000. Default 256.
    pub held_out: usize,
    /// What every draw depends on. Default 1.
    pub seed: u64,
    /// The fewest constraints of a prompt, from 1 to `max_constraints`. Default 1.
    pub min_constraints: usize,
    /// The most constraints of a prompt, up to 3. Default 2. Fewer where the kinds do not go
    /// together.
    pub max_constraints: usize,
    /// The kinds of constraints to draw from ([`KINDS`]). Default empty: all.
    pub kinds: Vec<String>,
}

impl Default for InstructionsConfig {
    fn default() -> Self {
        InstructionsConfig {
            train: 256,
            held_out: 256,
            seed: 1,
            min_constraints: 1,
            max_constraints: 2,
            kinds: Vec::new(),
        }
    }
}

impl InstructionsConfig {
    /// Checks the options.
    ///
    /// # Errors
    /// With a sentence that names the option, its value and its range.
    pub fn validate(&self) -> Result<(), String> {
        for (option, count) in [("train", self.train), ("held_out", self.held_out)] {
            if count > MOST_PROMPTS {
                return Err(format!("{option} is {count}, but must be at most {MOST_PROMPTS}"));
            }
        }
        let (min, max) = (self.min_constraints, self.max_constraints);
        if !(1..=MOST_CONSTRAINTS).contains(&max) {
            return Err(format!("max_constraints is {max}, but must be from 1 to {MOST_CONSTRAINTS}"));
        }
        if !(1..=max).contains(&min) {
            return Err(format!("min_constraints is {min}, but must be from 1 to max_constraints ({max})"));
        }
        for kind in &self.kinds {
            if !KINDS.contains(&kind.as_str()) {
                let near = nearest(kind).join(", ");
                return Err(format!(
                    "kinds has {kind:?}, which is no kind of constraint; the nearest: {near}"
                ));
            }
        }
        // With all kinds there is always a way.
        let trials = |split| compose(self, split, TRIALS).into_iter();
        let combine = |(_, constraints): (String, Vec<Constraint>)| constraints.len() >= min;
        if !self.kinds.is_empty() && !trials(Split::Train).chain(trials(Split::HeldOut)).all(combine) {
            return Err(format!(
                "kinds is {:?}, but must have {min} kinds that go together (min_constraints is {min})",
                self.kinds
            ));
        }
        Ok(())
    }

    /// The kinds to draw from, each once.
    fn allowed(&self) -> Vec<&'static str> {
        let wanted = |kind: &&&str| self.kinds.is_empty() || self.kinds.iter().any(|own| own == **kind);
        KINDS.iter().filter(wanted).copied().collect()
    }
}

/// What prompts are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// To train on.
    Train,
    /// To evaluate on.
    HeldOut,
}

/// The prompts of a split. Ids count from 0 in training and from 1,000,000,000 in evaluation.
/// Asking for more prompts leaves the first ones as they are.
///
/// # Panics
/// If `config` is not valid.
pub fn generate(config: &InstructionsConfig, split: Split) -> Vec<Prompt> {
    if let Err(why) = config.validate() {
        panic!("the instructions cannot be made: {why}");
    }
    let (count, first_id) = match split {
        Split::Train => (config.train, 0),
        Split::HeldOut => (config.held_out, HELD_OUT_IDS),
    };
    let prompts = compose(config, split, count).into_iter().zip(first_id..);
    let prompt = |((text, constraints), id): ((String, Vec<Constraint>), u64)| Prompt {
        id,
        messages: vec![Message::user(text)],
        checks: json!({ "constraints": constraints }),
    };
    prompts.map(prompt).collect()
}

/// The texts of the first `count` prompts, with their constraints.
fn compose(config: &InstructionsConfig, split: Split, count: usize) -> Vec<(String, Vec<Constraint>)> {
    let topics = topics::of_split(config.seed, split);
    let kinds = config.allowed();
    let mut seen = HashSet::new();
    let mut made = Vec::with_capacity(count);
    for index in 0..count {
        let mut rng = Rng::new(config.seed, split, index as u64);
        let mut prompt = compose_one(config, &topics, &kinds, &mut rng);
        for _ in 1..ATTEMPTS {
            if prompt.1.len() >= config.min_constraints && !seen.contains(&prompt.0) {
                break;
            }
            prompt = compose_one(config, &topics, &kinds, &mut rng);
        }
        seen.insert(prompt.0.clone());
        made.push(prompt);
    }
    made
}

/// One prompt: a topic, constraints that go together, and a task that leaves room for them.
fn compose_one(
    config: &InstructionsConfig,
    topics: &[topics::Topic],
    kinds: &[&'static str],
    rng: &mut Rng,
) -> (String, Vec<Constraint>) {
    let topic = rng.pick(topics);
    let count = config.min_constraints + rng.below(config.max_constraints - config.min_constraints + 1);
    let constraints = constraints(kinds, count, topic.words, rng);
    let mut text = rng.pick(&tasks::admitting(&constraints)).text.replace("{}", topic.name);
    for constraint in &constraints {
        text.push(' ');
        text.push_str(&constraint.instruction(rng.below(Constraint::PHRASINGS)));
    }
    (text, constraints)
}

#[cfg(test)]
mod tests;
