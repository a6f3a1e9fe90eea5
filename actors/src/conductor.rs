//! The conductor: the plan, and the supervisor of everybody else.
//!
//! It is a state machine. A [`Phase`] begins with messages to those who work in it and ends with
//! their reply, whereupon [`ConductorState::advance`] decides what comes next:
//!
//! ```text
//! baseline evaluation
//! each arm:    begin
//!   each round, each stage:    sampling → (reference) → training
//!   evaluation → checkpoint
//! ```
//!
//! An actor that dies is started again where its work can be repeated (everybody but the learner and
//! the recorder, who own state), a limited number of times; otherwise the run ends with the cause.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arriero_store::EventLevel;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};

use crate::crew::Crew;
use crate::evaluator::{Evaluation, EvaluationJob, EvaluatorMessage};
use crate::event::{PhaseKind, RunEvent};
use crate::experiment::{Arm, Stage};
use crate::faults::Role;
use crate::generator::{GenerationJob, GeneratorMessage};
use crate::learner::{CheckpointJob, LearnerMessage, TrainingJob};
use crate::recorder::{Record, RecorderMessage};
use crate::reference::{ReferenceJob, ReferenceMessage};
use crate::rejection_sampler::{GroupSummary, RejectionSamplerMessage, SelectionJob};
use crate::run::RunContext;
use crate::sampling_metrics::SamplingMetrics;
use crate::summary::{ArmSummary, Status, change, held_out};
use crate::wiring::Wiring;

/// Times that an actor may be started again without getting anything done in between.
const RESTARTS: u32 = 3;

