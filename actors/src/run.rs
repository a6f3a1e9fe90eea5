//! A run from its plan to its summary.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arriero_buffers::{ExperienceBuffer, Prompt, Queue};
use arriero_data::{DataError, Reason, RowError};
use arriero_eval::EvalError;
use arriero_policy::PolicyError;
use arriero_policy::average;
use arriero_policy::checkpoint::{Checkpoint, read_adapter};
use arriero_policy::config::ModelConfig;
use arriero_policy::device::Compute;
use arriero_policy::objective::{CriticKind, Statistics};
use arriero_policy::snapshot::{Snapshot, WeightCell};
use arriero_policy::teacher;
use arriero_policy::tokenizer::Tokenizer;
use arriero_reward::RewardError;
use arriero_store::{ArmStore, RunDir, StoreError};
use metrics_exporter_prometheus::PrometheusBuilder;
use ractor::{Actor, ActorRef};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::conductor::{Conductor, ConductorMessage};
use crate::devices::{self, Computes};
use crate::event::RunEvent;
use crate::examples;
use crate::experiment::{Arm, DataPlan, ExperimentError, Plan, PromptSet, Split, Stage};
use crate::faults::{Fault, Faults};
use crate::summary::{ArmSummary, RunSummary, Status};
use crate::wiring::{CurrentSelection, InitialGroups, RewardModelCell, Shutdown, StageGroups, Wiring};

/// How long the actors' threads may take to end after a run.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);

/// What is not part of the experiment.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// The folder that holds the runs.
    pub runs: PathBuf,
    /// Where to serve metrics in Prometheus' text format.
    pub metrics: Option<SocketAddr>,
    /// Faults to inject.
    pub faults: Vec<Fault>,
    /// End the run cleanly on ctrl-c.
    pub handle_ctrl_c: bool,
}

/// Why a run did not start, or did not complete.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The experiment is wrong.
    #[error(transparent)]
    Experiment(#[from] ExperimentError),
    /// The model cannot be used.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A prompt lacks what the reward needs.
    #[error(transparent)]
    Reward(#[from] RewardError),
    /// A dataset cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A suite of the evaluation cannot be asked.
    #[error(transparent)]
    Suite(#[from] EvalError),
    /// A stage cannot learn from its dataset.
    #[error("{0}")]
    TrainingData(String),
    /// A prompt cannot be used.
    #[error("{place}: {cause}")]
    Prompt {
        /// File and number, or which of the built-in prompts.
        place: String,
        /// Why.
        cause: Box<RunError>,
    },
    /// Too many prompts were skipped for the rounds.
    #[error(
        "{left} training prompts are left, but {rounds} rounds need at least {needed}; set prompts.per_round to less"
    )]
    FewPrompts {
        /// How many.
        left: usize,
        /// How many are needed.
        needed: usize,
        /// For how many rounds.
        rounds: usize,
    },
    /// The run cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The metrics cannot be served.
    #[error("metrics cannot be served on {address}: {cause}; choose another address with --metrics")]
    Metrics {
        /// Where.
        address: SocketAddr,
        /// Why.
        cause: String,
    },
    /// The runtime could not start.
    #[error("the actor runtime could not start: {0}")]
    Runtime(String),
    /// The run was under way and failed.
    #[error("{0}")]
    Failed(String),
}

impl RunError {
    /// True where nothing had begun: the input is wrong, not the run.
    pub fn is_input(&self) -> bool {
        matches!(
            self,
            RunError::Experiment(_)
                | RunError::Policy(_)
                | RunError::Reward(_)
                | RunError::Data(_)
                | RunError::Suite(_)
                | RunError::TrainingData(_)
                | RunError::Prompt { .. }
                | RunError::FewPrompts { .. }
                | RunError::Store(_)
                | RunError::Metrics { .. }
        )
    }
}

/// What the conductor is given.
#[derive(Clone)]
pub(crate) struct RunContext {
    pub plan: Arc<Plan>,
    pub computes: Computes,
    /// The initial weights in f32 on the host, and as the learner computes with them.
    pub masters: Arc<Snapshot>,
    pub initial: Arc<Snapshot>,
    pub held_out: Arc<Vec<Arc<Prompt>>>,
    /// Rows of the datasets of offline stages, by the numbers of arm and stage.
    pub rows: Arc<BTreeMap<(usize, usize), u64>>,
    /// What the run's spectator must know before anything happens.
    pub notes: Arc<Vec<String>>,
    train: Arc<Vec<Arc<Prompt>>>,
    model: Arc<ModelConfig>,
    tokenizer: Tokenizer,
    stores: Arc<Mutex<BTreeMap<String, ArmStore>>>,
    checkpoint_roots: Arc<BTreeMap<String, PathBuf>>,
    outcome: Arc<Mutex<Option<Outcome>>>,
    faults: Faults,
    observer: Arc<dyn Fn(RunEvent) + Send + Sync>,
    began: Instant,
}

