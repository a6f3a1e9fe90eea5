//! `mode = "async"`: while the learner trains, the generator samples for the stage that comes next.
//!
//! It is one stage ahead at most, and begins when the learner is within `max_staleness` steps of the end of its
//! training. So the weights that draw a token are at most `max_staleness` versions older than those that training on it
//! begins with. The bound holds, and no sample is wasted. What is older all the same is dropped and counted.

use arriero_experiment::Mode;
use arriero_store::EventLevel;

use super::outline::Source;
use super::phase::{GroupOutcome, SamplingPhase};
use super::{Command, Phase, Schedule};
use crate::event::PhaseKind;
use crate::record::Record;

/// The reason for which a tree is dropped whose samples are older than `max_staleness`.
const TOO_STALE: &str = "too_stale";

impl Schedule {
    /// Begins to sample for the stage that comes next, if the learner is near enough to the end of its training.
    pub(super) fn look_ahead(&mut self) {
        let Mode::Async { max_staleness } = self.outline.mode else { return };
        let Phase::Training { done, steps, .. } = &self.state.phase else { return };
        let Some(current) = self.training(self.state.cursor) else { return };
        // A reward model's steps leave the policy as it is. A dataset may have another portion, whose trees come into
        // the same buffer.
        let versions_to_come = if current.trains_reward_model { 0 } else { steps.saturating_sub(*done) };
        let is_offline = matches!(current.source, Source::Dataset { .. });
        if self.state.ahead.is_some() || is_offline || versions_to_come > u64::from(max_staleness) {
            return;
        }
        let Some(next) = self.outline.next(self.state.cursor) else { return };
        // What the arm's own reward model scores waits for it.
        let can_begin = self
            .training(next)
            .is_some_and(|next| matches!(next.source, Source::Samples { waits_for_reward_model: false, .. }));
        if can_begin {
            let sampling = self.begin_sampling(next, true);
            let SamplingPhase { address, total, .. } = &sampling;
            let message = format!(
                "sampling of {}, round {} begins ahead, {total} to do",
                address.stage,
                address.round + 1
            );
            self.record(Record::event(address, EventLevel::Info, "conductor", message));
            self.state.ahead = Some(Box::new(sampling));
        }
    }

    /// Goes on with what was begun ahead; false if nothing was.
    pub(super) fn catch_up(&mut self) -> bool {
        let Some(mut ahead) = self.state.ahead.take() else { return false };
        self.enter(PhaseKind::Sampling, ahead.address.clone(), ahead.total);
        ahead.waited_since = Some(self.now);
        self.state.phase = Phase::Sampling(ahead);
        self.sampling_progress();
        self.end_sampling();
        true
    }

    /// Drops trees that the stage sampled itself and that are older than the bound.
    pub(super) fn drop_stale(&mut self) {
        let Mode::Async { max_staleness } = self.outline.mode else { return };
        let oldest = self.state.progress.version.saturating_sub(max_staleness);
        let source = self.training(self.state.cursor).map(|training| &training.source);
        if !matches!(source, Some(Source::Samples { .. })) {
            return;
        }
        let Phase::Sampling(sampling) = &mut self.state.phase else { return };
        let mut prompts = Vec::new();
        for (prompt_id, outcome) in &mut sampling.outcomes {
            if matches!(outcome, GroupOutcome::Accepted(Some(version)) if *version < oldest) {
                prompts.push(*prompt_id);
                *outcome = GroupOutcome::Dropped(TOO_STALE.to_string());
            }
        }
        if !prompts.is_empty() {
            self.commands.push(Command::Discard { prompts });
        }
    }
}
