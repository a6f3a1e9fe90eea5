//! The conductor: the plan, and the supervisor of everybody else.
//!
//! It is a state machine. A [`Phase`] begins with messages to those who work in it and ends with
//! their reply, whereupon [`ConductorState::advance`] decides what comes next:
//!
//! ```text
//! baseline evaluation
//! each arm:    begin
//!   each round, each stage:    sampling → (reference) → training
//!     offline, each portion:   reading → (reference) → training
//!     or averaging
//!   evaluation → checkpoint
//! ```
//!
//! `phases` has the phases, `ahead` what is sampled while the learner trains, `offline` those of datasets, `ending` what happens when an actor dies or the run ends.
//!
//! An actor that dies is started again where its work can be repeated (everybody but the learner and
//! the recorder, who own state), a limited number of times; otherwise the run ends with the cause.

mod ahead;
mod ending;
mod offline;
mod phases;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Instant;

use arriero_buffers::Address;
use arriero_store::EventLevel;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};

use crate::crew::Crew;
use crate::data_reader::{Portion, ReadingJob};
use crate::evaluator::{Evaluation, EvaluationJob};
use crate::event::{PhaseKind, RunEvent};
use crate::experiment::{Arm, Stage};
use crate::faults::Role;
use crate::generator::GenerationJob;
use crate::recorder::Record;
use crate::reference::ReferenceJob;
use crate::rejection_sampler::{GroupSummary, SelectionJob};
use crate::run::RunContext;
use crate::sampling_metrics::SamplingMetrics;
use crate::summary::{ArmSummary, Status};
use crate::wiring::Wiring;
use offline::Pass;