/// How long the recorder may take to write what waits when a run ends.
const FLUSH_PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub(crate) enum ConductorMessage {
    /// Begin the run.
    Start,
    /// The learner is back at the initial weights.
    Begun,
    /// Tokens sampled so far in this phase.
    Sampling { tokens: u64, seconds: f64 },
    /// The generator has delivered every group.
    /// `reused` tokens were sampled for an earlier arm.
    Generated { tokens: u64, reused: u64, seconds: f64 },
    /// A group was scored.
    Scored(GroupSummary),
    /// Its tree is in the buffer.
    Accepted { prompt_id: u64 },
    /// It will not be used.
    Dropped { prompt_id: u64, reason: &'static str },
    /// The reference scored a tree.
    ReferenceScored,
    /// The reference has scored all trees.
    Referenced,
    /// The learner took a step.
    Stepped { metrics: BTreeMap<String, f64>, tokens: u64, seconds: f64 },
    /// The learner is through; the weights are published.
    Trained { version: u32 },
    /// Held-out responses so far.
    Evaluating { done: u64, tokens: u64, seconds: f64 },
    /// The evaluation is complete.
    Evaluated(Box<Evaluation>),
    /// The weights are on disk.
    Checkpointed { directory: PathBuf, version: u32, state: serde_json::Value },
    /// An actor cannot do what it was asked to.
    Failed { role: Role, cause: String },
    /// Ctrl-c.
    Interrupt,
}

/// What is going on, with what it takes to begin it again for an actor that was restarted.
enum Phase {
    Idle,
    Evaluating(EvaluationJob),
    Beginning,
    Sampling(Box<SamplingPhase>),
    Referencing { job: ReferenceJob, total: u64, done: u64, began: Instant },
    Training { done: u64, trees: usize },
    Checkpointing { then: AfterCheckpoint },
    Ended,
}

enum AfterCheckpoint {
    NextArm,
    End(Status),
}

struct SamplingPhase {
    job: GenerationJob,
    selection: SelectionJob,
    needs_reference: bool,
    metrics: SamplingMetrics,
    /// What became of each prompt's group: `None` is accepted.
    outcomes: BTreeMap<u64, Option<&'static str>>,
    generated: bool,
}

/// Figures of the arm that is running.
#[derive(Default)]
struct ArmProgress {
    version: u32,
    tokens_sampled: u64,
    tokens_trained: u64,
    seconds: f64,
    dropped: BTreeMap<String, u64>,
    checkpointed: bool,
}

#[derive(Default)]
pub(crate) struct Conductor;

pub(crate) struct ConductorState {
    context: RunContext,
    wiring: Wiring,
    crew: Crew,
    roles: HashMap<ActorId, Role>,
    restarts: BTreeMap<Role, u32>,
    phase: Phase,
    arm: usize,
    round: usize,
    stage: usize,
    progress: ArmProgress,
    baseline: Option<Evaluation>,
    /// What sampling from the initial weights cost, for arms that find it done.
    seconds_per_initial_token: f64,
    arms: Vec<ArmSummary>,
}

impl Actor for Conductor {
    type Msg = ConductorMessage;
    type State = ConductorState;
    type Arguments = RunContext;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        context: RunContext,
    ) -> Result<Self::State, ActorProcessingErr> {
        let wiring = context.wiring(myself.clone());
        let (crew, roles) = Crew::assemble(&context, &wiring, &myself).await?;
        myself.cast(ConductorMessage::Start)?;
        Ok(ConductorState {
            context,
            wiring,
            crew,
            roles,
            restarts: BTreeMap::new(),
            phase: Phase::Idle,
            arm: 0,
            round: 0,
            stage: 0,
            progress: ArmProgress::default(),
            baseline: None,
            seconds_per_initial_token: 0.0,
            arms: Vec::new(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if matches!(state.phase, Phase::Ended) {
            return Ok(());
        }
        match message {
            ConductorMessage::Interrupt => state.interrupt(),
            ConductorMessage::Failed { role, cause } => {
                state.end(Status::Failed, Some(format!("the {} failed: {cause}", role.as_str())));
            }
            message => {
                // Only a message to an actor that has just died can fail; its death is on the way, too.
                if let Err(error) = state.proceed(message) {
                    state.end(Status::Failed, Some(one_line(&error.to_string())));
                }
            }
        }
        state.leave_when_ended(&myself).await;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let (who, cause) = match event {
            SupervisionEvent::ActorFailed(who, error) => (who, error.to_string()),
            SupervisionEvent::ActorTerminated(who, _, reason) => {
                (who, reason.unwrap_or_else(|| "it stopped without being asked to".to_string()))
            }
            _ => return Ok(()),
        };
        let Some(role) = state.roles.remove(&who.get_id()) else { return Ok(()) };
        if matches!(state.phase, Phase::Ended) {
            return Ok(());
        }
        state.bury(role, one_line(&cause), &myself).await;
        state.leave_when_ended(&myself).await;
        Ok(())
    }
}

impl ConductorState {
    fn proceed(&mut self, message: ConductorMessage) -> Result<(), ActorProcessingErr> {
        if self.wiring.shutdown.has_begun() {
            // Whatever else was under way when ctrl-c came does not begin anything new.
            if let ConductorMessage::Checkpointed { directory, version, state } = message {
                self.checkpointed(directory, version, state)?;
            }
            return Ok(());
        }
        match message {
            ConductorMessage::Start => self.evaluate(0)?,
            ConductorMessage::Begun => self.sample()?,
            ConductorMessage::Sampling { tokens, seconds } => self.report_sampling(tokens, seconds, false)?,
            ConductorMessage::Generated { tokens, reused, seconds } => {
                self.restarts.remove(&Role::Generator);
                if let Phase::Sampling(sampling) = &mut self.phase {
                    sampling.metrics.reused(reused, self.seconds_per_initial_token);
                }
                self.report_sampling(tokens, seconds, true)?;
            }
            ConductorMessage::Scored(group) => {
                self.restarts.remove(&Role::RewardWorker);
                self.restarts.remove(&Role::RejectionSampler);
                if let Phase::Sampling(sampling) = &mut self.phase {
                    sampling.metrics.add(&group);
                }
            }
            ConductorMessage::Accepted { prompt_id } => self.settle(prompt_id, None)?,
            ConductorMessage::Dropped { prompt_id, reason } => {
                self.restarts.remove(&Role::RewardWorker);
                self.settle(prompt_id, Some(reason))?;
            }
            ConductorMessage::ReferenceScored => {
                self.restarts.remove(&Role::Reference);
                if let Phase::Referencing { total, done, .. } = &mut self.phase {
                    *done += 1;
                    let event = RunEvent::Progress { done: *done, total: *total, reward: None, rate: None };
                    self.context.emit(event);
                }
            }
            ConductorMessage::Referenced => {
                if let Phase::Referencing { began, .. } = &self.phase {
                    self.progress.seconds += began.elapsed().as_secs_f64();
                    self.train()?;
                }
            }
            ConductorMessage::Stepped { metrics, tokens, seconds } => {
                self.report_step(&metrics, tokens, seconds);
            }
            ConductorMessage::Trained { version } => {
                self.progress.version = version;
                self.advance()?;
            }
            ConductorMessage::Evaluating { done, tokens, seconds } => {
                if let Phase::Evaluating(job) = &self.phase {
                    let total = job.prompts.len() as u64;
                    let rate = (seconds > 0.0).then(|| tokens as f64 / seconds);
                    self.context.emit(RunEvent::Progress { done, total, reward: None, rate });
                }
            }
            ConductorMessage::Evaluated(evaluation) => {
                self.restarts.remove(&Role::Evaluator);
                self.evaluated(*evaluation)?;
            }
            ConductorMessage::Checkpointed { directory, version, state } => {
                self.checkpointed(directory, version, state)?;
            }
            ConductorMessage::Failed { .. } | ConductorMessage::Interrupt => {}
        }
        Ok(())
    }

    fn current_arm(&self) -> &Arm {
        &self.context.plan.arms[self.arm]
    }

    fn current_stage(&self) -> &Stage {
        &self.current_arm().stages[self.stage]
    }

    fn record(&self, record: Record) {
        if let Err(cause) = self.wiring.push(&self.wiring.records, record) {
            self.context.emit(RunEvent::Note { level: EventLevel::Error, message: cause });
        }
    }

    fn note(&self, level: EventLevel, actor: &'static str, message: String) {
        self.record(Record::Event { arm: None, level, actor, message: message.clone() });
        self.context.emit(RunEvent::Note { level, message });
    }

    fn enter(&self, kind: PhaseKind, total: u64) {
        let arm = if kind == PhaseKind::Baseline { String::new() } else { self.current_arm().name.clone() };
        let round = (self.current_arm().rounds > 1).then_some(self.round + 1);
        let stage = self.current_stage().name.clone();
        self.context.emit(RunEvent::Phase { kind, arm, round, stage, total });
    }

    /// The first thing to do after a stage's training.
    fn advance(&mut self) -> Result<(), ActorProcessingErr> {
        self.stage += 1;
        if self.stage == self.current_arm().stages.len() {
            self.stage = 0;
            self.round += 1;
        }
        if self.round < self.current_arm().rounds {
            return self.sample();
        }
        // Names of the arm's last stage label what follows.
        self.stage = self.current_arm().stages.len() - 1;
        self.round = self.current_arm().rounds - 1;
        self.evaluate(self.progress.version)
    }

    fn evaluate(&mut self, version: u32) -> Result<(), ActorProcessingErr> {
        let prompts = Arc::clone(&self.context.held_out);
        let kind = if self.baseline.is_none() { PhaseKind::Baseline } else { PhaseKind::Evaluation };
        self.enter(kind, prompts.len() as u64);
        let job = EvaluationJob { version, prompts };
        self.crew.evaluator.cast(EvaluatorMessage::Evaluate(job.clone()))?;
        self.phase = Phase::Evaluating(job);
        Ok(())
    }

    fn begin_arm(&mut self) -> Result<(), ActorProcessingErr> {
        (self.round, self.stage) = (0, 0);
        self.progress = ArmProgress::default();
        self.crew.learner.cast(LearnerMessage::Begin)?;
        self.phase = Phase::Beginning;
        Ok(())
    }

    fn sample(&mut self) -> Result<(), ActorProcessingErr> {
        let needs = self.current_stage().algorithm.objective().needs();
        let prompts = self.context.round_prompts(self.round);
        self.enter(PhaseKind::Sampling, prompts.len() as u64);
        let job = GenerationJob::new(self.progress.version, prompts);
        let selection = SelectionJob {
            version: self.progress.version,
            rule: needs.selection,
            arm: self.current_arm().name.clone(),
            stage: self.current_stage().name.clone(),
            round: self.round as u64,
        };
        self.crew.rejection_sampler.cast(RejectionSamplerMessage::Use(selection.clone()))?;
        self.crew.generator.cast(GeneratorMessage::Generate(job.clone()))?;
        self.phase = Phase::Sampling(Box::new(SamplingPhase {
            job,
            selection,
            needs_reference: needs.reference,
            metrics: SamplingMetrics::default(),
            outcomes: BTreeMap::new(),
            generated: false,
        }));
        Ok(())
    }

    fn report_sampling(&mut self, tokens: u64, seconds: f64, last: bool) -> Result<(), ActorProcessingErr> {
        let Phase::Sampling(sampling) = &mut self.phase else { return Ok(()) };
        sampling.metrics.sampled(tokens, seconds);
        sampling.generated |= last;
        self.sampling_progress();
        self.end_sampling()
    }

    fn sampling_progress(&self) {
        let Phase::Sampling(sampling) = &self.phase else { return };
        self.context.emit(RunEvent::Progress {
            done: sampling.outcomes.len() as u64,
            total: sampling.job.prompts.len() as u64,
            reward: sampling.metrics.mean_reward(),
            rate: sampling.metrics.tokens_per_second(),
        });
    }

    /// Notes what became of a group. A group that is reported twice, because an actor died between
    /// its report and the end of its lease, counts once.
    fn settle(&mut self, prompt_id: u64, dropped: Option<&'static str>) -> Result<(), ActorProcessingErr> {
        let Phase::Sampling(sampling) = &mut self.phase else { return Ok(()) };
        sampling.outcomes.insert(prompt_id, dropped);
        self.sampling_progress();
        self.end_sampling()
    }

    fn end_sampling(&mut self) -> Result<(), ActorProcessingErr> {
        let Phase::Sampling(sampling) = &mut self.phase else { return Ok(()) };
        if !sampling.generated || sampling.outcomes.len() < sampling.job.prompts.len() {
            return Ok(());
        }
        let mut reasons: BTreeMap<&'static str, u64> = BTreeMap::new();
        for reason in sampling.outcomes.values().copied().flatten() {
            *reasons.entry(reason).or_default() += 1;
        }
        let accepted = sampling.outcomes.values().filter(|outcome| outcome.is_none()).count() as u64;
        let metrics = sampling.metrics.finish(accepted, &reasons);
        let (tokens, seconds) = (sampling.metrics.tokens(), sampling.metrics.seconds());
        let needs_reference = sampling.needs_reference;
        if self.progress.version == 0 && self.arm == 0 && tokens > 0 {
            self.seconds_per_initial_token = seconds / tokens as f64;
        }
        let (arm, stage) = (sampling.selection.arm.clone(), sampling.selection.stage.clone());
        self.progress.tokens_sampled += tokens;
        self.progress.seconds += seconds;
        self.record(Record::Metrics {
            arm: arm.clone(),
            stage: "rejection_sampling".to_string(),
            step: self.progress.version.into(),
            metrics,
        });
        for (&reason, &count) in &reasons {
            *self.progress.dropped.entry(reason.to_string()).or_default() += count;
            self.record(Record::Drops { arm: arm.clone(), stage: stage.clone(), reason, count });
        }
        if accepted == 0 {
            let message = format!(
                "arm {arm}, stage {stage}: no group of this round is of use, so there is nothing to train on ({})",
                reasons
                    .iter()
                    .map(|(reason, count)| format!("{reason}: {count}"))
                    .collect::<Vec<_>>()
                    .join(", ")
            );
            self.note(EventLevel::Warning, "rejection sampler", message);
            return self.advance();
        }
        if needs_reference { self.reference(accepted) } else { self.train() }
    }

    fn reference(&mut self, total: u64) -> Result<(), ActorProcessingErr> {
        self.enter(PhaseKind::Reference, total);
        let job = ReferenceJob {
            arm: self.current_arm().name.clone(),
            stage: self.current_stage().name.clone(),
            round: self.round as u64,
        };
        self.crew.reference.cast(ReferenceMessage::Score(job.clone()))?;
        self.phase = Phase::Referencing { job, total, done: 0, began: Instant::now() };
        Ok(())
    }

    fn train(&mut self) -> Result<(), ActorProcessingErr> {
        let stage = self.current_stage().clone();
        let trees = self.wiring.buffer().len();
        let steps = stage.training.epochs * trees.div_ceil(stage.training.batch_size);
        self.enter(PhaseKind::Training, steps as u64);
        let job = TrainingJob { arm: self.current_arm().name.clone(), stage, round: self.round as u64 };
        self.crew.learner.cast(LearnerMessage::Train(Box::new(job)))?;
        self.phase = Phase::Training { done: 0, trees };
        Ok(())
    }

    fn report_step(&mut self, metrics: &BTreeMap<String, f64>, tokens: u64, seconds: f64) {
        let Phase::Training { done, .. } = &mut self.phase else { return };
        *done += 1;
        self.progress.version += 1;
        self.progress.tokens_trained += tokens;
        self.progress.seconds += seconds;
        let rate = (seconds > 0.0).then(|| tokens as f64 / seconds);
        let event = RunEvent::Step { done: *done, metrics: metrics.clone(), rate };
        self.context.emit(event);
    }

    fn evaluated(&mut self, evaluation: Evaluation) -> Result<(), ActorProcessingErr> {
        let figures = held_out(&evaluation);
        let mut metrics = BTreeMap::from([
            ("held_out/kl".to_string(), evaluation.kl),
            ("held_out/mean_length".to_string(), figures.mean_length),
            ("held_out/tokens_sampled".to_string(), evaluation.tokens as f64),
            ("seconds".to_string(), evaluation.seconds),
        ]);
        for (name, estimate) in [
            ("prompt_accuracy", figures.prompt_accuracy),
            ("instruction_accuracy", figures.instruction_accuracy),
            ("reward", figures.reward),
        ] {
            if let Some(estimate) = estimate {
                metrics.insert(format!("held_out/{name}"), estimate.value);
            }
        }
        let arms: Vec<String> = match &self.baseline {
            None => self.context.plan.arms.iter().map(|arm| arm.name.clone()).collect(),
            Some(_) => vec![self.current_arm().name.clone()],
        };
        for arm in arms {
            self.record(Record::Metrics {
                arm,
                stage: "evaluation".to_string(),
                step: evaluation.version.into(),
                metrics: metrics.clone(),
            });
        }
        self.context.emit(RunEvent::Evaluated { figures });
        if self.baseline.is_none() {
            self.baseline = Some(evaluation);
            return self.begin_arm();
        }
        self.progress.seconds += evaluation.seconds;
        let summary = self.summarise(Some(&evaluation));
        self.arms.extend(summary);
        self.checkpoint(AfterCheckpoint::NextArm)
    }

    /// The running arm in numbers; nothing before the baseline is known.
    fn summarise(&self, after: Option<&Evaluation>) -> Option<ArmSummary> {
        let baseline = self.baseline.as_ref()?;
        let arm = self.current_arm();
        Some(ArmSummary {
            arm: arm.name.clone(),
            stages: arm.stages.iter().map(|stage| stage.name.clone()).collect(),
            before: held_out(baseline),
            after: after.map(held_out),
            change: after.map(|after| change(baseline, after)),
            kl: after.map(|after| after.kl),
            tokens_sampled: self.progress.tokens_sampled,
            tokens_trained: self.progress.tokens_trained,
            steps: self.progress.version.into(),
            dropped: self.progress.dropped.clone(),
            seconds: self.progress.seconds,
            checkpoint: None,
        })
    }

    fn checkpoint(&mut self, then: AfterCheckpoint) -> Result<(), ActorProcessingErr> {
        let arm = self.current_arm().name.clone();
        let Some(root) = self.context.checkpoint_root(&arm) else {
            self.end(Status::Failed, Some(format!("there is no run folder of arm \"{arm}\"")));
            return Ok(());
        };
        let in_training = matches!(self.phase, Phase::Training { .. } | Phase::Evaluating(_));
        let state = serde_json::json!({
            "format": 1,
            "seed": self.context.plan.seed,
            "arm": arm,
            "round": self.round,
            "stage": self.stage,
            // A round's prompts are consumed when its training has begun.
            "prompts_consumed": (self.round + usize::from(in_training)) * self.context.plan.prompts.per_round(),
            "in_training": in_training,
        });
        let job = CheckpointJob { root, optimizer: self.context.plan.checkpoint.optimizer, state };
        self.enter(PhaseKind::Checkpoint, 1);
        self.crew.learner.cast(LearnerMessage::Checkpoint(job))?;
        self.phase = Phase::Checkpointing { then };
        Ok(())
    }

    fn checkpointed(
        &mut self,
        directory: PathBuf,
        version: u32,
        state: serde_json::Value,
    ) -> Result<(), ActorProcessingErr> {
        if !matches!(self.phase, Phase::Checkpointing { .. }) {
            return Ok(());
        }
        let Phase::Checkpointing { then } = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return Ok(());
        };
        let arm = self.current_arm().name.clone();
        self.progress.checkpointed = true;
        self.record(Record::Checkpoint {
            arm: arm.clone(),
            step: version.into(),
            path: directory.clone(),
            manifest: state,
        });
        if let Some(summary) = self.arms.iter_mut().find(|summary| summary.arm == arm) {
            summary.checkpoint = Some(directory.display().to_string());
            // After ctrl-c the learner has finished one more step than it had reported.
            summary.steps = version.into();
        }
        match then {
            AfterCheckpoint::End(status) => self.end(status, Some("ctrl-c".to_string())),
            AfterCheckpoint::NextArm => {
                self.context.emit(RunEvent::ArmDone { arm });
                if self.arm + 1 < self.context.plan.arms.len() {
                    self.arm += 1;
                    self.begin_arm()?;
                } else {
                    self.end(Status::Completed, None);
                }
            }
        }
        Ok(())
    }

    /// Ends the run after the unit of work in progress; what the running arm has learned is kept.
    fn interrupt(&mut self) {
        if self.wiring.shutdown.has_begun() {
            return;
        }
        let message = "ctrl-c: ending the run after the step in progress; ctrl-c again stops at once";
        self.note(EventLevel::Warning, "conductor", message.to_string());
        self.wiring.shutdown.begin();
        if let Phase::Checkpointing { then } = &mut self.phase {
            *then = AfterCheckpoint::End(Status::Interrupted);
            return;
        }
        self.close_arm("interrupted");
        // A first step that is under way will have been taken when the learner gets to the checkpoint.
        let has_learned = self.progress.version > 0 || matches!(self.phase, Phase::Training { .. });
        if has_learned && !self.progress.checkpointed {
            if self.checkpoint(AfterCheckpoint::End(Status::Interrupted)).is_err() {
                self.end(Status::Interrupted, Some("ctrl-c; the learner was gone already".to_string()));
            }
        } else {
            self.end(Status::Interrupted, Some("ctrl-c".to_string()));
        }
    }

    /// Counts the groups that the early end of the run leaves unused.
    fn count_unused(&mut self, reason: &'static str) {
        let trees = self.wiring.buffer().len();
        let count = match &self.phase {
            // A group is settled if it was dropped; accepted ones were to be trained on.
            Phase::Sampling(sampling) => {
                sampling.job.prompts.len() - sampling.outcomes.values().flatten().count()
            }
            Phase::Referencing { .. } => trees,
            Phase::Training { done, trees } => {
                let stage = &self.current_stage().training;
                trees.saturating_sub(*done as usize * stage.batch_size)
            }
            _ => 0,
        } as u64;
        if count > 0 {
            let (arm, stage) = (self.current_arm().name.clone(), self.current_stage().name.clone());
            *self.progress.dropped.entry(reason.to_string()).or_default() += count;
            self.record(Record::Drops { arm, stage, reason, count });
        }
    }

    /// Accounts for an arm that does not come to its end.
    fn close_arm(&mut self, reason: &'static str) {
        self.count_unused(reason);
        if let Phase::Sampling(sampling) = &self.phase {
            self.progress.tokens_sampled += sampling.metrics.tokens();
            self.progress.seconds += sampling.metrics.seconds();
        }
        let unfinished = self.arms.len() == self.arm && self.baseline.is_some();
        if unfinished {
            let summary = self.summarise(None);
            self.arms.extend(summary);
        }
    }

    /// Acts on an actor's death.
    async fn bury(&mut self, role: Role, cause: String, myself: &ActorRef<ConductorMessage>) {
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
            let cause = format!("the {name} died {restarts} times, the last time of: {cause}");
            return self.end(Status::Failed, Some(cause));
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
            self.end(Status::Failed, Some(format!("the {name} could not be started again: {error}")));
        }
    }

    /// Gives an actor that was restarted its part of the running phase.
    fn resume(&mut self, role: Role) -> Result<(), ActorProcessingErr> {
        match (role, &mut self.phase) {
            (Role::Generator, Phase::Sampling(sampling)) if !sampling.generated => {
                sampling.metrics.generator_restarted();
                self.crew.generator.cast(GeneratorMessage::Generate(sampling.job.clone()))?;
            }
            (Role::RejectionSampler, Phase::Sampling(sampling)) => {
                let message = RejectionSamplerMessage::Use(sampling.selection.clone());
                self.crew.rejection_sampler.cast(message)?;
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
    fn end(&mut self, status: Status, cause: Option<String>) {
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
    async fn leave_when_ended(&mut self, myself: &ActorRef<ConductorMessage>) {
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

/// Error texts of libtorch have a stack trace below their first lines.
fn one_line(text: &str) -> String {
    let text = text.split("Exception raised from").next().unwrap_or(text);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
