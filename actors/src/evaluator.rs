//! The evaluator: measures a version of the policy on the held-out prompts.

use std::sync::Arc;
use std::time::Instant;

use arriero_buffers::{Address, Branch, Group, Tree};
use arriero_eval::EvaluatedModel;
use arriero_policy::generate::{GenerationConfig, GroupSampler};
use arriero_policy::model::Model;
use arriero_policy::scoring::token_kl;
use arriero_policy::snapshot::{Snapshot, WeightSource};
use arriero_results::{Evaluation, PromptOutcome};
use arriero_reward::{Scorer, verdicts};
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef};

use crate::context::Context;
use crate::generator::DECODE_STEPS;
use crate::job::EvaluationJob;
use crate::report::News;
use crate::role::ActorRole;
use crate::suites::SuitesAtWork;

/// Tokens of a forward pass when the KL to the reference is measured.
const KL_TOKENS: usize = 1024;

#[derive(Debug)]
pub(crate) enum EvaluatorMessage {
    /// Begin.
    Evaluate(EvaluationJob),
    /// Go on.
    Step,
}

#[derive(Default)]
pub(crate) struct Evaluator;

pub(crate) struct EvaluatorState {
    context: Context,
    scorer: Box<dyn Scorer>,
    work: Option<Work>,
    /// The suites, which follow the held-out prompts; with what was found on the prompts.
    suites: Option<(Address, Evaluation, SuitesAtWork, Instant)>,
}

struct Work {
    job: EvaluationJob,
    engine: GroupSampler,
    groups: Vec<Group>,
    began: Instant,
}

