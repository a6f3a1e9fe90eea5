//! The evaluator: measures a version of the policy on the held-out prompts.

use std::sync::Arc;
use std::time::Instant;

use arriero_buffers::{Branch, Group, Prompt, Tree};
use arriero_eval::EvaluatedModel;
use arriero_policy::generate::{GenerationConfig, Generator as Engine};
use arriero_policy::model::Model;
use arriero_policy::scoring::token_kl;
use arriero_policy::snapshot::{Snapshot, WeightSource};
use arriero_reward::{Scorer, verdicts};
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef};

use crate::conductor::ConductorMessage;
use crate::faults::Role;
use crate::generator::DECODE_STEPS;
use crate::suites::{SuiteResult, SuitesAtWork};
use crate::wiring::Wiring;

/// Tokens of a forward pass when the KL to the reference is measured.
const KL_TOKENS: usize = 1024;

/// What to measure.
#[derive(Debug, Clone)]
pub(crate) struct EvaluationJob {
    pub version: u32,
    pub prompts: Arc<Vec<Arc<Prompt>>>,
}

/// One held-out prompt's outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptOutcome {
    /// The prompt.
    pub prompt_id: u64,
    /// Its checkable instructions.
    pub instructions: usize,
    /// Those that the response follows.
    pub followed: usize,
    /// The scorer's reward; no number if it could not give one.
    pub reward: f32,
    /// Tokens of the response.
    pub tokens: usize,
}

/// A version's outcomes on the held-out prompts, in the order of the prompts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evaluation {
    /// The version of the weights.
    pub version: u32,
    /// One outcome a prompt.
    pub outcomes: Vec<PromptOutcome>,
    /// Mean KL(policy ‖ reference) of the next-token distributions over the response tokens of the
    /// first `evaluation.kl_prompts` prompts, exact over the vocabulary, in nats a token.
    pub kl: f64,
    /// Tokens sampled.
    pub tokens: u64,
    /// Time it took, suites included.
    pub seconds: f64,
    /// The suites, in the order of the experiment.
    pub suites: Vec<SuiteResult>,
}

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
    wiring: Wiring,
    scorer: Box<dyn Scorer>,
    work: Option<Work>,
    /// What follows the held-out prompts, with what was found on these.
    suites: Option<(Evaluation, SuitesAtWork, Instant)>,
}

struct Work {
    job: EvaluationJob,
    engine: Engine,
    groups: Vec<Group>,
    began: Instant,
}

