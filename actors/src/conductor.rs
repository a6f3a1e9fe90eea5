//! The conductor: the executor of the [`Schedule`], and the supervisor of everybody else.
//!
//! It turns reports, deaths and interruptions into inputs of the schedule. It does what the schedule commands: it adds
//! to each piece of work what the plan says of it, and sends it to the actor whose work it is.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arriero_buffers::{Address, ExperienceBuffer, Prompt, Queue};
use arriero_experiment::{ArmStage, Computes, Plan, Stage};
use arriero_policy::config::ModelConfig;
use arriero_policy::snapshot::{Snapshot, WeightCell};
use arriero_policy::tokenizer::Tokenizer;
use arriero_results::{ArmSummary, RunSummary, Status};
use arriero_store::{ArmStore, EventLevel};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};

use crate::context::{Context, RewardModelCell};
use crate::crew::Crew;
use crate::data_reader::DataReaderMessage;
use crate::evaluator::EvaluatorMessage;
use crate::event::RunEvent;
use crate::faults::Faults;
use crate::generator::GeneratorMessage;
use crate::groups::{InitialGroups, StageGroups};
use crate::job::{
    AverageJob, CheckpointJob, EvaluationJob, PortionJob, ReadingJob, ReferenceJob, SamplingJob,
    SamplingSettings, TrainingJob,
};
use crate::learner::LearnerMessage;
use crate::record::Record;
use crate::recorder::RecorderMessage;
use crate::reference::ReferenceMessage;
use crate::report::{News, Report};
use crate::role::ActorRole;
use crate::schedule::{Command, Cursor, Input, Outline, Schedule};
use crate::shutdown::Shutdown;

/// How long the recorder may take to write what waits when a run ends.
const FLUSH_PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone)]
pub(crate) enum ConductorMessage {
    /// Begin the run.
    Start,
    /// Somebody asks the run to end.
    Interrupt,
    /// An actor has news.
    Report(Report),
}

impl From<Report> for ConductorMessage {
    fn from(report: Report) -> Self {
        ConductorMessage::Report(report)
    }
}

impl TryFrom<ConductorMessage> for Report {
    type Error = ();

    fn try_from(message: ConductorMessage) -> Result<Self, ()> {
        match message {
            ConductorMessage::Report(report) => Ok(report),
            ConductorMessage::Start | ConductorMessage::Interrupt => Err(()),
        }
    }
}

/// What a run consists of when its actors start.
pub(crate) struct RunParts {
    pub plan: Arc<Plan>,
    pub outline: Outline,
    pub computes: Computes,
    /// The initial weights in f32 on the host, and as the learner computes with them.
    pub masters: Arc<Snapshot>,
    pub initial: Arc<Snapshot>,
    pub model: Arc<ModelConfig>,
    pub tokenizer: Tokenizer,
    /// The training prompts, in the order in which rounds take them.
    pub train: Vec<Arc<Prompt>>,
    pub held_out: Arc<Vec<Arc<Prompt>>>,
    /// By arm. They belong to the recorder.
    pub stores: BTreeMap<String, ArmStore>,
    pub faults: Faults,
    pub observer: Arc<dyn Fn(RunEvent) + Send + Sync>,
    pub began: Instant,
    /// Where the result is put.
    pub outcome: Arc<Mutex<Option<RunOutcome>>>,
}

/// How a run went.
pub(crate) struct RunOutcome {
    pub summary: RunSummary,
    /// Why the last records may be missing.
    pub unrecorded: Option<String>,
}

#[derive(Default)]
pub(crate) struct Conductor;

pub(crate) struct ConductorState {
    schedule: Schedule,
    context: Context,
    crew: Crew,
    roles: HashMap<ActorId, ActorRole>,
    /// What the generator has been asked to do last.
    sampling: Option<Arc<SamplingJob>>,
    train: Vec<Arc<Prompt>>,
    held_out: Arc<Vec<Arc<Prompt>>>,
    checkpoint_roots: BTreeMap<String, PathBuf>,
    observer: Arc<dyn Fn(RunEvent) + Send + Sync>,
    began: Instant,
    outcome: Arc<Mutex<Option<RunOutcome>>>,
}

