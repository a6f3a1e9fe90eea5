//! What the schedule knows of the plan, and where in it a run stands.

use std::collections::BTreeMap;
use std::sync::Arc;

use arriero_buffers::Address;
use arriero_experiment::{
    ArmStage, ExperienceOf, Mode, Plan, ReferenceWeights, ScoredBy, Stage, StartFrom, Unscored,
};
use serde::{Deserialize, Serialize};

/// The stage of an address that concerns all arms alike: what the run begins with.
const BASELINE: &str = "baseline";

/// The part of a plan that the order of its phases depends on. It has at least one arm, and each arm at least one
/// stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Outline {
    /// The seed of all arms.
    pub seed: u64,
    /// How actors take turns.
    pub mode: Mode,
    /// What completions without a score do.
    pub unscored: Unscored,
    /// Training prompts of a round.
    pub prompts_per_round: u64,
    /// Training prompts in all.
    pub prompts: u64,
    /// Prompts that are measured on.
    pub held_out: u64,
    /// Whether there is anything to measure.
    pub measures: bool,
    /// What a person must know before the run begins.
    pub notes: Vec<String>,
    arms: Vec<ArmOutline>,
}

/// An arm in what its order depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct ArmOutline {
    /// Its name.
    pub name: Arc<str>,
    /// How often its stages run.
    pub rounds: u64,
    stages: Vec<StageOutline>,
}

/// A stage in what its order depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct StageOutline {
    /// Its name in the arm.
    pub name: Arc<str>,
    /// What is done in it.
    pub work: Work,
}

/// What is done in a stage.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// Models are averaged.
    Average {
        /// How many.
        models: u64,
    },
    /// An algorithm trains.
    Train(TrainingOutline),
}

/// A stage that trains.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingOutline {
    /// What it learns from.
    pub source: Source,
    /// Trees of a step.
    pub batch_size: u64,
    /// Passes over them.
    pub epochs: u64,
    /// Whether trees need reference log-probabilities, and of which weights.
    pub reference: Option<ReferenceWeights>,
    /// Whether it learns from the trees of all rounds so far.
    pub accumulates: bool,
    /// Whether it trains a reward model. The policy then stays as it is.
    pub trains_reward_model: bool,
}

/// What a stage learns from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Its own samples.
    Samples {
        /// Completions of a prompt.
        completions: u64,
        /// Whether the reward model that the arm trained last scores them. They must then wait for it.
        waits_for_reward_model: bool,
    },
    /// Samples of an earlier stage of the round.
    SamplesOf {
        /// Completions of a prompt.
        completions: u64,
    },
    /// A dataset.
    Dataset {
        /// Where it is, for messages.
        path: String,
        /// Rows of a whole pass.
        rows: u64,
        /// Trees that are in memory at a time.
        portion: u64,
        /// Whether each pass has an order of its own.
        shuffle: bool,
    },
}

/// Where in the plan a run stands. It comes from an [`Outline`], and always names a stage of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    arm: usize,
    round: u64,
    stage: usize,
}

impl Cursor {
    /// The arm's number.
    pub fn arm(&self) -> usize {
        self.arm
    }

    /// The round, from 0.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// The stage's number in the arm.
    pub fn stage(&self) -> usize {
        self.stage
    }
}

impl ArmOutline {
    /// An arm of these stages.
    ///
    /// # Errors
    /// If there are no stages or no rounds.
    pub fn new(name: &str, rounds: u64, stages: Vec<StageOutline>) -> Result<Self, String> {
        if stages.is_empty() || rounds == 0 {
            return Err(format!("the arm \"{name}\" has nothing to do: it needs a stage and a round"));
        }
        Ok(ArmOutline { name: name.into(), rounds, stages })
    }

    /// The stages' names.
    pub fn stage_names(&self) -> Vec<String> {
        self.stages.iter().map(|stage| stage.name.to_string()).collect()
    }
}

impl Outline {
    /// What the order of a plan's phases depends on. `rows` has the rows of offline stages by the numbers of arm and
    /// stage, `prompts` and `held_out` count what was loaded.
    ///
    /// # Errors
    /// If there is nothing to do.
    pub fn of(
        plan: &Plan,
        rows: &BTreeMap<(usize, usize), u64>,
        prompts: u64,
        held_out: u64,
        notes: Vec<String>,
    ) -> Result<Self, String> {
        let arms = plan.arms.iter().enumerate().map(|(number, arm)| {
            let stages = arm.stages.iter().enumerate().map(|(place, stage)| StageOutline {
                name: stage.name().into(),
                work: match stage {
                    ArmStage::Average(average) => Work::Average { models: average.of.len() as u64 },
                    ArmStage::Train(stage) => {
                        let rows = rows.get(&(number, place)).copied().unwrap_or_default();
                        Work::Train(TrainingOutline::of(stage, rows))
                    }
                },
            });
            ArmOutline::new(&arm.name, arm.rounds as u64, stages.collect())
        });
        let outline = Outline::new(plan.seed, arms.collect::<Result<_, _>>()?)?;
        Ok(Outline {
            mode: plan.mode,
            unscored: plan.unscored,
            prompts_per_round: plan.prompts.per_round() as u64,
            prompts,
            held_out,
            measures: held_out > 0 || !plan.evaluation.suites.is_empty(),
            notes,
            ..outline
        })
    }

