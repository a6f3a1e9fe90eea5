//! The reward worker: scores completed groups.

use std::sync::Arc;

use arriero_buffers::{Group, Leased, ScoredGroup};
use arriero_policy::snapshot::Snapshot;
use arriero_reward::scorer::reward_model::RewardModelScorer;
use arriero_reward::{Outcomes, RewardError, Scorer};
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef};

use crate::conductor::ConductorMessage;
use crate::experiment::ScoredBy;
use crate::faults::Role;
use crate::wiring::{TAKE_PATIENCE, Wiring};

/// A group that kills its worker this often is given up and counted.
const ATTEMPTS: u32 = 3;

/// Tokens that go through a reward model at once.
const BATCH_TOKENS: usize = 8192;

const WORKER: &str = "reward worker";

#[derive(Debug)]
pub(crate) enum RewardWorkerMessage {
    /// Look for a group.
    Work,
}

#[derive(Default)]
pub(crate) struct RewardWorker;

pub(crate) struct RewardWorkerState {
    wiring: Wiring,
    scorer: Box<dyn Scorer>,
    /// The arm's reward model, with the snapshot that it was made of.
    reward_model: Option<(Arc<Snapshot>, RewardModelScorer)>,
}

impl ThreadLocalActor for RewardWorker {
    type Msg = RewardWorkerMessage;
    type State = RewardWorkerState;
    type Arguments = Wiring;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        wiring: Wiring,
    ) -> Result<Self::State, ActorProcessingErr> {
        let mut scorer = wiring.plan.reward.build()?;
        scorer.set_cancellation(wiring.shutdown.watch());
        myself.cast(RewardWorkerMessage::Work)?;
        Ok(RewardWorkerState { wiring, scorer, reward_model: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        RewardWorkerMessage::Work: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(lease) = state.wiring.completed.take(WORKER, TAKE_PATIENCE) {
            state.work(&lease)?;
        }
        if !state.wiring.shutdown.has_begun() {
            myself.cast(RewardWorkerMessage::Work)?;
        }
        Ok(())
    }
}

impl RewardWorkerState {
    fn work(&mut self, lease: &Leased<Arc<Group>>) -> Result<(), ActorProcessingErr> {
        if lease.attempt > ATTEMPTS {
            self.wiring.completed.drop_leased(WORKER, "killed_its_reward_worker");
            self.wiring.tell(ConductorMessage::Dropped {
                prompt_id: lease.item.prompt.id,
                reason: "killed_its_reward_worker",
            });
            return Ok(());
        }
        self.wiring.faults.begin(Role::RewardWorker);
        let outcomes = self.score(&lease.item);
        match outcomes.and_then(|outcomes| self.wiring.plan.unscored.settle(outcomes)) {
            Ok((scores, causes)) => {
                if !causes.is_empty() {
                    self.wiring.tell(ConductorMessage::Unscored { causes });
                }
                let scored = ScoredGroup { group: (*lease.item).clone(), scores };
                self.wiring.push(&self.wiring.scored, Arc::new(scored))?;
                self.wiring.completed.done(WORKER);
            }
            Err(RewardError::Interrupted) => self.wiring.completed.drop_leased(WORKER, "interrupted"),
            Err(error) => {
                // The scorer's word is final: scoring again would say the same.
                self.wiring.completed.drop_leased(WORKER, "scorer_failed");
                let (role, cause) = (Role::RewardWorker, error.to_string());
                self.wiring.tell(ConductorMessage::Failed { role, cause });
            }
        }
        Ok(())
    }

    /// Scores a group with what the phase's stage names.
    fn score(&mut self, group: &Group) -> Result<Outcomes, RewardError> {
        let scored_by = self.wiring.selection.get().map(|job| job.recipe.scored_by);
        let mut outcomes = match scored_by {
            Some(ScoredBy::RewardModel) => self.reward_model()?.score_groups(&[group]),
            Some(ScoredBy::Experiment) | None => self.scorer.score_groups(&[group]),
        };
        Ok(outcomes.remove(0))
    }

    /// A scorer of the arm's newest reward model.
    fn reward_model(&mut self) -> Result<&mut RewardModelScorer, RewardError> {
        let newest = self.wiring.reward_model.pull().ok_or_else(|| {
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
                // It reads as much as the reference does, and takes turns with it.
                let model = newest.in_precision(self.wiring.computes.reference).model();
                let model = model.map_err(|error| RewardError::Config(error.to_string()))?.packed();
                RewardModelScorer::new(model, self.wiring.tokenizer.clone(), BATCH_TOKENS)?
            }
        };
        Ok(&mut self.reward_model.insert((newest, scorer)).1)
    }
}
