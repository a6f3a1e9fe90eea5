//! The reward worker: scores completed groups.

use std::sync::Arc;

use arriero_buffers::{Group, Leased, ScoredGroup};
use arriero_policy::snapshot::Snapshot;
use arriero_reward::scorer::reward_model::RewardModelScorer;
use arriero_reward::{Outcomes, RewardError, Scorer};
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef};

use crate::context::{Context, TAKE_PATIENCE};
use crate::job::{GroupToSelect, SampledGroup};
use crate::report::News;
use crate::role::ActorRole;
use arriero_experiment::ScoredBy;

/// A group that kills its worker this often is given up and counted.
const ATTEMPTS: u32 = 3;

/// Tokens that go through a reward model at once.
const BATCH_TOKENS: usize = 8192;

/// Why such a group is dropped.
const GIVEN_UP: &str = "killed_its_reward_worker";

const WORKER: &str = "reward worker";

#[derive(Debug)]
pub(crate) enum RewardWorkerMessage {
    /// Look for a group.
    Work,
}

#[derive(Default)]
pub(crate) struct RewardWorker;

pub(crate) struct RewardWorkerState {
    context: Context,
    scorer: Box<dyn Scorer>,
    /// The arm's reward model, with the snapshot that it was made of.
    reward_model: Option<(Arc<Snapshot>, RewardModelScorer)>,
}

impl ThreadLocalActor for RewardWorker {
    type Msg = RewardWorkerMessage;
    type State = RewardWorkerState;
    type Arguments = Context;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        context: Context,
    ) -> Result<Self::State, ActorProcessingErr> {
        let mut scorer = context.plan.reward.build()?;
        scorer.set_cancellation(context.shutdown.watch());
        myself.cast(RewardWorkerMessage::Work)?;
        Ok(RewardWorkerState { context, scorer, reward_model: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        RewardWorkerMessage::Work: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(lease) = state.context.sampled.take(WORKER, TAKE_PATIENCE) {
            state.work(&lease)?;
        }
        if !state.context.shutdown.has_begun() {
            myself.cast(RewardWorkerMessage::Work)?;
        }
        Ok(())
    }
}

impl RewardWorkerState {
    fn work(&mut self, lease: &Leased<SampledGroup>) -> Result<(), ActorProcessingErr> {
        let SampledGroup { job, group } = &lease.item;
        if lease.attempt > ATTEMPTS {
            self.context.sampled.drop_leased(WORKER, GIVEN_UP);
            let (prompt_id, reason) = (group.prompt.id, GIVEN_UP.to_string());
            self.context.tell(&job.address, News::Dropped { prompt_id, reason });
            return Ok(());
        }
        self.context.faults.begin(ActorRole::RewardWorker);
        let outcomes = self.score(job.settings.scored_by, group);
        match outcomes.and_then(|outcomes| self.context.plan.unscored.scores(outcomes)) {
            Ok((scores, causes)) => {
                if !causes.is_empty() {
                    self.context.tell(&job.address, News::Unscored { causes });
                }
                let scored = Arc::new(ScoredGroup { group: (**group).clone(), scores });
                let scored = GroupToSelect { job: Arc::clone(job), scored };
                self.context.push(&self.context.scored, scored)?;
                self.context.sampled.done(WORKER);
            }
            Err(RewardError::Interrupted) => self.context.sampled.drop_leased(WORKER, "interrupted"),
            Err(error) => {
                // The scorer's word is final: scoring again would say the same.
                self.context.sampled.drop_leased(WORKER, "scorer_failed");
                self.context.tell_failure(&job.address, ActorRole::RewardWorker, error.to_string());
            }
        }
        Ok(())
    }

    /// Scores a group with what its stage names.
    fn score(&mut self, scored_by: ScoredBy, group: &Group) -> Result<Outcomes, RewardError> {
        let mut outcomes = match scored_by {
            ScoredBy::RewardModel => self.reward_model()?.score_groups(&[group]),
            ScoredBy::Experiment => self.scorer.score_groups(&[group]),
        };
        Ok(outcomes.remove(0))
    }

    /// A scorer of the arm's newest reward model.
    fn reward_model(&mut self) -> Result<&mut RewardModelScorer, RewardError> {
        let newest = self.context.reward_model.pull().ok_or_else(|| {
            RewardError::Config(
                "the stage scores with the arm's reward model, but there is none yet: the stage that trains it had \
                 nothing to learn from"
                    .to_string(),
            )
        })?;
        let known = self.reward_model.take().filter(|(of, _)| Arc::ptr_eq(of, &newest));
        let scorer = match known {
            Some((_, scorer)) => scorer,
            None => {
                // It shares the reference's device: its passes are as large, and the two take turns.
                let model = newest.in_precision(self.context.computes.reference).model();
                let model = model.map_err(|error| RewardError::Config(error.to_string()))?.packed();
                RewardModelScorer::new(model, self.context.tokenizer.clone(), BATCH_TOKENS)?
            }
        };
        Ok(&mut self.reward_model.insert((newest, scorer)).1)
    }
}
