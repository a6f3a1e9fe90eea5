//! What the actors of a run share: read-only facts, the bounded queues, and the way back to the
//! conductor.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arriero_buffers::{ExperienceBuffer, Group, PushError, Queue, ScoredGroup};
use arriero_policy::config::ModelConfig;
use arriero_policy::snapshot::{Snapshot, WeightCell};
use arriero_policy::tokenizer::Tokenizer;
use arriero_reward::CancellationToken;
use ractor::ActorRef;

use crate::conductor::ConductorMessage;
use crate::devices::Computes;
use crate::experiment::{GeneratorPlan, Plan, ScoredBy};
use crate::faults::Faults;
use crate::recorder::Record;
use crate::rejection_sampler::SelectionJob;

/// How long a worker waits for an item before it looks at its mailbox again.
pub(crate) const TAKE_PATIENCE: Duration = Duration::from_millis(20);

/// How long a producer waits for room before the run fails: a consumer that does not move for this
/// long is not slow, it is stuck.
const PUSH_PATIENCE: Duration = Duration::from_secs(600);

/// Handed to every actor when it is spawned.
#[derive(Clone)]
pub(crate) struct Wiring {
    pub plan: Arc<Plan>,
    pub model: Arc<ModelConfig>,
    pub tokenizer: Tokenizer,
    /// Generator → reward worker.
    pub completed: Queue<Arc<Group>>,
    /// Reward worker → rejection sampler.
    pub scored: Queue<Arc<ScoredGroup>>,
    /// Everybody → recorder.
    pub records: Queue<Record>,
    /// Rejection sampler → reference → learner.
    pub buffer: Arc<Mutex<ExperienceBuffer>>,
    /// What the rejection sampler makes of scored groups: conductor → rejection sampler.
    pub selection: CurrentSelection,
    /// What the initial weights sampled: every arm's first groups, so that they are sampled once.
    pub sampled_initially: InitialGroups,
    /// Groups of this round that a later stage learns from, too.
    pub sampled_for: StageGroups,
    /// The policy's newest weights: learner → generator, evaluator.
    pub weights: Arc<WeightCell>,
    /// The reward model that the running arm trained last: learner → whoever scores with it.
    pub reward_model: RewardModelCell,
    /// The weights that every arm starts from: the frozen reference.
    pub initial: Arc<Snapshot>,
    /// What each actor computes with; what it pulls is converted to it.
    pub computes: Computes,
    pub shutdown: Shutdown,
    pub faults: Faults,
    pub conductor: ActorRef<ConductorMessage>,
}

impl Wiring {
    /// Puts an item on a queue. A queue that is closed because the run ends takes nothing, and that
    /// is no error; a queue that stays full is one.
    pub fn push<T: Clone>(&self, queue: &Queue<T>, mut item: T) -> Result<(), String> {
        loop {
            let before = self.shutdown.watch().activity();
            match queue.push(item, PUSH_PATIENCE) {
                Ok(()) | Err(PushError::Closed(_)) => return Ok(()),
                // A scorer that waits for a slow judge is not stuck as long as there are answers.
                Err(PushError::Full(back)) if self.shutdown.watch().activity() != before => item = back,
                Err(PushError::Full(_)) => {
                    return Err(format!(
                        "the queue \"{}\" was full for {} s: its consumer is stuck",
                        queue.name(),
                        PUSH_PATIENCE.as_secs()
                    ));
                }
            }
        }
    }

    /// Tells the conductor. It can only be gone when the run is over.
    pub fn tell(&self, message: ConductorMessage) {
        let _ = self.conductor.cast(message);
    }

    /// The shared buffer.
    pub fn buffer(&self) -> MutexGuard<'_, ExperienceBuffer> {
        lock(&self.buffer)
    }
}

/// The running phase's selection. It is no message, since a worker that waits for a group would see it too late: it is
/// set before a phase's first group is sampled, and read when a group is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct CurrentSelection(Arc<Mutex<Option<SelectionJob>>>);