/// How it went.
struct Outcome {
    summary: RunSummary,
    /// Why the last records may be missing.
    unrecorded: Option<String>,
}

impl RunContext {
    pub fn wiring(&self, conductor: ActorRef<ConductorMessage>) -> Wiring {
        let capacity = self.plan.queue_capacity;
        Wiring {
            plan: Arc::clone(&self.plan),
            model: Arc::clone(&self.model),
            tokenizer: self.tokenizer.clone(),
            completed: Queue::bounded("completed", capacity),
            scored: Queue::bounded("scored", capacity),
            records: Queue::bounded("records", capacity),
            buffer: Arc::new(Mutex::new(ExperienceBuffer::new(self.plan.buffer_capacity))),
            selection: CurrentSelection::default(),
            sampled_initially: InitialGroups::default(),
            sampled_for: StageGroups::default(),
            reward_model: RewardModelCell::default(),
            weights: WeightCell::new(Arc::clone(&self.initial)),
            initial: Arc::clone(&self.initial),
            computes: self.computes,
            shutdown: Shutdown::default(),
            faults: self.faults.clone(),
            conductor,
        }
    }

    pub fn emit(&self, event: RunEvent) {
        (self.observer)(event);
    }

    /// The stores, once: they belong to the recorder.
    pub fn take_stores(&self) -> BTreeMap<String, ArmStore> {
        std::mem::take(&mut *self.stores.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The prompts of a round: the next `per_round` of the stream.
    pub fn round_prompts(&self, round: usize) -> Vec<Arc<Prompt>> {
        let per_round = self.plan.prompts.per_round();
        self.train.iter().skip(round * per_round).take(per_round).cloned().collect()
    }

    pub fn checkpoint_root(&self, arm: &str) -> Option<PathBuf> {
        self.checkpoint_roots.get(arm).cloned()
    }

    pub fn summary(&self, status: Status, cause: Option<String>, arms: Vec<ArmSummary>) -> RunSummary {
        RunSummary {
            name: self.plan.name.clone(),
            status,
            cause,
            seed: self.plan.seed,
            model: self.plan.model.path.display().to_string(),
            compute: self.computes.to_string(),
            held_out: self.held_out.len(),
            seconds: self.began.elapsed().as_secs_f64(),
            arms,
        }
    }

    pub fn settle(&self, summary: RunSummary) {
        let outcome = Outcome { summary, unrecorded: None };
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    }

    pub fn unrecorded(&self, cause: Option<String>) {
        if let Some(outcome) = &mut *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) {
            outcome.unrecorded = cause;
        }
    }
}

/// Runs an experiment to its end. Everything that can be wrong with the input is found before
/// weights are loaded or anything is written.
///
/// # Errors
/// See [`RunError`]; of a run that was under way, the store holds what had happened.
pub fn run(
    plan: Plan,
    options: RunOptions,
    observer: impl Fn(RunEvent) + Send + Sync + 'static,
) -> Result<RunSummary, RunError> {
    let began = Instant::now();
    let (model, tokenizer) = Checkpoint::inspect(&plan.model.path)?;
    let tokenizer = match plan.model.path.is_file() {
        true => tokenizer.with_rule(plan.model.tokenizer),
        false => tokenizer, // a directory's tokenizer.json says how text is cut
    };
    if let Some(folder) = &plan.model.adapter {
        read_adapter(folder, &model)?;
    }
    let stages = plan.arms.iter().flat_map(Arm::trainings).map(|(_, stage)| stage);
    stages.filter_map(|stage| stage.training.lora.as_ref()).try_for_each(|lora| lora.check(&model))?;
    let stages = plan.arms.iter().flat_map(Arm::trainings).map(|(_, stage)| stage);
    for path in stages.filter_map(|stage| stage.algorithm.teacher()).collect::<BTreeSet<_>>() {
        teacher::check(path, &model, &tokenizer)?;
    }
    for path in plan.arms.iter().flat_map(Arm::averaged_paths) {
        average::check(path, &model, &tokenizer)?;
    }
    let computes = Computes::resolve(&plan.devices, plan.model.dtype)?;
    RunDir::check(&options.runs, &plan.name, needed_bytes(&plan, &model))?;
    let mut notes = Vec::new();
    let train = checked_prompts(&plan, Split::Train, &model, &tokenizer, &mut notes)?;
    let held_out = checked_prompts(&plan, Split::HeldOut, &model, &tokenizer, &mut notes)?;
    let rows = checked_rows(&plan)?;
    for suite in &plan.evaluation.suites {
        arriero_eval::Evaluation::check(suite, &tokenizer, model.max_positions)?;
    }
    if let Some(address) = options.metrics {
        serve_metrics(address)?;
    }

    let mut checkpoint = Checkpoint::open(&plan.model.path)?;
    if let Some(folder) = &plan.model.adapter {
        checkpoint = checkpoint.with_adapter(folder)?;
    }
    let masters = Snapshot::new(0, model.clone(), Compute::CPU_F32, checkpoint.weights);
    let initial = masters.in_precision(computes.learner);

    let directory = RunDir::create(&options.runs, &plan.name, &plan.resolved, needed_bytes(&plan, &model))?;
    let stores = match arm_stores(&directory, &plan) {
        Ok(stores) => stores,
        Err(error) => {
            // Nothing has run: the name stays free for the next try. The first error is the one to report.
            let _ = directory.remove();
            return Err(error.into());
        }
    };
    let root = |(arm, store): (&String, &ArmStore)| (arm.clone(), store.checkpoints().to_path_buf());
    let checkpoint_roots = stores.iter().map(root).collect();
    let outcome = Arc::default();
    let context = RunContext {
        plan: Arc::new(plan),
        computes,
        masters,
        initial,
        held_out: Arc::new(held_out),
        rows: Arc::new(rows),
        train: Arc::new(train),
        notes: Arc::new(notes),
        model: Arc::new(model),
        tokenizer,
        stores: Arc::new(Mutex::new(stores)),
        checkpoint_roots: Arc::new(checkpoint_roots),
        outcome: Arc::clone(&outcome),
        faults: Faults::new(options.faults),
        observer: Arc::new(observer),
        began,
    };
    context.emit(RunEvent::Started {
        directory: directory.path().display().to_string(),
        description: format!(
            "{}, {}{}",
            context.plan.model.path.display(),
            context.computes,
            devices::unused(&context.plan.devices)
        ),
    });
    if let Err(error) = conduct(context, options.handle_ctrl_c) {
        // No actor has worked: the name stays free for the next try.
        let _ = directory.remove();
        return Err(error);
    }

    let outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(Outcome { summary, unrecorded }) = outcome else {
        return Err(RunError::Failed("the conductor died; its panic message stands above".to_string()));
    };
    let value = serde_json::to_value(&summary).map_err(|error| RunError::Failed(error.to_string()))?;
    let name = &summary.name;
    directory.write_summary(&value).map_err(|error| {
        RunError::Failed(format!("run {name}: the summary could not be written: {error}"))
    })?;
    match (&summary.cause, unrecorded) {
        (Some(cause), _) if summary.status == Status::Failed => {
            Err(RunError::Failed(format!("run {}: {cause}", summary.name)))
        }
        (_, Some(cause)) => Err(RunError::Failed(format!(
            "run {}: the last records could not be written: {cause}",
            summary.name
        ))),
        _ => Ok(summary),
    }
}

/// Starts the conductor and waits until it is gone.
fn conduct(context: RunContext, handle_ctrl_c: bool) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| RunError::Runtime(error.to_string()))?;
    let result = runtime.block_on(async {
        // Listened to from the start: what comes before the conductor is there waits for it.
        let mut interrupts = if handle_ctrl_c { Some(Interrupts::listen()?) } else { None };
        let (conductor, finished) = Conductor::spawn(None, Conductor, context)
            .await
            .map_err(|error| RunError::Failed(format!("the actors could not start: {error}")))?;
        if let Some(mut interrupts) = interrupts.take() {
            tokio::spawn(async move {
                interrupts.next().await;
                let _ = conductor.cast(ConductorMessage::Interrupt);
                interrupts.next().await;
                // At once: the exit handlers of libraries would pull the ground from under threads that still compute.
                signal_hook::low_level::exit(130);
            });
        }
        let _ = finished.await;
        Ok(())
    });
    runtime.shutdown_timeout(LEAVE_PATIENCE);
    result
}