#[derive(Debug)]
pub(crate) enum ConductorMessage {
    /// Begin the run.
    Start,
    /// The learner is back at the initial weights.
    Begun,
    /// A portion of a dataset is in the buffer.
    Read(Portion),
    /// Tokens sampled so far in this phase.
    Sampling { tokens: u64, seconds: f64 },
    /// The generator has delivered every group.
    /// `reused` tokens were sampled for an earlier arm.
    Generated { tokens: u64, reused: u64, seconds: f64 },
    /// A group was scored.
    Scored(GroupSummary),
    /// Completions that have no score, and why.
    Unscored { causes: Vec<String> },
    /// Its tree is in the buffer.
    Accepted { prompt_id: u64 },
    /// It will not be used.
    Dropped { prompt_id: u64, reason: &'static str },
    /// The reference scored a tree.
    ReferenceScored,
    /// The reference has scored all trees.
    Referenced,
    /// The learner has taken what the buffer held.
    Taken,
    /// The learner took a step; the policy's weights are of this version.
    Stepped { version: u32, metrics: BTreeMap<String, f64>, tokens: u64, seconds: f64 },
    /// The learner is through; the weights are published.
    Trained { version: u32 },
    /// The average is there, and published.
    Averaged { version: u32, seconds: f64 },
    /// Held-out responses so far.
    Evaluating { done: u64, total: u64, tokens: u64, seconds: f64 },
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
    Reading {
        job: ReadingJob,
    },
    Sampling(Box<SamplingPhase>),
    Referencing {
        job: ReferenceJob,
        total: u64,
        done: u64,
        began: Instant,
    },
    /// `fresh` of the trees are of this round.
    Training {
        done: u64,
        steps: u64,
        trees: usize,
        fresh: usize,
    },
    Averaging,
    Checkpointing {
        then: AfterCheckpoint,
    },
    Ended,
}

enum AfterCheckpoint {
    NextArm,
    /// The run is over, for this cause.
    End(Status, String),
}

struct SamplingPhase {
    job: GenerationJob,
    selection: SelectionJob,
    needs_reference: bool,
    metrics: SamplingMetrics,
    /// What became of each prompt's group: `None` is accepted.
    outcomes: BTreeMap<u64, Option<&'static str>>,
    generated: bool,
    /// Since when nothing else goes on, where the phase began while the learner was at work.
    waited_for: Option<Instant>,
    /// Completions without a score.
    unscored: usize,
}

/// Figures of the arm that is running.
#[derive(Default)]
struct ArmProgress {
    version: u32,
    tokens_sampled: u64,
    tokens_trained: u64,
    seconds: f64,
    dropped: BTreeMap<String, u64>,
    /// Trees of all rounds so far, of stages that learn from those.
    kept: BTreeMap<String, usize>,
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
    /// What is sampled while the learner trains: for the stage that comes next.
    ahead: Option<Box<SamplingPhase>>,
    arm: usize,
    round: usize,
    stage: usize,
    /// How far the running stage has come with its dataset, if it has one.
    pass: Pass,
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
            ahead: None,
            arm: 0,
            round: 0,
            stage: 0,
            pass: Pass::default(),
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
                state.fail(format!("the {} failed: {cause}", role.as_str()));
            }
            message => {
                // Only a message to an actor that has just died can fail; its death is on the way, too.
                if let Err(error) = state.proceed(message) {
                    state.fail(one_line(&error.to_string()));
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
            match message {
                ConductorMessage::Checkpointed { directory, version, state } => {
                    self.checkpointed(directory, version, state)?;
                }
                ConductorMessage::Stepped { tokens, seconds, .. } => self.count_last_step(tokens, seconds),
                _ => {}
            }
            return Ok(());
        }
        match message {
            ConductorMessage::Start => self.start()?,
            ConductorMessage::Begun => self.begin_stage()?,
            ConductorMessage::Read(portion) => {
                self.restarts.remove(&Role::DataReader);
                self.have_read(portion)?;
            }
            ConductorMessage::Sampling { tokens, seconds } => self.report_sampling(tokens, seconds, false)?,
            ConductorMessage::Generated { tokens, reused, seconds } => {
                self.restarts.remove(&Role::Generator);
                let seconds_per_token = self.seconds_per_initial_token;
                if let Some(sampling) = self.sampling() {
                    sampling.metrics.reused(reused, seconds_per_token);
                }
                self.report_sampling(tokens, seconds, true)?;
            }
            ConductorMessage::Scored(group) => {
                self.restarts.remove(&Role::RewardWorker);
                self.restarts.remove(&Role::RejectionSampler);
                if let Some(sampling) = self.sampling() {
                    sampling.metrics.add(&group);
                }
            }
            ConductorMessage::Unscored { causes } => self.unscored(&causes),
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
            ConductorMessage::Taken => self.look_ahead()?,
            ConductorMessage::Stepped { version, metrics, tokens, seconds } => {
                self.progress.version = version;
                self.report_step(&metrics, tokens, seconds);
                self.look_ahead()?;
            }
            ConductorMessage::Trained { version } => {
                self.progress.version = version;
                self.after_portion()?;
            }
            ConductorMessage::Averaged { version, seconds } => {
                self.progress.version = version;
                self.progress.seconds += seconds;
                self.advance()?;
            }
            ConductorMessage::Evaluating { done, total, tokens, seconds } => {
                if let Phase::Evaluating(_) = &self.phase {
                    let rate = (seconds > 0.0 && tokens > 0).then(|| tokens as f64 / seconds);
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

    /// The stage of the phases that sample and train.
    fn current_stage(&self) -> &Stage {
        let stage = self.current_arm().stages[self.stage].training();
        stage.expect("a stage that averages has no phase of sampling or training")
    }

    /// The place of a stage in a round of the running arm.
    fn address(&self, round: usize, stage: &str) -> Address {
        Address::new(self.current_arm().name.as_str(), self.context.plan.seed, round as u64, stage)
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
        let in_rounds = matches!(
            kind,
            PhaseKind::Reading
                | PhaseKind::Sampling
                | PhaseKind::Reference
                | PhaseKind::Training
                | PhaseKind::Averaging
        );
        let round = (in_rounds && self.current_arm().rounds > 1).then_some(self.round + 1);
        let stage = self.current_arm().stages[self.stage].name().to_string();
        let place = if in_rounds { format!(" of {stage}, round {}", self.round + 1) } else { String::new() };
        let message = format!("{}{place} begins, {total} to do", kind.as_str());
        self.record(Record::Event {
            arm: (kind != PhaseKind::Baseline).then(|| arm.clone()),
            level: EventLevel::Info,
            actor: "conductor",
            message,
        });
        self.context.emit(RunEvent::Phase { kind, arm, round, stage, total });
    }
}

/// Error texts of libtorch have a stack trace below their first lines.
fn one_line(text: &str) -> String {
    let text = text.split("Exception raised from").next().unwrap_or(text);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
