//! Deaths, ctrl-c, and the end of a run.

use std::time::Duration;

use arriero_buffers::Address;
use arriero_store::EventLevel;
use ractor::{ActorProcessingErr, ActorRef};

use super::{AfterCheckpoint, ConductorMessage, ConductorState, Phase};
use crate::data_reader::DataReaderMessage;
use crate::evaluator::EvaluatorMessage;
use crate::event::RunEvent;
use crate::faults::Role;
use crate::generator::GeneratorMessage;
use crate::recorder::{Record, RecorderMessage};
use crate::reference::ReferenceMessage;
use crate::rejection_sampler::SelectionJob;
use crate::summary::Status;

/// Times that an actor may be started again without getting anything done in between.
const RESTARTS: u32 = 3;

/// Why a run ends that was interrupted.
const CTRL_C: &str = "ctrl-c";

/// How long the recorder may take to write what waits when a run ends.
const FLUSH_PATIENCE: Duration = Duration::from_secs(120);

impl ConductorState {
    /// Ends the run after the unit of work in progress; what the running arm has learned is kept.
    pub(super) fn interrupt(&mut self) {
        if self.wiring.shutdown.has_begun() {
            return;
        }
        let message = "ctrl-c: ending the run after the step in progress; ctrl-c again stops at once";
        self.note(EventLevel::Warning, "conductor", message.to_string());
        self.wiring.shutdown.begin();
        if let Phase::Checkpointing { then } = &mut self.phase {
            *then = AfterCheckpoint::End(Status::Interrupted, CTRL_C.to_string());
            return;
        }
        self.close_arm("interrupted");
        // A first step that is under way will have been taken when the learner gets to the checkpoint.
        let has_learned = self.progress.version > 0 || matches!(self.phase, Phase::Training { .. });
        self.keep_weights(has_learned, Status::Interrupted, CTRL_C.to_string());
    }

    /// Adds the step that was in progress when the run was to end, which comes before the checkpoint that has it.
    pub(super) fn count_last_step(&mut self, tokens: u64, seconds: f64) {
        let arm = &self.context.plan.arms[self.arm].name;
        if let Some(summary) = self.arms.iter_mut().find(|summary| summary.arm == *arm) {
            summary.tokens_trained += tokens;
            summary.seconds += seconds;
        }
    }

    /// Ends the run because something in it failed; what the running arm has learned before is kept.
    pub(super) fn fail(&mut self, cause: String) {
        if let Phase::Checkpointing { then } = &self.phase {
            let cause = match then {
                AfterCheckpoint::End(_, first) => format!("{first}; besides, {cause}"),
                AfterCheckpoint::NextArm => cause,
            };
            return self.end(Status::Failed, Some(cause));
        }
        if self.wiring.shutdown.has_begun() {
            return self.end(Status::Failed, Some(cause));
        }
        // Steps of a reward model are no versions of the policy.
        let has_learned =
            self.progress.version > 0 || matches!(self.phase, Phase::Training { done, .. } if done > 0);
        self.close_arm("run_failed");
        self.wiring.shutdown.begin();
        self.keep_weights(has_learned, Status::Failed, cause);
    }

    /// Writes the running arm's weights, if it has learned something that is not written yet, and then ends the run.
    fn keep_weights(&mut self, has_learned: bool, status: Status, cause: String) {
        if has_learned && !self.progress.checkpointed {
            if self.checkpoint(AfterCheckpoint::End(status, cause.clone())).is_err() {
                self.end(status, Some(format!("{cause}; the learner was gone already")));
            }
        } else {
            self.end(status, Some(cause));
        }
    }

    /// Counts the groups that the early end of the run leaves unused.
    pub(super) fn count_unused(&mut self, reason: &'static str) {
        let trees = self.wiring.buffer().len();
        let count = match &self.phase {
            Phase::Sampling(sampling) => sampling.unused(),
            Phase::Reading { .. } | Phase::Referencing { .. } => trees,
            Phase::Training { done, trees, fresh, .. } => {
                let stage = &self.current_stage().training;
                // Trees of earlier rounds have been trained on before.
                trees.saturating_sub(*done as usize * stage.batch_size).min(*fresh)
            }
            _ => 0,
        } as u64;
        let stage = self.current_arm().stages[self.stage].name();
        let mut counts = vec![(self.address(self.round, stage), reason, count)];
        let seed = self.context.plan.seed;
        let place = |job: &SelectionJob| Address::new(job.arm.as_str(), seed, job.round, job.stage.as_str());
        if let Some(sampling) = self.sampling() {
            // What was dropped by then is counted at the end of the phase, which does not come.
            let address = place(&sampling.selection);
            let reasons = sampling.reasons().into_iter();
            counts.extend(reasons.map(|(reason, count)| (address.clone(), reason, count)));
        }
        counts.extend(
            self.ahead.as_ref().map(|ahead| (place(&ahead.selection), reason, ahead.unused() as u64)),
        );
        for (address, reason, count) in counts.into_iter().filter(|(.., count)| *count > 0) {
            self.count_dropped(address, reason, count);
        }
    }