/// Ctrl-c, and the request to end that service managers send.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn listen() -> Result<Self, RunError> {
        let listen = |kind| signal(kind).map_err(|error| RunError::Runtime(error.to_string()));
        Ok(Interrupts {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn arm_stores(directory: &RunDir, plan: &Plan) -> Result<BTreeMap<String, ArmStore>, StoreError> {
    plan.arms.iter().map(|arm| Ok((arm.name.clone(), directory.arm(&arm.name, plan.seed)?))).collect()
}

/// How many rows each offline stage has, all of which were read once.
fn checked_rows(plan: &Plan) -> Result<BTreeMap<(usize, usize), u64>, RunError> {
    let mut rows = BTreeMap::new();
    // Stages that differ in nothing that matters here share one reading.
    let mut known: Vec<(&DataPlan, &Stage, u64)> = Vec::new();
    for (arm_number, arm) in plan.arms.iter().enumerate() {
        for (number, stage) in arm.trainings() {
            let Some(data) = &stage.data else { continue };
            let is_same = |&&(other, of, _): &&(&DataPlan, &Stage, u64)| {
                other == &**data && of.algorithm == stage.algorithm
            };
            let count = match known.iter().find(is_same) {
                Some(&(_, _, count)) => count,
                None => examples::check(stage, data, plan.seed)?,
            };
            known.push((data, stage, count));
            rows.insert((arm_number, number), count);
        }
    }
    Ok(rows)
}

/// The prompts of a split, each known to fit the model's context and to have what the reward checks. Where rows of a
/// dataset may be skipped, those that are not so are; what was skipped is told in `notes`.
fn checked_prompts(
    plan: &Plan,
    split: Split,
    model: &ModelConfig,
    tokenizer: &Tokenizer,
    notes: &mut Vec<String>,
) -> Result<Vec<Arc<Prompt>>, RunError> {
    let PromptSet { prompts, mut counts } = plan.load_prompts(split)?;
    let source = &plan.prompts.source;
    let max_skipped = source.skips(split);
    let loaded = prompts.len();
    let mut checked = Vec::with_capacity(loaded);
    for prompt in prompts {
        let place = || source.place(split, prompt.id);
        match check_prompt(plan, &prompt, model, tokenizer) {
            Ok(()) => checked.push(Arc::new(prompt)),
            Err(cause) if max_skipped.is_some() => {
                counts.skip(place(), RowError::new(Reason::Unusable, cause.to_string()));
            }
            Err(cause) => return Err(RunError::Prompt { place: place(), cause: Box::new(cause) }),
        }
    }
    if let Some(max_skipped) = max_skipped {
        counts.check(max_skipped)?;
        let what = if split == Split::Train { "training" } else { "held-out" };
        notes.extend(counts.skipped_line().map(|line| format!("{what} prompts: skipped {line}")));
    }
    let rounds = plan.arms.iter().map(|arm| arm.rounds).max().unwrap_or(1);
    // The last round may be a smaller one, but not an empty one.
    let needed = plan.prompts.per_round() * (rounds - 1) + usize::from(plan.prompts.per_round() > 0);
    if split == Split::Train && checked.len() < loaded && checked.len() < needed {
        return Err(RunError::FewPrompts { left: checked.len(), needed, rounds });
    }
    Ok(checked)
}

fn check_prompt(
    plan: &Plan,
    prompt: &Prompt,
    model: &ModelConfig,
    tokenizer: &Tokenizer,
) -> Result<(), RunError> {
    plan.reward.check_prompt(prompt)?;
    let (tokens, limit) = (tokenizer.prompt_tokens(&prompt.messages)?.len(), model.max_positions);
    if tokens >= limit {
        return Err(PolicyError::PromptTooLong { prompt_id: prompt.id, tokens, limit }.into());
    }
    Ok(())
}

/// What the checkpoints will take: f32 weights of each arm, twice that again with the optimiser's
/// moments, and a little for the records.
fn needed_bytes(plan: &Plan, model: &ModelConfig) -> u64 {
    let parameters: i64 = model.tensor_shapes().iter().map(|(_, shape)| shape.iter().product::<i64>()).sum();
    let copies = if plan.checkpoint.optimizer { 3 } else { 1 };
    // A reward model, and a critic of its own, which may have moments, too.
    let beside = |arm: &Arm| {
        let has = |wanted: fn(Statistics) -> bool| {
            arm.trainings().any(|(_, stage)| wanted(stage.algorithm.objective().needs().statistics))
        };
        let has_critic = has(
            |statistics| matches!(statistics, Statistics::ProbabilitiesAndValues(critic) if critic.kind == CriticKind::Model),
        );
        u64::from(has(|statistics| statistics == Statistics::Scores)) + if has_critic { copies } else { 0 }
    };
    const RECORDS: u64 = 64 << 20;
    let of_arm = |arm: &Arm| parameters.unsigned_abs() * 4 * (copies + beside(arm)) + RECORDS;
    plan.arms.iter().map(of_arm).sum()
}

fn serve_metrics(address: SocketAddr) -> Result<(), RunError> {
    PrometheusBuilder::new()
        .with_http_listener(address)
        .install()
        .map_err(|error| RunError::Metrics { address, cause: error.to_string() })
}
