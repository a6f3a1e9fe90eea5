//! `mode = "async"`: while the learner trains, the generator samples for the stage that comes next.
//!
//! It is one stage ahead at most, and begins when the learner is within `max_staleness` steps of the end of its
//! training. So a token is drawn by weights that are at most `max_staleness` versions older than those that training on it
//! begins with: the bound holds without a sample being wasted. What would be older all the same is dropped and counted.

use std::collections::BTreeMap;
use std::time::Instant;

use arriero_store::EventLevel;
use ractor::ActorProcessingErr;

use super::{ConductorState, Phase, SamplingPhase};
use crate::event::PhaseKind;
use crate::experiment::{Mode, ScoredBy};
use crate::recorder::Record;

/// Why a tree is dropped whose samples are older than `max_staleness`.
const TOO_STALE: &str = "too_stale";

impl ConductorState {
    /// The sampling that goes on, now or ahead.
    pub(super) fn sampling(&mut self) -> Option<&mut SamplingPhase> {
        match (&mut self.phase, &mut self.ahead) {
            (_, Some(ahead)) => Some(ahead),
            (Phase::Sampling(sampling), None) => Some(sampling),
            _ => None,
        }
    }

    /// The round and the stage that come after the running one.
    fn following(&self) -> Option<(usize, usize)> {
        let arm = self.current_arm();
        let (round, stage) = match self.stage + 1 {
            next if next < arm.stages.len() => (self.round, next),
            _ => (self.round + 1, 0),
        };
        (round < arm.rounds).then_some((round, stage))
    }

    /// Begins to sample for the stage that comes next, if the learner is near enough to the end of its training.
    pub(super) fn look_ahead(&mut self) -> Result<(), ActorProcessingErr> {
        let Mode::Async { max_staleness } = self.context.plan.mode else { return Ok(()) };
        let Phase::Training { done, steps, .. } = &self.phase else { return Ok(()) };
        let current = self.current_stage();
        // A reward model's steps leave the policy as it is. A dataset may have another portion, whose trees come into
        // the same buffer.
        let versions_to_come = if current.trains_reward_model() { 0 } else { steps - done };
        if self.ahead.is_some() || current.data.is_some() || versions_to_come > u64::from(max_staleness) {
            return Ok(());
        }
        let Some((round, number)) = self.following() else { return Ok(()) };
        let next = self.current_arm().stages[number].training();
        // What the arm's own reward model scores waits for it.
        if next.is_some_and(|next| next.samples() && next.reward == ScoredBy::Experiment) {
            let sampling = self.begin_sampling(round, number, true)?;
            self.record(Record::Event {
                arm: Some(sampling.selection.arm.clone()),
                level: EventLevel::Info,
                actor: "conductor",
                message: format!(
                    "sampling of {}, round {} begins ahead, {} to do",
                    sampling.selection.stage,
                    round + 1,
                    sampling.job.prompts.len()
                ),
            });
            self.ahead = Some(Box::new(sampling));
        }
        Ok(())
    }

    /// Goes on with what was begun ahead; false if nothing was.
    pub(super) fn catch_up(&mut self) -> Result<bool, ActorProcessingErr> {
        let Some(mut ahead) = self.ahead.take() else { return Ok(false) };
        self.enter(PhaseKind::Sampling, ahead.job.prompts.len() as u64);
        ahead.waited_for = Some(Instant::now());
        self.phase = Phase::Sampling(ahead);
        self.sampling_progress();
        self.end_sampling()?;
        Ok(true)
    }

    /// Drops what is older than the bound, where the stage sampled it itself.
    pub(super) fn drop_stale(&mut self) {
        let Mode::Async { max_staleness } = self.context.plan.mode else { return };
        if !self.current_stage().samples() {
            return;
        }
        let stale = self.wiring.buffer().drop_before(self.progress.version.saturating_sub(max_staleness));
        if let Phase::Sampling(sampling) = &mut self.phase {
            sampling.outcomes.extend(stale.into_iter().map(|prompt_id| (prompt_id, Some(TOO_STALE))));
        }
    }
}

impl SamplingPhase {
    /// Groups that would be left unused if the run ended now. One that was dropped is settled; those accepted were to be
    /// trained on.
    pub fn unused(&self) -> usize {
        self.job.prompts.len() - self.outcomes.values().flatten().count()
    }

    /// Groups that were dropped, by reason.
    pub fn reasons(&self) -> BTreeMap<&'static str, u64> {
        let mut reasons = BTreeMap::new();
        for reason in self.outcomes.values().copied().flatten() {
            *reasons.entry(reason).or_default() += 1;
        }
        reasons
    }

    /// Seconds in which nothing else went on.
    pub fn seconds(&self) -> f64 {
        self.waited_for.map_or_else(|| self.metrics.seconds(), |since| since.elapsed().as_secs_f64())
    }
}
