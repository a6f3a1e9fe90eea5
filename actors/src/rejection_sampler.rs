//! The rejection sampler: turns scored groups into training trees. It owns nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use arriero_buffers::{
    Address, BufferError, Completion, Finish, ScoredGroup, Selection, SelectionConfig, SelectionRule, select,
};
use arriero_policy::objective::Algorithm;
use arriero_policy::reward_model;
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef};

use crate::conductor::ConductorMessage;
use crate::experiment::ScoredBy;
use crate::faults::Role;
use crate::recorder::Record;
use crate::wiring::{Recipe, TAKE_PATIENCE, Wiring};

const WORKER: &str = "rejection sampler";

/// What the phase's algorithm learns from, and where the samples are recorded.
#[derive(Debug, Clone)]
pub(crate) struct SelectionJob {
    pub rule: SelectionRule,
    /// The rule's bounds.
    pub bounds: SelectionConfig,
    /// What made the groups.
    pub recipe: Arc<Recipe>,
    /// Whether a later stage of the round learns from the groups, too.
    pub keep: bool,
    /// Which refuses what it cannot use.
    pub algorithm: Algorithm,
    pub arm: String,
    pub stage: String,
    pub round: u64,
}

#[derive(Debug)]
pub(crate) enum RejectionSamplerMessage {
    /// Look for a group.
    Work,
}

#[derive(Default)]
pub(crate) struct RejectionSampler;

pub(crate) struct RejectionSamplerState {
    wiring: Wiring,
}

impl ThreadLocalActor for RejectionSampler {
    type Msg = RejectionSamplerMessage;
    type State = RejectionSamplerState;
    type Arguments = Wiring;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        wiring: Wiring,
    ) -> Result<Self::State, ActorProcessingErr> {
        myself.cast(RejectionSamplerMessage::Work)?;
        Ok(RejectionSamplerState { wiring })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        RejectionSamplerMessage::Work: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        work(&state.wiring)?;
        if !state.wiring.shutdown.has_begun() {
            myself.cast(RejectionSamplerMessage::Work)?;
        }
        Ok(())
    }
}

fn work(wiring: &Wiring) -> Result<(), ActorProcessingErr> {
    let Some(lease) = wiring.scored.take(WORKER, TAKE_PATIENCE) else { return Ok(()) };
    let job = wiring.selection.get().ok_or("a scored group came before any phase of sampling")?;
    wiring.faults.begin(Role::RejectionSampler);
    let scored: Arc<ScoredGroup> = lease.item;
    let mut selection = select(&scored, job.rule, &job.bounds, |token| wiring.tokenizer.is_special(token));
    if let Selection::Accepted(tree) = &mut selection {
        if job.rule == SelectionRule::Ranking {
            // A reward model reads whole conversations.
            reward_model::close(tree, &wiring.tokenizer)?;
        }
        if let Some(reason) = job.algorithm.objective().refuses(tree) {
            selection = Selection::Dropped(reason);
        }
    }
    let record = Record::Group {
        address: Address::new(job.arm.as_str(), wiring.plan.seed, job.round, job.stage.as_str()),
        scored: Arc::clone(&scored),
        rule: job.rule,
        selection: selection.clone(),
    };
    // Reward models are an arm's own.
    let is_shared = job.recipe.scored_by == ScoredBy::Experiment && wiring.plan.arms.len() > 1;
    if is_shared && job.round == 0 && scored.group.is_of_version(0) {
        wiring.sampled_initially.keep(&job.recipe, &scored);
    }
    if job.keep {
        wiring.sampled_for.keep(&job.stage, &scored);
    }
    let prompt_id = scored.group.prompt.id;
    let outcome = match selection {
        Selection::Dropped(reason) => ConductorMessage::Dropped { prompt_id, reason },
        Selection::Accepted(tree) => match wiring.buffer().insert(tree) {
            Ok(()) => ConductorMessage::Accepted { prompt_id },
            // A worker that died over this group had inserted its tree already.
            Err(BufferError::Duplicate(_)) if lease.attempt > 1 => ConductorMessage::Accepted { prompt_id },
            Err(error) => ConductorMessage::Failed { role: Role::RejectionSampler, cause: error.to_string() },
        },
    };
    wiring.push(&wiring.records, record)?;
    wiring.tell(ConductorMessage::Scored(GroupSummary::of(&scored, job.rule)));
    wiring.tell(outcome);
    wiring.scored.done(WORKER);
    Ok(())
}

/// A group in a few numbers, for the phase's metrics.
#[derive(Debug, Clone)]
pub(crate) struct GroupSummary {
    /// Those that are finite.
    pub rewards: Vec<f32>,
    /// Completions whose reward is not.
    pub unusable: usize,
    pub lengths: Vec<usize>,
    /// Lengths of the completions that came to an end of their own.
    pub terminated: Vec<usize>,
    /// The sum of each component, and over how many completions.
    pub components: BTreeMap<String, (f64, u64)>,
}

impl GroupSummary {
    /// Of the policy's samples: a greedy completion, or a rival's, is a yardstick.
    fn of(scored: &ScoredGroup, rule: SelectionRule) -> Self {
        let completions = &scored.group.completions;
        let completions = &completions[..rule.samples_of(completions.len())];
        let scores = || scored.rewards().take(completions.len());
        let is_terminated = |completion: &&Completion| completion.finish == Finish::EndOfTurn;
        let length = |completion: &Completion| completion.tokens.len();
        let mut components: BTreeMap<String, (f64, u64)> = BTreeMap::new();
        let scored_completions = scored.scores.iter().take(completions.len());
        for (name, value) in scored_completions.flat_map(|score| &score.components) {
            let (sum, count) = components.entry(name.clone()).or_default();
            *sum += f64::from(*value);
            *count += 1;
        }
        GroupSummary {
            rewards: scores().filter(|reward| reward.is_finite()).collect(),
            unusable: scores().filter(|reward| !reward.is_finite()).count(),
            lengths: completions.iter().map(length).collect(),
            terminated: completions.iter().filter(is_terminated).map(length).collect(),
            components,
        }
    }
}
