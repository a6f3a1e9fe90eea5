//! The order of a run: a state machine that says what is to be done next.
//!
//! [`Schedule::step`] takes what happened and returns what is to be done. It knows no actor, no store and no clock, and
//! holds no tensor. The time comes with each input. Its state is plain data that can be written down and read back.
//! `conductor` is the executor around it.
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
//! - [`outline`]: what it knows of the plan, and the [`Cursor`] that says where in it a run stands;
//! - [`phase`]: what is going on; [`command`]: what is to be done;
//! - `phases`: what begins each phase and what comes after; `offline`: those of datasets; `overlap`: what is sampled
//!   while the learner trains; `sampling_metrics`: a sampling phase in numbers;
//! - `ending`: deaths, interruptions, and the end of a run.
//!
//! An actor that dies is started again, a limited number of times, if its work can be repeated. The learner and the
//! recorder own state, so theirs cannot. Otherwise the run ends with the cause.

pub mod command;
mod ending;
mod offline;
pub mod outline;
mod overlap;
pub mod phase;
mod phases;
mod sampling_metrics;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use arriero_buffers::Address;
use arriero_results::{ArmSummary, Evaluation};
use arriero_store::EventLevel;
use serde::{Deserialize, Serialize};

use crate::event::{PhaseKind, RunEvent};
use crate::interruption::Interruption;
use crate::record::Record;
use crate::report::{News, Report};
use crate::role::ActorRole;
pub use command::Command;
use offline::DatasetPosition;
pub use outline::{Cursor, Outline};
use outline::{TrainingOutline, Work};
pub use phase::Phase;
use phase::SamplingPhase;

/// How often the progress of a phase is recorded: so often that people see it move.
const RECORDED_PARTS: u64 = 20;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Input {
    /// The actors are there.
    Start,
    /// An actor reports.
    Report(Report),
    /// An actor died.
    Died {
        /// Which.
        role: ActorRole,
        /// Of what.
        cause: String,
    },
    /// An actor that died could not be started again.
    NotRestarted {
        /// Which.
        role: ActorRole,
        /// Why.
        cause: String,
    },
    /// Somebody asks the run to end.
    Interrupt(Interruption),
}

/// A run's order: an outline, and how far the run has come in it.
#[derive(Debug, Clone)]
pub struct Schedule {
    outline: Arc<Outline>,
    state: State,
    /// The time of the input in hand, in seconds of the run.
    now: f64,
    /// What the input in hand has led to by now.
    commands: Vec<Command>,
}

/// How far a run has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    phase: Phase,
    /// The phase as the record has it. The evaluation of a baseline and that of an arm are two kinds there.
    shown: Option<ShownPhase>,
    /// What is sampled for the stage that comes next, while the learner trains.
    ahead: Option<Box<SamplingPhase>>,
    cursor: Cursor,
    /// How far the running stage has come with its dataset, if it has one.
    position: DatasetPosition,
    progress: ArmProgress,
    baseline: Option<Evaluation>,
    /// What sampling from the initial weights cost, for arms that find it done.
    seconds_per_initial_token: f64,
    arms: Vec<ArmSummary>,
    /// How often an actor was started again without getting anything done since.
    restarts: BTreeMap<ActorRole, u32>,
    /// Whether the run is to end early.
    is_ending: bool,
}

/// A phase that has begun, as it is recorded and shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ShownPhase {
    address: Address,
    kind: PhaseKind,
    part: u64,
    done: u64,
    total: u64,
}

/// Figures of the arm that is running.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct ArmProgress {
    version: u32,
    tokens_sampled: u64,
    tokens_trained: u64,
    seconds: f64,
    dropped: BTreeMap<String, u64>,
    /// Trees of all rounds so far, of stages that learn from those.
    kept: BTreeMap<Arc<str>, u64>,
    is_checkpointed: bool,
}

impl Schedule {
    /// The order of a run that has not begun.
    pub fn new(outline: Outline) -> Self {
        let state = State {
            phase: Phase::Idle,
            shown: None,
            ahead: None,
            cursor: outline.first(),
            position: DatasetPosition::default(),
            progress: ArmProgress::default(),
            baseline: None,
            seconds_per_initial_token: 0.0,
            arms: Vec::new(),
            restarts: BTreeMap::new(),
            is_ending: false,
        };
        Schedule { outline: Arc::new(outline), state, now: 0.0, commands: Vec::new() }
    }

