//! What the actors of a run share: read-only facts, the bounded queues, the published weights, and the way back to the
//! conductor.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arriero_buffers::{Address, ExperienceBuffer, PushError, Queue};
use arriero_experiment::{Computes, Plan};
use arriero_policy::config::ModelConfig;
use arriero_policy::snapshot::{Snapshot, WeightCell};
use arriero_policy::tokenizer::Tokenizer;
use ractor::DerivedActorRef;

use crate::faults::Faults;
use crate::groups::{InitialGroups, StageGroups};
use crate::job::{GroupToSelect, SampledGroup};
use crate::record::Record;
use crate::report::{News, Report};
use crate::role::ActorRole;
use crate::shutdown::Shutdown;

/// How long a worker waits for an item before it looks at its mailbox again.
pub(crate) const TAKE_PATIENCE: Duration = Duration::from_millis(20);

/// How long a producer waits for room before the run fails. A consumer that takes nothing for so long is not slow but
/// stuck.
const PUSH_PATIENCE: Duration = Duration::from_secs(600);

/// Handed to every actor when it is spawned.
#[derive(Clone)]
pub(crate) struct Context {
    pub plan: Arc<Plan>,
    pub model: Arc<ModelConfig>,
    pub tokenizer: Tokenizer,
    /// Generator → reward worker.
    pub sampled: Queue<SampledGroup>,
    /// Reward worker → rejection sampler.
    pub scored: Queue<GroupToSelect>,
    /// Everybody → recorder.
    pub records: Queue<Record>,
    /// Rejection sampler → reference → learner.
    pub buffer: Arc<Mutex<ExperienceBuffer>>,
    /// What the initial weights sampled. Every arm's first groups come from them, so they are sampled once.
    pub initial_groups: InitialGroups,
    /// Groups of this round that a later stage learns from, too.
    pub stage_groups: StageGroups,
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
    /// The conductor, as those see it who report to it.
    pub conductor: DerivedActorRef<Report>,
}

impl Context {
    /// Puts an item on a queue. A queue that is closed takes nothing: the run ends, and this is no error. A queue that
    /// stays full is an error.
    pub fn push<T: Clone>(&self, queue: &Queue<T>, mut item: T) -> Result<(), String> {
        loop {
            let before = self.shutdown.watch().activity();
            match queue.push(item, PUSH_PATIENCE) {
                Ok(()) | Err(PushError::Closed(_)) => return Ok(()),
                // While a slow judge answers, the scorer that waits for it is not stuck.
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
    pub fn tell(&self, address: &Address, news: News) {
        let _ = self.conductor.send_message(Report { address: address.clone(), news });
    }

    /// Tells the conductor that an actor cannot do what it was asked to.
    pub fn tell_failure(&self, address: &Address, role: ActorRole, cause: String) {
        self.tell(address, News::Failed { role, cause });
    }

    /// The shared buffer.
    pub fn buffer(&self) -> MutexGuard<'_, ExperienceBuffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reward model as a run trains it; empty until an arm has trained one.
#[derive(Debug, Clone, Default)]
pub(crate) struct RewardModelCell(Arc<Mutex<Option<Arc<Snapshot>>>>);

impl RewardModelCell {
    /// Replaces the reward model; with `None`, as an arm begins.
    pub fn publish(&self, snapshot: Option<Arc<Snapshot>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    /// The newest one. Its version is the number of optimiser steps that the arm's reward models took.
    pub fn pull(&self) -> Option<Arc<Snapshot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