impl CurrentSelection {
    pub fn set(&self, job: SelectionJob) {
        *lock(&self.0) = Some(job);
    }

    pub fn get(&self) -> Option<SelectionJob> {
        lock(&self.0).clone()
    }
}

/// A reward model as a run trains it; empty until an arm has trained one.
#[derive(Debug, Clone, Default)]
pub(crate) struct RewardModelCell(Arc<Mutex<Option<Arc<Snapshot>>>>);

impl RewardModelCell {
    /// Replaces the reward model; with `None`, as an arm begins.
    pub fn publish(&self, snapshot: Option<Arc<Snapshot>>) {
        *lock(&self.0) = snapshot;
    }

    /// The newest; its version is the number of optimiser steps that the arm's reward models took.
    pub fn pull(&self) -> Option<Arc<Snapshot>> {
        lock(&self.0).clone()
    }
}

/// How a phase's prompts are answered, and by whom the answers are scored: under the same weights, equal recipes make
/// equal groups.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Recipe {
    pub generator: GeneratorPlan,
    /// Whether each group has a greedy completion more.
    pub greedy_baseline: bool,
    /// The reference's weight in the mixture that as many rivals again as there are samples are drawn from, if so.
    pub rivals: Option<f32>,
    pub scored_by: ScoredBy,
}

/// Scored groups of the initial weights by prompt, with the recipes that made them. They are the same for every arm,
/// since these start from the same weights and random numbers are keyed by seed, prompt, sample and token.
#[derive(Debug, Clone, Default)]
pub(crate) struct InitialGroups(Arc<Mutex<BTreeMap<u64, Vec<Made>>>>);

/// A group, and how it was made.
type Made = (Arc<Recipe>, Arc<ScoredGroup>);

impl InitialGroups {
    pub fn keep(&self, recipe: &Arc<Recipe>, scored: &Arc<ScoredGroup>) {
        let mut groups = lock(&self.0);
        let of_prompt = groups.entry(scored.group.prompt.id).or_default();
        if of_prompt.iter().all(|(known, _)| known != recipe) {
            of_prompt.push((Arc::clone(recipe), Arc::clone(scored)));
        }
    }

    pub fn get(&self, recipe: &Recipe, prompt_id: u64) -> Option<Arc<ScoredGroup>> {
        let groups = lock(&self.0);
        let fits = groups.get(&prompt_id)?.iter().find(|(known, _)| **known == *recipe);
        fits.map(|(_, scored)| Arc::clone(scored))
    }
}

/// Scored groups of the running round by stage and prompt.
#[derive(Debug, Clone, Default)]
pub(crate) struct StageGroups(Arc<Mutex<BTreeMap<String, ByPrompt>>>);

type ByPrompt = BTreeMap<u64, Arc<ScoredGroup>>;

impl StageGroups {
    /// Forgets what a stage has sampled: it samples anew.
    pub fn forget(&self, stage: &str) {
        lock(&self.0).remove(stage);
    }

    pub fn keep(&self, stage: &str, scored: &Arc<ScoredGroup>) {
        let mut groups = lock(&self.0);
        groups.entry(stage.to_string()).or_default().insert(scored.group.prompt.id, Arc::clone(scored));
    }

    pub fn get(&self, stage: &str, prompt_id: u64) -> Option<Arc<ScoredGroup>> {
        lock(&self.0).get(stage)?.get(&prompt_id).cloned()
    }
}

/// A panic of another holder leaves a map whole: every change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Set once, when the run is to end early; whoever works in steps looks at it between two, and scorers that wait for
/// others stop waiting.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shutdown(CancellationToken);

impl Shutdown {
    pub fn begin(&self) {
        self.0.cancel();
    }

    pub fn has_begun(&self) -> bool {
        self.0.is_cancelled()
    }

    /// What ends scorers' waiting.
    pub fn watch(&self) -> &CancellationToken {
        &self.0
    }
}