impl ThreadLocalActor for Evaluator {
    type Msg = EvaluatorMessage;
    type State = EvaluatorState;
    type Arguments = Context;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        context: Context,
    ) -> Result<Self::State, ActorProcessingErr> {
        let mut scorer = context.plan.reward.build()?;
        scorer.set_cancellation(context.shutdown.watch());
        Ok(EvaluatorState { context, scorer, work: None, suites: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if state.context.shutdown.has_begun() {
            (state.work, state.suites) = (None, None);
            return Ok(());
        }
        state.context.faults.begin(ActorRole::Evaluator);
        if let EvaluatorMessage::Evaluate(job) = message {
            state.suites = None;
            state.work = Some(begin(&state.context, job)?);
        }
        if state.suites.is_some() {
            return state.step_suites(&myself);
        }
        let Some(work) = &mut state.work else { return Ok(()) };
        for _ in 0..DECODE_STEPS {
            work.groups.extend(work.engine.step()?);
        }
        let news = News::Evaluating {
            done: work.groups.len() as u64,
            total: work.job.prompts.len() as u64,
            tokens: work.engine.sampled_tokens(),
            seconds: work.began.elapsed().as_secs_f64(),
        };
        state.context.tell(&work.job.address, news);
        if !work.engine.is_idle() {
            myself.cast(EvaluatorMessage::Step)?;
            return Ok(());
        }
        if let Some(work) = state.work.take() {
            let (address, version, began) = (work.job.address.clone(), work.job.version, work.began);
            let news = match finish(&state.context, &mut *state.scorer, work) {
                Ok(evaluation) if !state.context.plan.evaluation.suites.is_empty() => {
                    let suites = suites(&state.context, version)?;
                    state.suites = Some((address, evaluation, suites, began));
                    myself.cast(EvaluatorMessage::Step)?;
                    return Ok(());
                }
                Ok(evaluation) => News::Evaluated(Box::new(evaluation)),
                Err(cause) => News::Failed { role: ActorRole::Evaluator, cause },
            };
            state.context.tell(&address, news);
        }
        Ok(())
    }
}

impl EvaluatorState {
    /// A little of the suites; at their end, the whole evaluation.
    fn step_suites(&mut self, myself: &ActorRef<EvaluatorMessage>) -> Result<(), ActorProcessingErr> {
        let Some((address, mut evaluation, mut suites, began)) = self.suites.take() else { return Ok(()) };
        let news = match suites.step() {
            Ok(true) => {
                let ((done, total), seconds) = (suites.progress(), began.elapsed().as_secs_f64());
                self.suites = Some((address.clone(), evaluation, suites, began));
                myself.cast(EvaluatorMessage::Step)?;
                News::Evaluating { done, total, tokens: 0, seconds }
            }
            Ok(false) => {
                evaluation.suites = suites.results;
                evaluation.seconds = began.elapsed().as_secs_f64();
                News::Evaluated(Box::new(evaluation))
            }
            Err(cause) => News::Failed { role: ActorRole::Evaluator, cause },
        };
        self.context.tell(&address, news);
        Ok(())
    }
}

/// The plan's suites on weights of this version.
fn suites(context: &Context, version: u32) -> Result<SuitesAtWork, ActorProcessingErr> {
    let compute = context.computes.evaluator;
    let subject = EvaluatedModel {
        weights: context.weights.pull(version)?.in_precision(compute),
        max_positions: context.model.max_positions,
        tokenizer: context.tokenizer.clone(),
        compute,
    };
    Ok(SuitesAtWork::new(subject, context.plan.seed, &context.plan.evaluation.suites))
}

fn begin(context: &Context, job: EvaluationJob) -> Result<Work, ActorProcessingErr> {
    let evaluation = &context.plan.evaluation;
    let config = GenerationConfig {
        sampling: evaluation.sampling.clone(),
        samples: 1,
        batch: evaluation.batch,
        seed: context.plan.seed,
    };
    let model = context.weights.pull(job.version)?.in_precision(context.computes.evaluator).model()?;
    let mut engine = GroupSampler::new(model, job.version, context.tokenizer.clone(), config);
    for prompt in job.prompts.iter() {
        engine.submit(Arc::clone(prompt))?;
    }
    Ok(Work { job, engine, groups: Vec::new(), began: Instant::now() })
}

fn finish(context: &Context, scorer: &mut dyn Scorer, work: Work) -> Result<Evaluation, String> {
    let Work { job, engine, mut groups, began } = work;
    let tokens = engine.sampled_tokens();
    drop(engine);
    groups.sort_by_key(|group| group.prompt.id);
    let scores = rewards(context, &job.address, scorer, &groups)?;
    let outcomes = groups.iter().zip(scores).map(|(group, reward)| outcome(group, reward));
    let outcomes = outcomes.collect::<Result<Vec<_>, String>>()?;
    let kl = match job.version {
        0 => 0.0, // These are the reference's weights.
        version => {
            let model = |snapshot: &Arc<Snapshot>| snapshot.in_precision(context.computes.evaluator).model();
            let policy = context.weights.pull(version).and_then(|snapshot| model(&snapshot));
            let policy = policy.map_err(|error| error.to_string())?;
            let reference = model(&context.initial).map_err(|error| error.to_string())?;
            mean_kl(context, &policy, &reference, &groups)?
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    Ok(Evaluation { version: job.version, outcomes, kl, tokens, seconds, suites: Vec::new() })
}

/// The reward of each group's one completion. NaN where there is none.
fn rewards(
    context: &Context,
    address: &Address,
    scorer: &mut dyn Scorer,
    groups: &[Group],
) -> Result<Vec<f32>, String> {
    if context.plan.reward.needs_several() {
        return Ok(vec![f32::NAN; groups.len()]);
    }
    let all = scorer.score_groups(&groups.iter().collect::<Vec<_>>()).into_iter().flatten().collect();
    let (scores, causes) = context.plan.unscored.scores(all).map_err(|error| error.to_string())?;
    let too_many =
        causes.last().and_then(|last| context.plan.unscored.too_many(causes.len(), scores.len(), last));
    if !causes.is_empty() {
        context.tell(address, News::Unscored { causes });
    }
    match too_many {
        Some(cause) => Err(cause),
        None => Ok(scores.iter().map(|score| score.reward).collect()),
    }
}

fn outcome(group: &Group, reward: f32) -> Result<PromptOutcome, String> {
    let Some(completion) = group.completions.first() else {
        return Err(format!("held-out prompt {} has no completion", group.prompt.id));
    };
    let verdicts = verdicts(&group.prompt, &completion.text).map_err(|error| error.to_string())?;
    Ok(PromptOutcome {
        prompt_id: group.prompt.id,
        instructions: verdicts.len(),
        followed: verdicts.iter().filter(|verdict| verdict.passed).count(),
        reward,
        tokens: completion.drawn_len(),
        text: completion.text.clone(),
    })
}

fn mean_kl(context: &Context, policy: &Model, reference: &Model, groups: &[Group]) -> Result<f64, String> {
    let trees: Vec<Tree> =
        groups.iter().take(context.plan.evaluation.kl_prompts).map(response_tree).collect();
    let views: Vec<&Tree> = trees.iter().collect();
    let (sum, tokens) = token_kl(policy, reference, &views, KL_TOKENS).map_err(|error| error.to_string())?;
    Ok(sum / tokens.max(1) as f64)
}

fn response_tree(group: &Group) -> Tree {
    Tree {
        prompt_id: group.prompt.id,
        prompt: group.prompt_tokens.clone(),
        branches: group.completions.iter().map(|completion| Branch::of(completion, |_| false)).collect(),
        ..Tree::default()
    }
}
