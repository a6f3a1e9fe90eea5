//! The generator: samples the completions of a phase's prompts.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arriero_buffers::{Prompt, ScoredGroup, SelectionRule};
use arriero_policy::generate::{GenerationConfig, Generator as Engine};
use arriero_policy::snapshot::WeightSource;
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef};

use crate::conductor::ConductorMessage;
use crate::faults::Role;
use crate::wiring::Wiring;

/// Decode steps in one handler call: long enough to cost nothing, short enough to stop promptly.
pub(crate) const DECODE_STEPS: usize = 8;

/// The prompts of a phase, and which of their groups have been delivered: a generator that is
/// restarted goes on with the others.
#[derive(Debug, Clone)]
pub(crate) struct GenerationJob {
    pub version: u32,
    pub prompts: Arc<Vec<Arc<Prompt>>>,
    /// What is made of the groups, which may want completions beside the policy's samples.
    pub rule: SelectionRule,
    pub delivered: Arc<Mutex<BTreeSet<u64>>>,
}

impl GenerationJob {
    pub fn new(version: u32, prompts: Vec<Arc<Prompt>>, rule: SelectionRule) -> Self {
        GenerationJob { version, prompts: Arc::new(prompts), rule, delivered: Arc::default() }
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
    engine: Engine,
    job: GenerationJob,
    /// Tokens of groups that were there already.
    reused: u64,
    began: Instant,
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
        if let GeneratorMessage::Generate(job) = message {
            state.work = Some(begin(&state.wiring, job)?);
        }
        let Some(work) = &mut state.work else { return Ok(()) };
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

fn begin(wiring: &Wiring, job: GenerationJob) -> Result<Work, ActorProcessingErr> {
    let generator = &wiring.plan.generator;
    let config = GenerationConfig {
        sampling: generator.sampling.clone(),
        samples: generator.samples,
        batch: generator.batch,
        seed: wiring.plan.seed,
    };
    let model = wiring.weights.pull(job.version)?.in_precision(wiring.computes.generator).model()?;
    let mut engine = Engine::new(model, job.version, wiring.tokenizer.clone(), config);
    let mut completions = generator.samples;
    if let Some(weight) = job.rule.rivals() {
        let reference = wiring.initial.in_precision(wiring.computes.generator).model()?;
        engine = engine.with_mixture(reference, weight.into())?;
    }
    if let Some(mebibytes) = generator.cache_memory {
        engine = engine.with_cache_memory(mebibytes << 20);
    }
    if job.rule.wants_greedy() {
        engine = engine.with_greedy_baseline();
        completions += 1;
    }
    let mut reused = 0;
    for prompt in job.prompts.iter().filter(|prompt| !job.is_delivered(prompt.id)) {
        // An arm with a greedy baseline has one completion more than one without; groups with rivals are not kept.
        let fits = |scored: &Arc<ScoredGroup>| {
            scored.group.completions.len() == completions && job.rule.rivals().is_none()
        };
        match wiring.sampled_initially.get(prompt.id).filter(|scored| job.version == 0 && fits(scored)) {
            Some(scored) => {
                reused += scored
                    .group
                    .completions
                    .iter()
                    .map(|completion| completion.tokens.len() as u64)
                    .sum::<u64>();
                wiring.push(&wiring.scored, scored)?;
                job.deliver(prompt.id);
            }
            None => engine.submit(Arc::clone(prompt))?,
        }
    }
    Ok(Work { engine, job, reused, began: Instant::now() })
}
