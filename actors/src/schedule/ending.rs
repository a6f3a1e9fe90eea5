//! Deaths, interruptions, and the end of a run.

use arriero_buffers::Address;
use arriero_results::Status;
use arriero_store::EventLevel;

use super::phase::AfterCheckpoint;
use super::{Command, Phase, Schedule};
use crate::interruption::Interruption;
use crate::record::Record;
use crate::report::{News, Report};
use crate::role::ActorRole;

/// Times that an actor may be started again without getting anything done in between.
const RESTARTS: u32 = 3;

impl Schedule {
    /// Ends the run after the unit of work in progress. What the running arm has learned is kept.
    pub(super) fn interrupt(&mut self, by: Interruption) {
        if self.state.is_ending {
            return;
        }
        let by = by.as_str().to_string();
        let message = format!("{by}: ending the run after the step in progress; ctrl-c again stops at once");
        self.note(EventLevel::Warning, "conductor", message);
        self.shut_down();
        if let Phase::Checkpointing { then, .. } = &mut self.state.phase {
            *then = AfterCheckpoint::End(Status::Interrupted, by);
            return;
        }
        self.close_arm("interrupted");
        // The learner finishes a first step that is under way before it gets to the checkpoint.
        let has_learned =
            self.state.progress.version > 0 || matches!(self.state.phase, Phase::Training { .. });
        self.keep_weights(has_learned, Status::Interrupted, by);
    }

    /// Other news of work that was under way when the run began to end. It begins nothing new.
    pub(super) fn report_at_the_end(&mut self, Report { address, news }: Report) {
        match news {
            News::Checkpointed { directory, version, state }
                if self.state.phase.address() == Some(&address) =>
            {
                self.checkpointed(&directory, version, state);
            }
            // The step that was in progress. The learner reports it before the checkpoint that has it.
            News::Stepped { tokens, seconds, .. } => {
                if let Some(summary) = self.state.arms.iter_mut().find(|arm| *arm.arm == *address.arm) {
                    summary.tokens_trained += tokens;
                    summary.seconds += seconds;
                }
            }
            _ => {}
        }
    }

    /// Ends the run because something in it failed. What the running arm has learned before is kept.
    pub(super) fn fail(&mut self, cause: String) {
        if let Phase::Checkpointing { then, .. } = &self.state.phase {
            let cause = match then {
                AfterCheckpoint::End(_, first) => format!("{first}; besides, {cause}"),
                AfterCheckpoint::NextArm => cause,
            };
            return self.end(Status::Failed, Some(cause));
        }
        if self.state.is_ending {
            return self.end(Status::Failed, Some(cause));
        }
        // Steps of a reward model are no versions of the policy.
        let has_learned = self.state.progress.version > 0
            || matches!(self.state.phase, Phase::Training { done, .. } if done > 0);
        self.close_arm("run_failed");
        self.shut_down();
        self.keep_weights(has_learned, Status::Failed, cause);
    }

    fn shut_down(&mut self) {
        self.state.is_ending = true;
        self.commands.push(Command::Shutdown);
    }

    /// Writes the running arm's weights, if it has learned something that is not written yet, and then ends the run.
    fn keep_weights(&mut self, has_learned: bool, status: Status, cause: String) {
        if has_learned && !self.state.progress.is_checkpointed {
            self.checkpoint(AfterCheckpoint::End(status, cause));
        } else {
            self.end(status, Some(cause));
        }
    }

    /// Counts the groups that the early end of the run leaves unused.
    fn count_unused(&mut self, reason: &str) {
        let count = match &self.state.phase {
            Phase::Sampling(sampling) => sampling.unused(),
            Phase::Reading { trees, .. } => *trees,
            Phase::Referencing { total, .. } => *total,
            Phase::Training { done, trees, fresh, .. } => {
                let batch = self.training(self.state.cursor).map_or(1, |training| training.batch_size);
                // Trees of earlier rounds have been trained on before.
                trees.saturating_sub(done * batch).min(*fresh)
            }
            _ => 0,
        };
        let mut counts: Vec<(Address, String, u64)> = Vec::new();
        counts.extend(self.state.phase.address().map(|address| (address.clone(), reason.to_string(), count)));
        let samplings = [self.state.sampling_now(), self.state.ahead.as_deref()];
        for sampling in samplings.into_iter().flatten() {
            // Drops are counted at the end of a phase. This phase has none, so they are counted here.
            let dropped = sampling.dropped().into_iter();
            counts.extend(dropped.map(|(reason, count)| (sampling.address.clone(), reason, count)));
        }
        if let Some(ahead) = &self.state.ahead {
            counts.push((ahead.address.clone(), reason.to_string(), ahead.unused()));
        }
        for (address, reason, count) in counts.into_iter().filter(|(.., count)| *count > 0) {
            self.count_dropped(&address, &reason, count);
        }
    }