    /// The order of a run that has come this far.
    ///
    /// # Errors
    /// If the state is of another outline.
    pub fn restore(outline: Outline, state: State) -> Result<Self, String> {
        let sampling = [state.ahead.as_deref(), state.sampling_now()].into_iter().flatten();
        let cursors: Vec<Cursor> = sampling.map(|sampling| sampling.cursor).chain([state.cursor]).collect();
        if let Some(cursor) = cursors.into_iter().find(|cursor| !outline.has(*cursor)) {
            return Err(format!("the state stands at {cursor:?}, which the experiment does not have"));
        }
        Ok(Schedule { outline: Arc::new(outline), state, now: 0.0, commands: Vec::new() })
    }

    /// How far the run has come.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The plan, as far as the order depends on it.
    pub fn outline(&self) -> &Outline {
        &self.outline
    }

    /// Whether groups are sampled for this stage, now or ahead.
    pub fn samples_for(&self, address: &Address) -> bool {
        let samplings = [self.state.sampling_now(), self.state.ahead.as_deref()];
        samplings.into_iter().flatten().any(|sampling| sampling.address == *address)
    }

    /// What is going on.
    pub fn phase(&self) -> &Phase {
        &self.state.phase
    }

    /// True when the run is over.
    pub fn has_ended(&self) -> bool {
        matches!(self.state.phase, Phase::Ended)
    }

    /// What is to be done after `input`, which comes `now` seconds after the run began.
    pub fn step(&mut self, now: f64, input: Input) -> Vec<Command> {
        if self.has_ended() {
            return Vec::new();
        }
        self.now = now;
        match input {
            Input::Start => self.start(),
            Input::Interrupt(by) => self.interrupt(by),
            Input::Died { role, cause } => self.died(role, &cause),
            Input::NotRestarted { role, cause } => {
                self.fail(format!("the {} could not be started again: {cause}", role.as_str()));
            }
            Input::Report(Report { news: News::Failed { role, cause }, .. }) => {
                self.fail(format!("the {} failed: {cause}", role.as_str()));
            }
            Input::Report(report) if self.state.is_ending => self.report_at_the_end(report),
            Input::Report(report) => self.report(report),
        }
        std::mem::take(&mut self.commands)
    }

    /// Acts on news of the work that goes on. News of work that is over changes nothing.
    fn report(&mut self, report: Report) {
        let Report { address, news } = report;
        if self.state.sampling_at(&address).is_some() {
            return self.report_of_sampling(&address, news);
        }
        if self.state.phase.address() != Some(&address) {
            return;
        }
        match news {
            News::Begun => self.begin_stage(),
            News::Reading { trees } => self.have_read_some(trees),
            News::Read(portion) => {
                self.state.restarts.remove(&ActorRole::DataReader);
                self.have_read(&portion);
            }
            News::Unscored { causes } => self.unscored(&address, &causes),
            News::ReferenceScored => {
                self.state.restarts.remove(&ActorRole::Reference);
                self.reference_scored();
            }
            News::Referenced => self.referenced(),
            News::Taken => self.look_ahead(),
            News::Stepped { version, metrics, tokens, seconds } => {
                self.stepped(version, metrics, tokens, seconds);
            }
            News::Trained { version } => {
                self.state.progress.version = version;
                self.after_portion();
            }
            News::Averaged { version, seconds } => {
                self.state.progress.version = version;
                self.state.progress.seconds += seconds;
                self.advance();
            }
            News::Evaluating { done, total, tokens, seconds } => {
                let rate = (seconds > 0.0 && tokens > 0).then(|| tokens as f64 / seconds);
                self.progress(done, total, None, rate);
            }
            News::Evaluated(evaluation) => {
                self.state.restarts.remove(&ActorRole::Evaluator);
                self.evaluated(*evaluation);
            }
            News::Checkpointed { directory, version, state } => self.checkpointed(&directory, version, state),
            News::Sampling { .. }
            | News::Sampled { .. }
            | News::Scored(_)
            | News::Accepted { .. }
            | News::Dropped { .. }
            | News::Failed { .. } => {}
        }
    }

