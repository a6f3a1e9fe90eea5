//! The generator: samples the completions of a phase's prompts.

use std::sync::Arc;
use std::time::Instant;

use arriero_buffers::Completion;
use arriero_policy::generate::{GenerationConfig, GroupSampler};
use arriero_policy::snapshot::WeightSource;
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef};

use crate::context::Context;
use crate::job::{GroupToSelect, SampledGroup, SamplingJob, SamplingSettings};
use crate::report::News;
use crate::role::ActorRole;

/// Decode steps in one handler call: long enough to cost nothing, short enough to stop promptly.
pub(crate) const DECODE_STEPS: usize = 8;

#[derive(Debug)]
pub(crate) enum GeneratorMessage {
    /// Begin a phase.
    Generate(Arc<SamplingJob>),
    /// Go on with it.
    Step,
}

#[derive(Default)]
pub(crate) struct Generator;

pub(crate) struct GeneratorState {
    context: Context,
    work: Option<Work>,
}

struct Work {
    engine: GroupSampler,
    /// Of the engine's weights.
    version: u32,
    job: Arc<SamplingJob>,
    /// Tokens of groups that were there already.
    reused: u64,
    began: Instant,
}

impl Work {
    /// Takes the newest weights.
    fn renew(&mut self, context: &Context) -> Result<(), ActorProcessingErr> {
        let newest = context.weights.newest();
        if newest.version() != self.version {
            self.version = newest.version();
            self.engine.renew(newest.in_precision(context.computes.generator).model()?, self.version);
        }
        Ok(())
    }
}

impl ThreadLocalActor for Generator {
    type Msg = GeneratorMessage;
    type State = GeneratorState;
    type Arguments = Context;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        context: Context,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(GeneratorState { context, work: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if state.context.shutdown.has_begun() {
            state.work = None;
            return Ok(());
        }
        state.context.faults.begin(ActorRole::Generator);
        match message {
            GeneratorMessage::Generate(job) if job.samples_of.is_some() => {
                state.work = None;
                pass_on(&state.context, &job)?;
            }
            GeneratorMessage::Generate(job) => state.work = Some(begin(&state.context, job)?),
            GeneratorMessage::Step => {}
        }
        let Some(work) = &mut state.work else { return Ok(()) };
        if work.job.is_ahead {
            work.renew(&state.context)?;
        }
        for _ in 0..DECODE_STEPS {
            for group in work.engine.step()? {
                let prompt_id = group.prompt.id;
                let group = SampledGroup { job: Arc::clone(&work.job), group: Arc::new(group) };
                state.context.push(&state.context.sampled, group)?;
                work.job.deliver(prompt_id);
            }
        }
        let tokens = work.engine.sampled_tokens();
        let seconds = work.began.elapsed().as_secs_f64();
        if work.engine.is_idle() {
            let (reused, job) = (work.reused, Arc::clone(&work.job));
            state.work = None;
            state.context.tell(&job.address, News::Sampled { tokens, reused, seconds });
        } else {
            state.context.tell(&work.job.address, News::Sampling { tokens, seconds });
            myself.cast(GeneratorMessage::Step)?;
        }
        Ok(())
    }
}

/// Hands on what another stage has sampled.
fn pass_on(context: &Context, job: &Arc<SamplingJob>) -> Result<(), ActorProcessingErr> {
    let stage = job.samples_of.as_deref().unwrap_or_default();
    for prompt in job.undelivered() {
        match context.stage_groups.get(stage, prompt.id) {
            Some(scored) => context.push(&context.scored, GroupToSelect { job: Arc::clone(job), scored })?,
            None => {
                let reason = "not_sampled_before".to_string();
                context.tell(&job.address, News::Dropped { prompt_id: prompt.id, reason });
            }
        }
        job.deliver(prompt.id);
    }
    context.tell(&job.address, News::Sampled { tokens: 0, reused: 0, seconds: 0.0 });
    Ok(())
}

fn begin(context: &Context, job: Arc<SamplingJob>) -> Result<Work, ActorProcessingErr> {
    let SamplingSettings { generator, greedy_baseline, rivals, .. } = &job.settings;
    let config = GenerationConfig {
        sampling: generator.sampling.clone(),
        samples: generator.samples,
        batch: generator.batch,
        seed: context.plan.seed,
    };
    let weights = if job.is_ahead { context.weights.newest() } else { context.weights.pull(job.version)? };
    let version = weights.version();
    let model = weights.in_precision(context.computes.generator).model()?;
    let mut engine = GroupSampler::new(model, version, context.tokenizer.clone(), config);
    if let Some(weight) = rivals {
        let reference = context.initial.in_precision(context.computes.generator).model()?;
        engine = engine.with_mixture(reference, (*weight).into())?;
    }
    if let Some(mebibytes) = generator.cache_memory {
        engine = engine.with_cache_memory(mebibytes << 20);
    }
    if *greedy_baseline {
        engine = engine.with_greedy_baseline();
    }
    let mut reused = 0;
    for prompt in job.undelivered() {
        let sampled = context.initial_groups.get(&job.settings, prompt.id);
        match sampled.filter(|_| version == 0) {
            Some(scored) => {
                let tokens = |completion: &Completion| completion.drawn_len() as u64;
                reused += scored.group.completions.iter().map(tokens).sum::<u64>();
                context.push(&context.scored, GroupToSelect { job: Arc::clone(&job), scored })?;
                job.deliver(prompt.id);
            }
            None => engine.submit(Arc::clone(prompt))?,
        }
    }
    Ok(Work { engine, version, job, reused, began: Instant::now() })
}