impl Actor for Conductor {
    type Msg = ConductorMessage;
    type State = ConductorState;
    type Arguments = RunParts;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        parts: RunParts,
    ) -> Result<Self::State, ActorProcessingErr> {
        let RunParts { plan, outline, computes, masters, initial, model, tokenizer, stores, faults, .. } =
            parts;
        let capacity = plan.queue_capacity;
        let context = Context {
            model,
            tokenizer,
            sampled: Queue::bounded("sampled", capacity),
            scored: Queue::bounded("scored", capacity),
            records: Queue::bounded("records", capacity),
            buffer: Arc::new(Mutex::new(ExperienceBuffer::new(plan.buffer_capacity))),
            initial_groups: InitialGroups::default(),
            stage_groups: StageGroups::default(),
            reward_model: RewardModelCell::default(),
            weights: WeightCell::new(Arc::clone(&initial)),
            initial,
            computes,
            shutdown: Shutdown::default(),
            faults,
            conductor: myself.get_derived(),
            plan,
        };
        let root = |(arm, store): (&String, &ArmStore)| (arm.clone(), store.checkpoints().to_path_buf());
        let checkpoint_roots = stores.iter().map(root).collect();
        let (crew, roles) = Crew::assemble(&context, masters, stores, myself.get_cell()).await?;
        myself.cast(ConductorMessage::Start)?;
        Ok(ConductorState {
            schedule: Schedule::new(outline),
            context,
            crew,
            roles,
            sampling: None,
            train: parts.train,
            held_out: parts.held_out,
            checkpoint_roots,
            observer: parts.observer,
            began: parts.began,
            outcome: parts.outcome,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let input = match message {
            ConductorMessage::Start => Input::Start,
            ConductorMessage::Interrupt => Input::Interrupt,
            ConductorMessage::Report(report) => Input::Report(report),
        };
        state.step(&myself, input).await;
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
        if role == ActorRole::Recorder {
            // Nobody waits for a recorder that is gone.
            state.context.records.close();
        }
        state.step(&myself, Input::Died { role, cause: one_line(&cause) }).await;
        Ok(())
    }
}

impl ConductorState {
    /// Tells the schedule of something that happened, and does what it commands.
    async fn step(&mut self, myself: &ActorRef<ConductorMessage>, input: Input) {
        if self.schedule.has_ended() {
            return;
        }
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            for command in self.schedule.step(self.began.elapsed().as_secs_f64(), input) {
                inputs.extend(match command {
                    Command::Restart(role) => self.restart(role, myself).await,
                    command => self.execute(command),
                });
            }
        }
        if self.schedule.has_ended() {
            self.leave(myself).await;
        }
    }

    /// Does what the schedule commands. Returns what the schedule is to be told if it cannot be done. A message to an
    /// actor that has just died is lost. The schedule will hear of the death, and command the same again.
    fn execute(&mut self, command: Command) -> Option<Input> {
        match command {
            Command::Record(record) => self.record(record),
            Command::Show(event) => (self.observer)(event),
            Command::Evaluate { address, version } => {
                let job = EvaluationJob { address, version, prompts: Arc::clone(&self.held_out) };
                let _ = self.crew.evaluator.cast(EvaluatorMessage::Evaluate(job));
            }
            Command::BeginArm { address, cursor } => {
                let _ = self.crew.learner.cast(LearnerMessage::Begin { address, arm: cursor.arm() });
            }
            Command::Read { cursor, from, rows } => self.read(cursor, from, rows),
            Command::Sample { cursor, version, is_ahead } => self.sample(cursor, version, is_ahead),
            Command::Discard { prompts } => self.context.buffer().discard(&prompts),
            Command::ScoreReference { cursor, version, recorded } => {
                let job = ReferenceJob { address: self.address(cursor), version, recorded };
                let _ = self.crew.reference.cast(ReferenceMessage::Score(job));
            }
            Command::Train { cursor, portion } => self.train(cursor, portion),
            Command::Average { cursor } => {
                if let ArmStage::Average(stage) = self.stage(cursor) {
                    let job = AverageJob { address: self.address(cursor), stage: stage.clone() };
                    let _ = self.crew.learner.cast(LearnerMessage::Average(Box::new(job)));
                }
            }
            Command::Checkpoint { address, state } => {
                let Some(root) = self.checkpoint_roots.get(&*address.arm).cloned() else {
                    let cause = format!("there is no run folder of arm \"{}\"", address.arm);
                    let news = News::Failed { role: ActorRole::Learner, cause };
                    return Some(Input::Report(Report { address, news }));
                };
                let optimizer = self.context.plan.checkpoint.optimizer;
                let job = CheckpointJob { address, root, optimizer, state };
                let _ = self.crew.learner.cast(LearnerMessage::Checkpoint(job));
            }
            Command::Restart(_) => {}
            Command::Shutdown => self.context.shutdown.begin(),
            Command::End { status, cause, arms } => self.end(status, cause, arms),
        }
        None
    }

    fn stage(&self, cursor: Cursor) -> &ArmStage {
        &self.context.plan.arms[cursor.arm()].stages[cursor.stage()]
    }

    fn training(&self, cursor: Cursor) -> Option<&Stage> {
        self.stage(cursor).training()
    }

    fn address(&self, cursor: Cursor) -> Address {
        self.schedule.outline().address(cursor)
    }

    fn read(&self, cursor: Cursor, from: u64, rows: u64) {
        let Some(Stage { algorithm, training, data: Some(data), .. }) = self.training(cursor) else { return };
        let job = ReadingJob {
            address: self.address(cursor),
            data: Arc::clone(data),
            rule: algorithm.objective().needs().selection,
            algorithm: algorithm.clone(),
            from,
            rows,
            trees: data.portion(training.batch_size),
            budget: training.token_budget(&self.context.model, self.context.computes.learner),
        };
        let _ = self.crew.data_reader.cast(DataReaderMessage::Read(Box::new(job)));
    }

    fn sample(&mut self, cursor: Cursor, version: u32, is_ahead: bool) {
        let address = self.address(cursor);
        // A generator that was started again goes on with the groups that have not been delivered.
        let known = self.sampling.take().filter(|job| job.address == address);
        let Some(job) = known.or_else(|| self.sampling_job(cursor, version, is_ahead)) else { return };
        self.sampling = Some(Arc::clone(&job));
        let _ = self.crew.generator.cast(GeneratorMessage::Generate(job));
    }

    fn sampling_job(&self, cursor: Cursor, version: u32, is_ahead: bool) -> Option<Arc<SamplingJob>> {
        let (arm, stage) = (&self.context.plan.arms[cursor.arm()], self.training(cursor)?);
        let rule = stage.algorithm.objective().needs().selection;
        let (round, per_round) = (cursor.round() as usize, self.context.plan.prompts.per_round());
        self.context.stage_groups.forget(&stage.name);
        Some(Arc::new(SamplingJob {
            address: self.address(cursor),
            version,
            is_ahead,
            prompts: self.train.iter().skip(round * per_round).take(per_round).cloned().collect(),
            settings: SamplingSettings {
                generator: stage.generator.clone(),
                greedy_baseline: rule.wants_greedy(),
                rivals: rule.rivals(),
                scored_by: stage.reward,
            },
            samples_of: stage.samples_of.clone(),
            rule,
            bounds: stage.selection.clone(),
            algorithm: stage.algorithm.clone(),
            keep: arm.trainings().any(|(_, later)| later.samples_of.as_ref() == Some(&stage.name)),
            delivered: Mutex::default(),
        }))
    }

    fn train(&self, cursor: Cursor, portion: PortionJob) {
        let Some(stage) = self.training(cursor) else { return };
        let job = TrainingJob {
            address: self.address(cursor),
            stage: stage.clone(),
            rounds: self.context.plan.arms[cursor.arm()].rounds as u64,
            portion,
        };
        let _ = self.crew.learner.cast(LearnerMessage::Train(Box::new(job)));
    }

    fn record(&self, record: Record) {
        if let Err(message) = self.context.push(&self.context.records, record) {
            (self.observer)(RunEvent::Note { level: EventLevel::Error, message });
        }
    }

    /// Starts an actor again. Returns what the schedule is to be told if that fails.
    async fn restart(&mut self, role: ActorRole, myself: &ActorRef<ConductorMessage>) -> Option<Input> {
        match self.crew.restart(role, &self.context, myself.get_cell()).await {
            Ok(id) => {
                self.roles.insert(id, role);
                None
            }
            Err(error) => Some(Input::NotRestarted { role, cause: one_line(&error.to_string()) }),
        }
    }

    /// Lets nobody begin anything, and puts the result where the run finds it.
    fn end(&mut self, status: Status, cause: Option<String>, arms: Vec<ArmSummary>) {
        self.context.sampled.close();
        self.context.scored.close();
        for summary in &arms {
            let address = Address::new(summary.arm.as_str(), self.context.plan.seed, 0, "summary");
            match serde_json::to_value(summary) {
                Ok(summary) => self.record(Record::Summary { address, summary }),
                Err(error) => (self.observer)(RunEvent::Note {
                    level: EventLevel::Error,
                    message: format!("the summary of arm {} cannot be written: {error}", summary.arm),
                }),
            }
        }
        let summary = RunSummary {
            name: self.context.plan.name.clone(),
            status,
            cause,
            seed: self.context.plan.seed,
            model: self.context.plan.model.path.display().to_string(),
            compute: self.context.computes.to_string(),
            held_out: self.held_out.len(),
            seconds: self.began.elapsed().as_secs_f64(),
            arms,
        };
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(RunOutcome { summary, unrecorded: None });
    }

    /// Waits for the recorder, then stops everybody.
    async fn leave(&mut self, myself: &ActorRef<ConductorMessage>) {
        let flushed = self.crew.recorder.call(RecorderMessage::Flush, Some(FLUSH_PATIENCE)).await;
        let unrecorded = match flushed {
            Ok(ractor::rpc::CallResult::Success(Ok(()))) => None,
            Ok(ractor::rpc::CallResult::Success(Err(cause))) => Some(cause),
            Ok(ractor::rpc::CallResult::Timeout) => Some("the recorder did not finish in time".to_string()),
            Ok(ractor::rpc::CallResult::SenderError) | Err(_) => Some("the recorder is gone".to_string()),
        };
        if let Some(outcome) = &mut *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) {
            outcome.unrecorded = unrecorded;
        }
        self.context.records.close();
        self.crew.stop().await;
        myself.stop(None);
    }
}

/// Error texts of libtorch have a stack trace below their first lines.
fn one_line(text: &str) -> String {
    let text = text.split("Exception raised from").next().unwrap_or(text);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
