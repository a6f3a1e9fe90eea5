//! The rejection sampler: turns scored groups into training trees. It owns nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use arriero_buffers::{BufferError, Completion, Finish, ScoredGroup, Selection, SelectionRule, select};
use arriero_policy::objective::Statistics;
use arriero_policy::reward_model;
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef};

use crate::context::{Context, TAKE_PATIENCE};
use crate::job::GroupToSelect;
use crate::record::Record;
use crate::report::{GroupFigures, News};
use crate::role::ActorRole;
use arriero_experiment::ScoredBy;

const WORKER: &str = "rejection sampler";

#[derive(Debug)]
pub(crate) enum RejectionSamplerMessage {
    /// Look for a group.
    Work,
}

#[derive(Default)]
pub(crate) struct RejectionSampler;

pub(crate) struct RejectionSamplerState {
    context: Context,
}

impl ThreadLocalActor for RejectionSampler {
    type Msg = RejectionSamplerMessage;
    type State = RejectionSamplerState;
    type Arguments = Context;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        context: Context,
    ) -> Result<Self::State, ActorProcessingErr> {
        myself.cast(RejectionSamplerMessage::Work)?;
        Ok(RejectionSamplerState { context })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        RejectionSamplerMessage::Work: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        work(&state.context)?;
        if !state.context.shutdown.has_begun() {
            myself.cast(RejectionSamplerMessage::Work)?;
        }
        Ok(())
    }
}

fn work(context: &Context) -> Result<(), ActorProcessingErr> {
    let Some(lease) = context.scored.take(WORKER, TAKE_PATIENCE) else { return Ok(()) };
    context.faults.begin(ActorRole::RejectionSampler);
    let GroupToSelect { job, scored } = lease.item;
    let mut selection = select(&scored, job.rule, &job.bounds, |token| context.tokenizer.is_special(token));
    if let Selection::Accepted(tree) = &mut selection {
        tree.address = job.address.clone();
        let objective = job.algorithm.objective();
        if objective.needs().statistics == Statistics::Scores {
            // A reward model reads whole conversations.
            reward_model::close(tree, &context.tokenizer)?;
        }
        if let Some(reason) = objective.refuses(tree) {
            selection = Selection::Dropped(reason);
        }
    }
    let record = Record::Group {
        address: job.address.clone(),
        scored: Arc::clone(&scored),
        rule: job.rule,
        selection: selection.clone(),
    };
    // Reward models are an arm's own.
    let is_shared = job.settings.scored_by == ScoredBy::Experiment && context.plan.arms.len() > 1;
    if is_shared && job.address.round == 0 && scored.group.is_of_version(0) {
        context.initial_groups.keep(&job.settings, &scored);
    }
    if job.keep {
        context.stage_groups.keep(&job.address.stage, &scored);
    }
    let prompt_id = scored.group.prompt.id;
    let news = match selection {
        Selection::Dropped(reason) => News::Dropped { prompt_id, reason: reason.to_string() },
        Selection::Accepted(tree) => {
            let version = tree.version;
            match context.buffer().insert(tree) {
                Ok(()) => News::Accepted { prompt_id, version },
                // A worker that died over this group had inserted its tree already.
                Err(BufferError::Duplicate(_)) if lease.attempt > 1 => News::Accepted { prompt_id, version },
                Err(error) => News::Failed { role: ActorRole::RejectionSampler, cause: error.to_string() },
            }
        }
    };
    context.push(&context.records, record)?;
    context.tell(&job.address, News::Scored(Box::new(figures(&scored, job.rule))));
    context.tell(&job.address, news);
    context.scored.done(WORKER);
    Ok(())
}

/// A group in a few numbers.
fn figures(scored: &ScoredGroup, rule: SelectionRule) -> GroupFigures {
    let completions = &scored.group.completions;
    let completions = &completions[..rule.samples_of(completions.len())];
    let scores = || scored.rewards().take(completions.len());
    let is_terminated = |completion: &&Completion| completion.finish == Finish::EndOfTurn;
    let length = Completion::drawn_len;
    let mut components: BTreeMap<String, (f64, u64)> = BTreeMap::new();
    let scored_completions = scored.scores.iter().take(completions.len());
    for (name, value) in scored_completions.flat_map(|score| &score.components) {
        let (sum, count) = components.entry(name.clone()).or_default();
        *sum += f64::from(*value);
        *count += 1;
    }
    GroupFigures {
        rewards: scores().filter(|reward| reward.is_finite()).collect(),
        unusable: scores().filter(|reward| !reward.is_finite()).count(),
        lengths: completions.iter().map(length).collect(),
        terminated: completions.iter().filter(is_terminated).map(length).collect(),
        components,
    }
}

#[cfg(test)]
mod tests {
    use arriero_buffers::{Group, Prompt, Role as Speaker, Score, Segment};

    use super::*;

    #[test]
    fn lengths_are_those_of_what_the_policy_drew() {
        let mut completion = Completion { finish: Finish::EndOfTurn, ..Completion::empty(0) };
        completion.push(5, -1.0, -1.0, 0);
        completion.segments.push(Segment::inserted(Speaker::Tool, vec![6; 40]));
        completion.push(7, -1.0, -1.0, 0);
        completion.push(8, -1.0, -1.0, 0);
        let prompt = Prompt { id: 0, messages: Vec::new(), checks: serde_json::Value::Null };
        let group = Group { prompt: Arc::new(prompt), prompt_tokens: vec![1], completions: vec![completion] };
        let scored = ScoredGroup { group, scores: vec![Score { reward: 1.0, components: BTreeMap::new() }] };
        let found = figures(&scored, arriero_buffers::selection::BestOfN.into());
        assert_eq!((found.lengths, found.terminated), (vec![3], vec![3]));
    }
}