    /// These arms in lockstep, without prompts.
    ///
    /// # Errors
    /// If there are none.
    pub fn new(seed: u64, arms: Vec<ArmOutline>) -> Result<Self, String> {
        if arms.is_empty() {
            return Err("the experiment has no arm".to_string());
        }
        Ok(Outline {
            seed,
            mode: Mode::Lockstep,
            unscored: Unscored::default(),
            prompts_per_round: 0,
            prompts: 0,
            held_out: 0,
            measures: false,
            notes: Vec::new(),
            arms,
        })
    }

    /// The arms, in the order in which they run.
    pub fn arms(&self) -> &[ArmOutline] {
        &self.arms
    }

    /// The first stage of the first round of the first arm.
    pub fn first(&self) -> Cursor {
        Cursor { arm: 0, round: 0, stage: 0 }
    }

    /// The stage of the same arm that comes next.
    pub fn next(&self, cursor: Cursor) -> Option<Cursor> {
        let arm = self.arm(cursor);
        let (round, stage) = match cursor.stage + 1 {
            next if next < arm.stages.len() => (cursor.round, next),
            _ => (cursor.round + 1, 0),
        };
        (round < arm.rounds).then_some(Cursor { round, stage, ..cursor })
    }

    /// The first stage of the arm that comes next.
    pub fn next_arm(&self, cursor: Cursor) -> Option<Cursor> {
        (cursor.arm + 1 < self.arms.len()).then_some(Cursor { arm: cursor.arm + 1, round: 0, stage: 0 })
    }

    /// True if the cursor names a stage of this outline.
    pub fn has(&self, cursor: Cursor) -> bool {
        let arm = self.arms.get(cursor.arm);
        arm.is_some_and(|arm| cursor.round < arm.rounds && cursor.stage < arm.stages.len())
    }

    /// The arm where a run stands.
    pub fn arm(&self, cursor: Cursor) -> &ArmOutline {
        &self.arms[cursor.arm]
    }

    /// The stage where a run stands.
    pub fn stage(&self, cursor: Cursor) -> &StageOutline {
        &self.arm(cursor).stages[cursor.stage]
    }

    /// The address of a stage.
    pub fn address(&self, cursor: Cursor) -> Address {
        let name = Arc::clone(&self.stage(cursor).name);
        Address::new(Arc::clone(&self.arm(cursor).name), self.seed, cursor.round, name)
    }

    /// The address of work on an arm as a whole, such as `evaluation`, in the round where the run stands.
    pub fn address_of_arm(&self, cursor: Cursor, what: &str) -> Address {
        Address::new(Arc::clone(&self.arm(cursor).name), self.seed, cursor.round, what)
    }

    /// The address of what the run begins with, which is of no arm.
    pub fn address_of_baseline(&self) -> Address {
        Address::new("", self.seed, 0, BASELINE)
    }

    /// Prompts of a round: the last one may have fewer.
    pub fn prompts_of(&self, round: u64) -> u64 {
        let before = round.saturating_mul(self.prompts_per_round);
        self.prompts.saturating_sub(before).min(self.prompts_per_round)
    }
}

impl TrainingOutline {
    fn of(stage: &Stage, rows: u64) -> Self {
        let needs = stage.algorithm.objective().needs();
        let completions = needs.selection.completions(stage.generator.samples) as u64;
        let source = match (&stage.data, &stage.samples_of) {
            (Some(data), _) => Source::Dataset {
                path: data.rows.path.clone(),
                rows,
                portion: data.portion(stage.training.batch_size) as u64,
                shuffle: data.rows.shuffle,
            },
            (None, Some(_)) => Source::SamplesOf { completions },
            (None, None) => {
                Source::Samples { completions, waits_for_reward_model: stage.reward == ScoredBy::RewardModel }
            }
        };
        // For a stage that starts from the initial weights, the weights of its start are these.
        let reference = match (stage.reference, stage.from) {
            (ReferenceWeights::Start, StartFrom::Previous) => ReferenceWeights::Start,
            _ => ReferenceWeights::Initial,
        };
        TrainingOutline {
            source,
            batch_size: stage.training.batch_size as u64,
            epochs: stage.training.epochs as u64,
            reference: needs.reference.then_some(reference),
            accumulates: stage.experience == ExperienceOf::All,
            trains_reward_model: stage.trains_reward_model(),
        }
    }
}