    /// Counts groups that are not used.
    pub(super) fn count_dropped(&mut self, address: Address, reason: &'static str, count: u64) {
        *self.progress.dropped.entry(reason.to_string()).or_default() += count;
        self.record(Record::Drops { address, reason: reason.to_string(), part: 0, count });
    }

    /// Accounts for an arm that does not come to its end.
    pub(super) fn close_arm(&mut self, reason: &'static str) {
        self.count_unused(reason);
        if let Some(sampling) = self.sampling() {
            let (tokens, seconds) = (sampling.metrics.tokens(), sampling.seconds());
            self.progress.tokens_sampled += tokens;
            // What was sampled ahead took no time of its own.
            self.progress.seconds += if self.ahead.is_some() { 0.0 } else { seconds };
        }
        let unfinished = self.arms.len() == self.arm && self.baseline.is_some();
        if unfinished {
            let summary = self.summarise(None);
            self.arms.extend(summary);
        }
    }

    /// Acts on an actor's death.
    pub(super) async fn bury(&mut self, role: Role, cause: String, myself: &ActorRef<ConductorMessage>) {
        let restarts = self.restarts.entry(role).or_default();
        *restarts += 1;
        let (restarts, name) = (*restarts, role.as_str());
        if role == Role::Recorder {
            self.wiring.records.close();
        }
        if matches!(role, Role::Learner | Role::Recorder) {
            let cause = format!("the {name} died: {cause}");
            return self.end(Status::Failed, Some(cause));
        }
        if restarts > RESTARTS {
            return self.fail(format!("the {name} died {restarts} times, the last time of: {cause}"));
        }
        self.note(
            EventLevel::Warning,
            name,
            format!("the {name} died and is started again ({restarts} of {RESTARTS}): {cause}"),
        );
        let again = match self.crew.restart(role, &self.wiring, myself).await {
            Ok(id) => {
                self.roles.insert(id, role);
                self.resume(role).map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = again {
            self.fail(format!("the {name} could not be started again: {error}"));
        }
    }

    /// Gives an actor that was restarted its part of the running phase.
    pub(super) fn resume(&mut self, role: Role) -> Result<(), ActorProcessingErr> {
        if let Some(sampling) =
            self.sampling().filter(|sampling| role == Role::Generator && !sampling.generated)
        {
            sampling.metrics.generator_restarted();
            let job = sampling.job.clone();
            self.crew.generator.cast(GeneratorMessage::Generate(job))?;
        }
        match (role, &mut self.phase) {
            (Role::DataReader, Phase::Reading { job }) => {
                self.crew.data_reader.cast(DataReaderMessage::Read(Box::new(job.clone())))?;
            }
            (Role::Reference, Phase::Referencing { job, .. }) => {
                self.crew.reference.cast(ReferenceMessage::Score(job.clone()))?;
            }
            (Role::Evaluator, Phase::Evaluating(job)) => {
                self.crew.evaluator.cast(EvaluatorMessage::Evaluate(job.clone()))?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Decides that the run is over.
    pub(super) fn end(&mut self, status: Status, cause: Option<String>) {
        if status == Status::Failed && !self.wiring.shutdown.has_begun() {
            self.close_arm("run_failed");
        }
        self.wiring.shutdown.begin();
        self.wiring.completed.close();
        self.wiring.scored.close();
        if let Some(cause) = &cause {
            let level = if status == Status::Failed { EventLevel::Error } else { EventLevel::Warning };
            self.record(Record::Event {
                arm: None,
                level,
                actor: "conductor",
                message: format!("the run ends: {cause}"),
            });
        }
        let summary = self.context.summary(status, cause, std::mem::take(&mut self.arms));
        for arm in &summary.arms {
            match serde_json::to_value(arm) {
                Ok(value) => self.record(Record::Summary { arm: arm.arm.clone(), summary: value }),
                Err(error) => self.context.emit(RunEvent::Note {
                    level: EventLevel::Error,
                    message: format!("the summary of arm {} cannot be written: {error}", arm.arm),
                }),
            }
        }
        self.context.settle(summary);
        self.phase = Phase::Ended;
    }

    /// When the run is over: waits for the recorder, then stops everybody.
    pub(super) async fn leave_when_ended(&mut self, myself: &ActorRef<ConductorMessage>) {
        if !matches!(self.phase, Phase::Ended) {
            return;
        }
        let flushed = self.crew.recorder.call(RecorderMessage::Flush, Some(FLUSH_PATIENCE)).await;
        let unrecorded = match flushed {
            Ok(ractor::rpc::CallResult::Success(Ok(()))) => None,
            Ok(ractor::rpc::CallResult::Success(Err(cause))) => Some(cause),
            Ok(ractor::rpc::CallResult::Timeout) => Some("the recorder did not finish in time".to_string()),
            Ok(ractor::rpc::CallResult::SenderError) | Err(_) => Some("the recorder is gone".to_string()),
        };
        self.context.unrecorded(unrecorded);
        self.wiring.records.close();
        self.crew.stop().await;
        myself.stop(None);
    }
}
