//! The generator: samples the completions of a phase's prompts.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arriero_buffers::{Completion, Prompt};
use arriero_policy::generate::{GenerationConfig, GroupSampler};
use arriero_policy::snapshot::WeightSource;
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef};

use crate::conductor::ConductorMessage;
use crate::faults::Role;
use crate::wiring::{Recipe, Wiring};

/// Decode steps in one handler call: long enough to cost nothing, short enough to stop promptly.
pub(crate) const DECODE_STEPS: usize = 8;

/// The prompts of a phase, and which of their groups have been delivered: a generator that is
/// restarted goes on with the others.
#[derive(Debug, Clone)]
pub(crate) struct GenerationJob {
    /// Of the weights to sample from.
    pub version: u32,
    /// Whether the learner is at work meanwhile: newer weights are taken as they come.
    pub is_ahead: bool,
    pub prompts: Arc<Vec<Arc<Prompt>>>,
    pub recipe: Arc<Recipe>,
    /// The stage of this round that has sampled and scored the groups already.
    pub samples_of: Option<String>,
    pub delivered: Arc<Mutex<BTreeSet<u64>>>,
}

impl GenerationJob {
    pub fn new(
        (version, is_ahead): (u32, bool),
        prompts: Vec<Arc<Prompt>>,
        recipe: Arc<Recipe>,
        samples_of: Option<String>,
    ) -> Self {
        GenerationJob {
            version,
            is_ahead,
            prompts: Arc::new(prompts),
            recipe,
            samples_of,
            delivered: Arc::default(),
        }
    }

    fn is_delivered(&self, prompt_id: u64) -> bool {
        self.delivered.lock().unwrap_or_else(PoisonError::into_inner).contains(&prompt_id)
    }

    fn deliver(&self, prompt_id: u64) {
        self.delivered.lock().unwrap_or_else(PoisonError::into_inner).insert(prompt_id);
    }
}

#[derive(Debug)]
pub(crate) enum GeneratorMessage {
    /// Begin a phase.
    Generate(GenerationJob),
    /// Go on with it.
    Step,
}

#[derive(Default)]
pub(crate) struct Generator;

pub(crate) struct GeneratorState {
    wiring: Wiring,
    work: Option<Work>,
}

struct Work {
    engine: GroupSampler,
    /// Of the engine's weights.
    version: u32,
    job: GenerationJob,
    /// Tokens of groups that were there already.
    reused: u64,
    began: Instant,
}

impl Work {
    /// Takes the newest weights.
    fn renew(&mut self, wiring: &Wiring) -> Result<(), ActorProcessingErr> {
        let newest = wiring.weights.newest();
        if newest.version() != self.version {
            self.version = newest.version();
            self.engine.renew(newest.in_precision(wiring.computes.generator).model()?, self.version);
        }
        Ok(())
    }
}

impl ThreadLocalActor for Generator {
    type Msg = GeneratorMessage;
    type State = GeneratorState;
    type Arguments = Wiring;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        wiring: Wiring,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(GeneratorState { wiring, work: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if state.wiring.shutdown.has_begun() {
            state.work = None;
            return Ok(());
        }
        state.wiring.faults.begin(Role::Generator);
        match message {
            GeneratorMessage::Generate(job) if job.samples_of.is_some() => {
                state.work = None;
                pass_on(&state.wiring, &job)?;
            }
            GeneratorMessage::Generate(job) => state.work = Some(begin(&state.wiring, job)?),
            GeneratorMessage::Step => {}
        }
        let Some(work) = &mut state.work else { return Ok(()) };
        if work.job.is_ahead {
            work.renew(&state.wiring)?;
        }
        for _ in 0..DECODE_STEPS {
            for group in work.engine.step()? {
                let prompt_id = group.prompt.id;
                state.wiring.push(&state.wiring.completed, Arc::new(group))?;
                work.job.deliver(prompt_id);
            }
        }
        let tokens = work.engine.sampled_tokens();
        let seconds = work.began.elapsed().as_secs_f64();
        if work.engine.is_idle() {
            let reused = work.reused;
            state.work = None;
            state.wiring.tell(ConductorMessage::Generated { tokens, reused, seconds });
        } else {
            state.wiring.tell(ConductorMessage::Sampling { tokens, seconds });
            myself.cast(GeneratorMessage::Step)?;
        }
        Ok(())
    }
}

/// Hands on what another stage has sampled.
fn pass_on(wiring: &Wiring, job: &GenerationJob) -> Result<(), ActorProcessingErr> {
    let stage = job.samples_of.as_deref().unwrap_or_default();
    for prompt in job.prompts.iter().filter(|prompt| !job.is_delivered(prompt.id)) {
        match wiring.sampled_for.get(stage, prompt.id) {
            Some(scored) => wiring.push(&wiring.scored, scored)?,
            None => {
                let (prompt_id, reason) = (prompt.id, "not_sampled_before");
                wiring.tell(ConductorMessage::Dropped { prompt_id, reason });
            }
        }
        job.deliver(prompt.id);
    }
    wiring.tell(ConductorMessage::Generated { tokens: 0, reused: 0, seconds: 0.0 });
    Ok(())
}

fn begin(wiring: &Wiring, job: GenerationJob) -> Result<Work, ActorProcessingErr> {
    let Recipe { generator, greedy_baseline, rivals, .. } = &*job.recipe;
    let config = GenerationConfig {
        sampling: generator.sampling.clone(),
        samples: generator.samples,
        batch: generator.batch,
        seed: wiring.plan.seed,
    };
    let weights = if job.is_ahead { wiring.weights.newest() } else { wiring.weights.pull(job.version)? };
    let version = weights.version();
    let model = weights.in_precision(wiring.computes.generator).model()?;
    let mut engine = GroupSampler::new(model, version, wiring.tokenizer.clone(), config);
    if let Some(weight) = rivals {
        let reference = wiring.initial.in_precision(wiring.computes.generator).model()?;
        engine = engine.with_mixture(reference, (*weight).into())?;
    }
    if let Some(mebibytes) = generator.cache_memory {
        engine = engine.with_cache_memory(mebibytes << 20);
    }
    if *greedy_baseline {
        engine = engine.with_greedy_baseline();
    }
    let mut reused = 0;
    for prompt in job.prompts.iter().filter(|prompt| !job.is_delivered(prompt.id)) {
        let sampled = wiring.sampled_initially.get(&job.recipe, prompt.id);
        match sampled.filter(|_| version == 0) {
            Some(scored) => {
                let tokens = |completion: &Completion| completion.drawn_len() as u64;
                reused += scored.group.completions.iter().map(tokens).sum::<u64>();
                wiring.push(&wiring.scored, scored)?;
                job.deliver(prompt.id);
            }
            None => engine.submit(Arc::clone(prompt))?,
        }
    }
    Ok(Work { engine, version, job, reused, began: Instant::now() })
}