impl ThreadLocalActor for Evaluator {
    type Msg = EvaluatorMessage;
    type State = EvaluatorState;
    type Arguments = Wiring;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        wiring: Wiring,
    ) -> Result<Self::State, ActorProcessingErr> {
        let mut scorer = wiring.plan.reward.build()?;
        scorer.set_cancellation(wiring.shutdown.watch());
        Ok(EvaluatorState { wiring, scorer, work: None, suites: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if state.wiring.shutdown.has_begun() {
            (state.work, state.suites) = (None, None);
            return Ok(());
        }
        state.wiring.faults.begin(Role::Evaluator);
        if let EvaluatorMessage::Evaluate(job) = message {
            state.suites = None;
            state.work = Some(begin(&state.wiring, job)?);
        }
        if state.suites.is_some() {
            return state.step_suites(&myself);
        }
        let Some(work) = &mut state.work else { return Ok(()) };
        for _ in 0..DECODE_STEPS {
            work.groups.extend(work.engine.step()?);
        }
        state.wiring.tell(ConductorMessage::Evaluating {
            done: work.groups.len() as u64,
            total: work.job.prompts.len() as u64,
            tokens: work.engine.sampled_tokens(),
            seconds: work.began.elapsed().as_secs_f64(),
        });
        if !work.engine.is_idle() {
            myself.cast(EvaluatorMessage::Step)?;
            return Ok(());
        }
        if let Some(work) = state.work.take() {
            let (version, began) = (work.job.version, work.began);
            let reply = match finish(&state.wiring, &mut *state.scorer, work) {
                Ok(evaluation) if !state.wiring.plan.evaluation.suites.is_empty() => {
                    state.suites = Some((evaluation, suites(&state.wiring, version)?, began));
                    myself.cast(EvaluatorMessage::Step)?;
                    return Ok(());
                }
                Ok(evaluation) => ConductorMessage::Evaluated(Box::new(evaluation)),
                Err(cause) => ConductorMessage::Failed { role: Role::Evaluator, cause },
            };
            state.wiring.tell(reply);
        }
        Ok(())
    }
}

impl EvaluatorState {
    /// A little of the suites; at their end, the whole evaluation.
    fn step_suites(&mut self, myself: &ActorRef<EvaluatorMessage>) -> Result<(), ActorProcessingErr> {
        let Some((mut evaluation, mut suites, began)) = self.suites.take() else { return Ok(()) };
        let reply = match suites.step() {
            Ok(true) => {
                let ((done, total), seconds) = (suites.progress(), began.elapsed().as_secs_f64());
                self.suites = Some((evaluation, suites, began));
                myself.cast(EvaluatorMessage::Step)?;
                ConductorMessage::Evaluating { done, total, tokens: 0, seconds }
            }
            Ok(false) => {
                evaluation.suites = suites.results;
                evaluation.seconds = began.elapsed().as_secs_f64();
                ConductorMessage::Evaluated(Box::new(evaluation))
            }
            Err(cause) => ConductorMessage::Failed { role: Role::Evaluator, cause },
        };
        self.wiring.tell(reply);
        Ok(())
    }
}

/// The plan's suites on weights of this version.
fn suites(wiring: &Wiring, version: u32) -> Result<SuitesAtWork, ActorProcessingErr> {
    let compute = wiring.computes.evaluator;
    let subject = EvaluatedModel {
        weights: wiring.weights.pull(version)?.in_precision(compute),
        max_positions: wiring.model.max_positions,
        tokenizer: wiring.tokenizer.clone(),
        compute,
    };
    Ok(SuitesAtWork::new(subject, wiring.plan.seed, &wiring.plan.evaluation.suites))
}

fn begin(wiring: &Wiring, job: EvaluationJob) -> Result<Work, ActorProcessingErr> {
    let evaluation = &wiring.plan.evaluation;
    let config = GenerationConfig {
        sampling: evaluation.sampling.clone(),
        samples: 1,
        batch: evaluation.batch,
        seed: wiring.plan.seed,
    };
    let model = wiring.weights.pull(job.version)?.in_precision(wiring.computes.evaluator).model()?;
    let mut engine = Engine::new(model, job.version, wiring.tokenizer.clone(), config);
    for prompt in job.prompts.iter() {
        engine.submit(Arc::clone(prompt))?;
    }
    Ok(Work { job, engine, groups: Vec::new(), began: Instant::now() })
}

fn finish(wiring: &Wiring, scorer: &mut dyn Scorer, work: Work) -> Result<Evaluation, String> {
    let Work { job, engine, mut groups, began } = work;
    let tokens = engine.sampled_tokens();
    drop(engine);
    groups.sort_by_key(|group| group.prompt.id);
    let scores = rewards(wiring, scorer, &groups)?;
    let outcomes = groups.iter().zip(scores).map(|(group, reward)| outcome(group, reward));
    let outcomes = outcomes.collect::<Result<Vec<_>, String>>()?;
    let kl = match job.version {
        0 => 0.0, // These are the reference's weights.
        version => {
            let model = |snapshot: &Arc<Snapshot>| snapshot.in_precision(wiring.computes.evaluator).model();
            let policy = wiring.weights.pull(version).and_then(|snapshot| model(&snapshot));
            let policy = policy.map_err(|error| error.to_string())?;
            let reference = model(&wiring.initial).map_err(|error| error.to_string())?;
            mean_kl(wiring, &policy, &reference, &groups)?
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    Ok(Evaluation { version: job.version, outcomes, kl, tokens, seconds, suites: Vec::new() })
}

/// The reward of each group's one completion; no number where there is none.
fn rewards(wiring: &Wiring, scorer: &mut dyn Scorer, groups: &[Group]) -> Result<Vec<f32>, String> {
    if wiring.plan.reward.needs_several() {
        return Ok(vec![f32::NAN; groups.len()]);
    }
    let all = scorer.score_groups(&groups.iter().collect::<Vec<_>>()).into_iter().flatten().collect();
    let (scores, causes) = wiring.plan.unscored.settle(all).map_err(|error| error.to_string())?;
    let too_many =
        causes.last().and_then(|last| wiring.plan.unscored.too_many(causes.len(), scores.len(), last));
    if !causes.is_empty() {
        wiring.tell(ConductorMessage::Unscored { causes });
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
        tokens: completion.tokens.len(),
    })
}

fn mean_kl(wiring: &Wiring, policy: &Model, reference: &Model, groups: &[Group]) -> Result<f64, String> {
    let trees: Vec<Tree> = groups.iter().take(wiring.plan.evaluation.kl_prompts).map(response_tree).collect();
    let views: Vec<&Tree> = trees.iter().collect();
    let (sum, tokens) = token_kl(policy, reference, &views, KL_TOKENS).map_err(|error| error.to_string())?;
    Ok(sum / tokens.max(1) as f64)
}

fn response_tree(group: &Group) -> Tree {
    let branch = |completion: &arriero_buffers::Completion| Branch {
        sample: completion.sample,
        tokens: completion.tokens.clone(),
        is_format: vec![false; completion.tokens.len()],
        behaviour_logps: completion.logps.clone(),
        ..Branch::default()
    };
    Tree {
        prompt_id: group.prompt.id,
        prompt: group.prompt_tokens.clone(),
        branches: group.completions.iter().map(branch).collect(),
        ..Tree::default()
    }
}
