//! The reward worker: scores completed groups.

use std::sync::Arc;

use arriero_buffers::ScoredGroup;
use arriero_reward::{RewardError, Scorer};
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef};

use crate::conductor::ConductorMessage;
use crate::faults::Role;
use crate::wiring::{TAKE_PATIENCE, Wiring};

/// A group that kills its worker this often is given up and counted.
const ATTEMPTS: u32 = 3;

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
        scorer.heed(wiring.shutdown.watch());
        myself.cast(RewardWorkerMessage::Work)?;
        Ok(RewardWorkerState { wiring, scorer })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        RewardWorkerMessage::Work: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let RewardWorkerState { wiring, scorer } = state;
        if let Some(lease) = wiring.completed.take(WORKER, TAKE_PATIENCE) {
            if lease.attempt > ATTEMPTS {
                wiring.completed.drop_leased(WORKER, "killed_its_reward_worker");
                wiring.tell(ConductorMessage::Dropped {
                    prompt_id: lease.item.prompt.id,
                    reason: "killed_its_reward_worker",
                });
            } else {
                wiring.faults.begin(Role::RewardWorker);
                let outcomes = scorer.score_groups(&[&lease.item]).remove(0);
                match wiring.plan.unscored.settle(outcomes) {
                    Ok((scores, causes)) => {
                        if !causes.is_empty() {
                            wiring.tell(ConductorMessage::Unscored { causes });
                        }
                        let scored = ScoredGroup { group: (*lease.item).clone(), scores };
                        wiring.push(&wiring.scored, Arc::new(scored))?;
                        wiring.completed.done(WORKER);
                    }
                    Err(RewardError::Interrupted) => wiring.completed.drop_leased(WORKER, "interrupted"),
                    Err(error) => {
                        // The scorer's word is final: scoring again would say the same.
                        wiring.completed.drop_leased(WORKER, "scorer_failed");
                        wiring.tell(ConductorMessage::Failed {
                            role: Role::RewardWorker,
                            cause: error.to_string(),
                        });
                    }
                }
            }
        }
        if !wiring.shutdown.has_begun() {
            myself.cast(RewardWorkerMessage::Work)?;
        }
        Ok(())
    }
}