    /// Counts groups or rows that are not used.
    pub(super) fn count_dropped(&mut self, address: &Address, reason: &str, count: u64) {
        *self.state.progress.dropped.entry(reason.to_string()).or_default() += count;
        let (part, reason) = (self.state.position.portions, reason.to_string());
        self.record(Record::Drops { address: address.clone(), reason, part, count });
    }

    /// Accounts for an arm that does not come to its end.
    fn close_arm(&mut self, reason: &str) {
        self.count_unused(reason);
        let now = self.now;
        let (mut tokens, mut seconds) = (0, 0.0);
        if let Some(sampling) = self.state.sampling_now() {
            (tokens, seconds) = (sampling.metrics.tokens(), sampling.seconds(now));
        }
        // What was sampled ahead took no time of its own.
        tokens += self.state.ahead.as_ref().map_or(0, |ahead| ahead.metrics.tokens());
        self.state.progress.tokens_sampled += tokens;
        self.state.progress.seconds += seconds;
        let is_unfinished = self.state.arms.len() == self.state.cursor.arm();
        if is_unfinished {
            let summary = self.summarise(None);
            self.state.arms.extend(summary);
        }
    }

    /// Acts on an actor's death.
    pub(super) fn died(&mut self, role: ActorRole, cause: &str) {
        let restarts = self.state.restarts.entry(role).or_default();
        *restarts += 1;
        let (restarts, name) = (*restarts, role.as_str());
        if !role.can_be_replaced() {
            return self.end(Status::Failed, Some(format!("the {name} died: {cause}")));
        }
        if restarts > RESTARTS {
            return self.fail(format!("the {name} died {restarts} times, the last time of: {cause}"));
        }
        let message = format!("the {name} died and is started again ({restarts} of {RESTARTS}): {cause}");
        self.note(EventLevel::Warning, name, message);
        self.commands.push(Command::Restart(role));
        self.go_on_with(role);
    }

    /// Gives an actor that was started again its part of the running phase.
    fn go_on_with(&mut self, role: ActorRole) {
        if role == ActorRole::Generator {
            let now = match &mut self.state.phase {
                Phase::Sampling(sampling) => Some(sampling),
                _ => None,
            };
            let samplings = [now, self.state.ahead.as_mut()];
            for sampling in samplings.into_iter().flatten().filter(|sampling| !sampling.is_sampled) {
                sampling.metrics.generator_restarted();
                let (cursor, version, is_ahead) = (sampling.cursor, sampling.version, sampling.is_ahead);
                self.commands.push(Command::Sample { cursor, version, is_ahead });
            }
            return;
        }
        match (role, &mut self.state.phase) {
            (ActorRole::DataReader, Phase::Reading { trees, .. }) => {
                *trees = 0;
                self.command_reading();
            }
            (ActorRole::Reference, Phase::Referencing { version, .. }) => {
                let version = *version;
                self.command_reference(version);
            }
            (ActorRole::Evaluator, Phase::Evaluating { address, version }) => {
                let (address, version) = (address.clone(), *version);
                self.commands.push(Command::Evaluate { address, version });
            }
            _ => {}
        }
    }

    /// Decides that the run is over.
    pub(super) fn end(&mut self, status: Status, cause: Option<String>) {
        if status == Status::Failed && !self.state.is_ending {
            self.close_arm("run_failed");
        }
        if !self.state.is_ending {
            self.shut_down();
        }
        self.leave();
        if let Some(cause) = &cause {
            let level = if status == Status::Failed { EventLevel::Error } else { EventLevel::Warning };
            let message = format!("the run ends: {cause}");
            self.record(Record::Event { address: None, level, actor: "conductor", message });
        }
        let arms = std::mem::take(&mut self.state.arms);
        self.commands.push(Command::End { status, cause, arms });
        self.state.phase = Phase::Ended;
    }
}