    fn report_of_sampling(&mut self, address: &Address, news: News) {
        let seconds_per_token = self.state.seconds_per_initial_token;
        let restarts = &mut self.state.restarts;
        match &news {
            News::Sampled { .. } => drop(restarts.remove(&ActorRole::Generator)),
            News::Scored(_) => {
                restarts.remove(&ActorRole::RewardWorker);
                restarts.remove(&ActorRole::RejectionSampler);
            }
            News::Dropped { .. } => drop(restarts.remove(&ActorRole::RewardWorker)),
            News::Unscored { causes } => return self.unscored(address, &causes.clone()),
            _ => {}
        }
        let Some(sampling) = self.state.sampling_at(address) else { return };
        match news {
            News::Sampling { tokens, seconds } => sampling.metrics.sampled(tokens, seconds),
            News::Sampled { tokens, reused, seconds } => {
                sampling.metrics.reused(reused, seconds_per_token);
                sampling.metrics.sampled(tokens, seconds);
                sampling.is_sampled = true;
            }
            News::Scored(group) => return sampling.metrics.add(&group),
            // A group counts once. It is reported twice if an actor dies between its report and the end of its lease.
            News::Accepted { prompt_id, version } => {
                sampling.outcomes.insert(prompt_id, phase::GroupOutcome::Accepted(version));
            }
            News::Dropped { prompt_id, reason } => {
                sampling.outcomes.insert(prompt_id, phase::GroupOutcome::Dropped(reason));
            }
            _ => return,
        }
        self.sampling_progress();
        self.end_sampling();
    }

    /// The stage where the run stands, if an algorithm trains in it.
    fn training(&self, cursor: Cursor) -> Option<&TrainingOutline> {
        match &self.outline.stage(cursor).work {
            Work::Train(training) => Some(training),
            Work::Average { .. } => None,
        }
    }

    fn address(&self) -> Address {
        self.outline.address(self.state.cursor)
    }

    fn record(&mut self, record: Record) {
        self.commands.push(Command::Record(record));
    }

    fn show(&mut self, event: RunEvent) {
        self.commands.push(Command::Show(event));
    }

    /// Tells the spectator and the record of something that concerns the whole run.
    fn note(&mut self, level: EventLevel, actor: &'static str, message: String) {
        self.record(Record::Event { address: None, level, actor, message: message.clone() });
        self.show(RunEvent::Note { level, message });
    }

    /// Tells how far the phase is.
    fn progress(&mut self, done: u64, total: u64, reward: Option<f64>, rate: Option<f64>) {
        self.have_done(done);
        self.show(RunEvent::Progress { done, total, reward, rate });
    }

    /// Notes how far the phase is, and records it whenever another twentieth is done.
    fn have_done(&mut self, done: u64) {
        let Some(shown) = &mut self.state.shown else { return };
        let part_of = |done: u64| done * RECORDED_PARTS / shown.total.max(1);
        let is_recorded = part_of(done) > part_of(shown.done) && done < shown.total;
        shown.done = done;
        if is_recorded {
            let ShownPhase { address, kind, part, done, total } = shown.clone();
            self.record(Record::Phase { address, kind, part, done, total, is_over: false });
        }
    }

    /// Tells the spectator and the record that a phase begins, and that the one before is over.
    fn enter(&mut self, kind: PhaseKind, address: Address, total: u64) {
        self.leave();
        let in_rounds = kind.is_of_a_round();
        let rounds = self.outline.arm(self.state.cursor).rounds;
        let place = if in_rounds {
            format!(" of {}, round {}", address.stage, address.round + 1)
        } else {
            String::new()
        };
        self.record(Record::Event {
            address: (kind != PhaseKind::Baseline).then(|| address.clone()),
            level: EventLevel::Info,
            actor: "conductor",
            message: format!("{}{place} begins, {total} to do", kind.as_str()),
        });
        let part = if in_rounds { self.state.position.portions } else { 0 };
        let (done, is_over) = (0, false);
        self.record(Record::Phase { address: address.clone(), kind, part, done, total, is_over });
        self.show(RunEvent::Phase {
            kind,
            arm: address.arm.to_string(),
            round: (in_rounds && rounds > 1).then_some(address.round as usize + 1),
            stage: address.stage.to_string(),
            total,
        });
        self.state.shown = Some(ShownPhase { address, kind, part, done, total });
    }

    fn leave(&mut self) {
        if let Some(ShownPhase { address, kind, part, done, total }) = self.state.shown.take() {
            self.record(Record::Phase { address, kind, part, done, total, is_over: true });
        }
    }
}

impl State {
    fn sampling_now(&self) -> Option<&SamplingPhase> {
        match &self.phase {
            Phase::Sampling(sampling) => Some(sampling),
            _ => None,
        }
    }

    /// The sampling of this address, now or ahead.
    fn sampling_at(&mut self, address: &Address) -> Option<&mut SamplingPhase> {
        let now = match &mut self.phase {
            Phase::Sampling(sampling) => Some(sampling),
            _ => None,
        };
        let both = [now, self.ahead.as_mut()].into_iter().flatten();
        both.map(|sampling| &mut **sampling).find(|sampling| sampling.address == *address)
    }
}
