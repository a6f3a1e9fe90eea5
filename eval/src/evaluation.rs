//! A suite at work, in small steps. Whoever drives it can show progress, and stop after each step.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use arriero_buffers::{Branch, Prompt, Tree};
use arriero_policy::PolicyError;
use arriero_policy::checkpoint::Checkpoint;
use arriero_policy::device::Compute;
use arriero_policy::forest::micro_batches;
use arriero_policy::generate::{GenerationConfig, GroupSampler};
use arriero_policy::model::Model;
use arriero_policy::reward_model::{Conversations, scores};
use arriero_policy::scoring::response_logps;
use arriero_policy::snapshot::Snapshot;
use arriero_policy::tokenizer::Tokenizer;

use crate::config::{Kind, SuiteConfig};
use crate::error::EvalError;
use crate::question::Question;
use crate::rows::{Rows, SkippedRows};
use crate::suites::{self, Context, Reply, Suite, Task, winrate};
use arriero_results::Outcome;
use arriero_results::Report;

/// Tokens that each sequence gets in one step.
const DECODE_STEPS: usize = 8;

/// The default of `batch`.
const BATCH: usize = 64;

/// The default of `batch_tokens`.
const BATCH_TOKENS: usize = 4096;

/// The model that is measured.
#[derive(Debug, Clone)]
pub struct EvaluatedModel {
    /// Its weights, in the precision that they are used in.
    pub weights: Arc<Snapshot>,
    /// Its context, in tokens.
    pub max_positions: usize,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Where others are computed that it is compared with.
    pub compute: Compute,
}

impl EvaluatedModel {
    /// Reads a model: a reward model for the suites of reward models, else a language model.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open(path: &Path, compute: Compute, is_reward_model: bool) -> Result<Self, PolicyError> {
        let checkpoint = match is_reward_model {
            true => Checkpoint::open_reward_model(path)?,
            false => Checkpoint::open(path)?,
        };
        Ok(EvaluatedModel::new(checkpoint, compute))
    }

    /// Of a model in memory.
    pub fn new(checkpoint: Checkpoint, compute: Compute) -> Self {
        let Checkpoint { config, weights, tokenizer } = checkpoint;
        let max_positions = config.max_positions;
        let host = Compute::CPU_F32;
        let weights = Snapshot::new(0, config, host, weights).in_precision(compute);
        EvaluatedModel { weights, max_positions, tokenizer, compute }
    }
}

/// An item that is not judged yet.
struct Item {
    place: String,
    question: Option<Question>,
    checks: serde_json::Value,
}

/// What is still to be done with the items.
enum Work {
    /// The other's answers come first.
    OpponentAnswers(Box<GroupSampler>),
    Answers(Box<GroupSampler>),
    Score {
        model: Box<Model>,
        trees: VecDeque<Tree>,
        /// Of items whose trees went through the model in part.
        replies: HashMap<u64, Vec<Vec<f32>>>,
        /// Trees of each item that did not.
        missing: HashMap<u64, usize>,
    },
    Rank {
        model: Box<Model>,
        pairs: VecDeque<Conversations>,
    },
}

/// A suite whose rows were read.
struct LoadedSuite {
    suite: Box<dyn Suite>,
    items: Vec<Item>,
    trees: VecDeque<Tree>,
    /// Trees of each item.
    missing: HashMap<u64, usize>,
    pairs: VecDeque<Conversations>,
    skipped_rows: SkippedRows,
}

impl LoadedSuite {
    fn read(config: &SuiteConfig, context: &Context) -> Result<Self, EvalError> {
        let wrong = |message: String| EvalError::Config { suite: config.name().to_string(), message };
        config.validate().map_err(wrong)?;
        let mut suite = suites::build(config, context)?;
        let mut skipped_rows = SkippedRows::new(config);
        let path = config.source().unwrap_or_default();
        let mut rows = Rows::open(config, path)?;
        let examples = config.shots.unwrap_or(0);
        if let Some(path) = config.shots_path.as_deref().filter(|_| examples > 0) {
            take_examples(&mut *suite, &mut Rows::open(config, path)?, examples, &mut skipped_rows, config)?;
        } else if examples > 0 {
            take_examples(&mut *suite, &mut rows, examples, &mut skipped_rows, config)?;
        }
        let mut items: Vec<Item> = Vec::new();
        let (mut trees, mut missing, mut pairs) = (VecDeque::new(), HashMap::new(), VecDeque::new());
        while config.limit.is_none_or(|limit| items.len() < limit) {
            let Some((place, fields)) = rows.next(&mut skipped_rows)? else { break };
            let id = items.len() as u64;
            let mut item = Item { place, question: None, checks: serde_json::Value::Null };
            match suite.task(id, &fields) {
                Err(cause) => {
                    skipped_rows.skip(&item.place, cause)?;
                    continue;
                }
                Ok(Task::Answer { question, checks }) => {
                    (item.question, item.checks) = (Some(question), checks);
                }
                Ok(Task::Score(own)) => {
                    missing.insert(id, own.len());
                    trees.extend(own);
                }
                Ok(Task::Rank(own)) => pairs.push_back(own),
            }
            items.push(item);
        }
        if items.is_empty() {
            skipped_rows.check()?;
            return Err(EvalError::NothingToAsk {
                suite: config.name().to_string(),
                path: path.to_string(),
                read: skipped_rows.read,
                examples: examples as u64,
            });
        }
        Ok(LoadedSuite { suite, items, trees, missing, pairs, skipped_rows })
    }
}

/// A suite at work.
pub struct Evaluation {
    config: SuiteConfig,
    evaluated: EvaluatedModel,
    seed: u64,
    suite: Box<dyn Suite>,
    items: Vec<Item>,
    work: Work,
    skipped_rows: SkippedRows,
    outcomes: Vec<Outcome>,
    judged: usize,
    tokens: u64,
    began: Instant,
}

impl Evaluation {
    /// Reads the rows as [`Evaluation::new`] does, and forgets them. So errors in them are found before anything heavy
    /// loads.
    ///
    /// # Errors
    /// As [`Evaluation::new`], but of the model's weights.
    pub fn check(config: &SuiteConfig, tokenizer: &Tokenizer, max_positions: usize) -> Result<(), EvalError> {
        let context = Context { tokenizer: tokenizer.clone(), max_positions };
        LoadedSuite::read(config, &context).map(drop)
    }

    /// Reads the rows and prepares the model. `seed` is that of the answers' random numbers.
    ///
    /// # Errors
    /// If an option is wrong, the rows cannot be read or asked, or the model cannot do what the suite needs.
    pub fn new(config: &SuiteConfig, evaluated: &EvaluatedModel, seed: u64) -> Result<Self, EvalError> {
        let began = Instant::now();
        let context =
            Context { tokenizer: evaluated.tokenizer.clone(), max_positions: evaluated.max_positions };
        let LoadedSuite { suite, items, trees, missing, pairs, mut skipped_rows } =
            LoadedSuite::read(config, &context)?;
        let policy = |cause| EvalError::Policy { suite: config.name().to_string(), cause };
        let other = config.against.as_deref().filter(|against| winrate::is_model(against));
        let work = match (config.kind, other) {
            (Kind::Preference, _) => {
                Work::Rank { model: Box::new(evaluated.weights.model().map_err(policy)?.packed()), pairs }
            }
            (kind, Some(path)) if kind.is_generated() => {
                let other =
                    EvaluatedModel::open(Path::new(path), evaluated.compute, false).map_err(policy)?;
                Work::OpponentAnswers(generator(config, &other, seed, &items, &mut skipped_rows)?)
            }
            (kind, _) if kind.is_generated() => {
                Work::Answers(generator(config, evaluated, seed, &items, &mut skipped_rows)?)
            }
            _ => {
                let model = Box::new(evaluated.weights.model().map_err(policy)?.packed());
                Work::Score { model, trees, replies: HashMap::new(), missing }
            }
        };
        Ok(Evaluation {
            config: config.clone(),
            evaluated: evaluated.clone(),
            seed,
            suite,
            items,
            work,
            skipped_rows,
            outcomes: Vec::new(),
            judged: 0,
            tokens: 0,
            began,
        })
    }

    /// What the suite is called.
    pub fn name(&self) -> &str {
        self.config.name()
    }

    /// Its items. Answers of a model that this one is compared with count as items of their own.
    pub fn total(&self) -> usize {
        self.items.len()
    }

    /// Items that are judged, or were left out.
    pub fn done(&self) -> usize {
        self.judged
    }

    /// True while the model that this one is compared with answers.
    pub fn is_preparing(&self) -> bool {
        matches!(self.work, Work::OpponentAnswers(_))
    }

    /// Does a little of what is left: some tokens of each answer, or one batch of the rest. False when nothing is
    /// left.
    ///
    /// # Errors
    /// If the model fails, or an item cannot be judged and `on_error` is stop.
    pub fn step(&mut self) -> Result<bool, EvalError> {
        let suite = self.config.name().to_string();
        let policy = |cause| EvalError::Policy { suite: suite.clone(), cause };
        match &mut self.work {
            Work::OpponentAnswers(generator) => {
                for _ in 0..DECODE_STEPS {
                    for group in generator.step().map_err(policy)? {
                        if let Some(completion) = group.completions.into_iter().next() {
                            self.suite.opponent_answer(group.prompt.id, completion);
                        }
                    }
                }
                if generator.is_idle() {
                    self.tokens += generator.sampled_tokens();
                    let own = generator_of(self)?;
                    self.work = Work::Answers(own);
                }
                Ok(true)
            }
            Work::Answers(generator) => {
                let mut groups = Vec::new();
                for _ in 0..DECODE_STEPS {
                    groups.extend(generator.step().map_err(policy)?);
                }
                let is_over = generator.is_idle();
                if is_over {
                    self.tokens += generator.sampled_tokens();
                }
                self.suite.prefetch(&groups);
                for group in &groups {
                    self.grade(group.prompt.id, Reply::Answers(group))?;
                }
                Ok(!is_over)
            }
            Work::Score { model, trees, replies, missing } => {
                let views: Vec<&Tree> = trees.iter().collect();
                let budget = self.config.batch_tokens.unwrap_or(BATCH_TOKENS);
                let Some(batch) = micro_batches(&views, budget).first().copied() else { return Ok(false) };
                let count = batch.len();
                let logps = response_logps(model, batch).map_err(policy)?;
                self.tokens += batch.iter().map(|tree| tree.len() as u64).sum::<u64>();
                let branches = batch.iter().flat_map(|tree| &tree.branches);
                let pieces = Branch::split_by_loss_tokens(branches, &logps).map(<[f32]>::to_vec);
                let mut pieces = pieces.collect::<Vec<_>>().into_iter();
                let mut ready = Vec::new();
                for tree in trees.drain(..count) {
                    let reply = replies.entry(tree.prompt_id).or_default();
                    reply.extend(pieces.by_ref().take(tree.branches.len()));
                    let missing = missing.entry(tree.prompt_id).or_insert(1);
                    *missing -= 1;
                    if *missing == 0 {
                        ready.extend(replies.remove(&tree.prompt_id).map(|reply| (tree.prompt_id, reply)));
                    }
                }
                let is_over = trees.is_empty();
                for (id, reply) in ready {
                    self.grade(id, Reply::Logps(&reply))?;
                }
                Ok(!is_over)
            }
            Work::Rank { model, pairs } => {
                let budget = self.config.batch_tokens.unwrap_or(BATCH_TOKENS);
                let mut tokens = 0;
                let fits = pairs.iter().take_while(|pair| {
                    tokens += pair.sequences.iter().map(Vec::len).sum::<usize>();
                    tokens <= budget
                });
                let count = fits.count().max(1).min(pairs.len());
                let batch: Vec<Conversations> = pairs.drain(..count).collect();
                let is_over = pairs.is_empty();
                let found = scores(model, &batch, budget).map_err(policy)?;
                for (pair, scores) in batch.iter().zip(found) {
                    self.tokens += pair.sequences.iter().map(|sequence| sequence.len() as u64).sum::<u64>();
                    self.grade(pair.prompt_id, Reply::Scores(&scores))?;
                }
                Ok(!is_over)
            }
        }
    }

    fn grade(&mut self, id: u64, reply: Reply<'_>) -> Result<(), EvalError> {
        let place = self.items.get(id as usize).map(|item| item.place.clone()).unwrap_or_default();
        self.judged += 1;
        match self.suite.grade(id, reply) {
            Ok(outcome) => self.outcomes.push(Outcome { place, ..outcome }),
            Err(cause) => self.skipped_rows.skip(&place, cause)?,
        }
        Ok(())
    }

    /// What came of it, and of each item in the order of the rows. Before everything is done: of the items that are
    /// done.
    ///
    /// # Errors
    /// If more rows were left out than may be.
    pub fn finish(mut self) -> Result<(Report, Vec<Outcome>), EvalError> {
        self.skipped_rows.check()?;
        self.outcomes.sort_by_key(|outcome| outcome.id);
        let is_complete = match &self.work {
            Work::OpponentAnswers(_) => false,
            Work::Answers(generator) => generator.is_idle(),
            Work::Score { trees, .. } => trees.is_empty(),
            Work::Rank { pairs, .. } => pairs.is_empty(),
        };
        if let (Work::Answers(generator), false) = (&self.work, is_complete) {
            self.tokens += generator.sampled_tokens();
        }
        let config = &self.config;
        let report = Report {
            suite: config.name().to_string(),
            path: config.source().unwrap_or_default().to_string(),
            options: serde_json::to_value(config).map_err(|error| EvalError::Config {
                suite: config.name().to_string(),
                message: format!("its options cannot be written: {error}"),
            })?,
            seed: self.seed,
            is_complete,
            rows: self.skipped_rows.read,
            items: self.items.len(),
            examples: config.shots.unwrap_or(0),
            judged: self.outcomes.len(),
            skipped: self.skipped_rows.skipped,
            skipped_rows: self.skipped_rows.examples.clone(),
            tokens: self.tokens,
            seconds: self.began.elapsed().as_secs_f64(),
            figures: self.suite.figures(&self.outcomes),
        };
        Ok((report, self.outcomes))
    }
}

fn generator_of(evaluation: &mut Evaluation) -> Result<Box<GroupSampler>, EvalError> {
    let Evaluation { config, evaluated, seed, items, skipped_rows, .. } = evaluation;
    generator(config, evaluated, *seed, items, skipped_rows)
}

fn take_examples(
    suite: &mut dyn Suite,
    rows: &mut Rows,
    count: usize,
    skipped_rows: &mut SkippedRows,
    config: &SuiteConfig,
) -> Result<(), EvalError> {
    let mut taken = 0;
    while taken < count {
        let Some((place, fields)) = rows.next(skipped_rows)? else {
            let message = format!("shots is {count}, but there are only {taken} rows to take examples from");
            return Err(EvalError::Config { suite: config.name().to_string(), message });
        };
        match suite.example(&fields) {
            Ok(()) => taken += 1,
            Err(cause) => skipped_rows.skip(&place, cause)?,
        }
    }
    Ok(())
}

/// A generator that was asked all items. Those that do not fit the model are refused.
fn generator(
    config: &SuiteConfig,
    evaluated: &EvaluatedModel,
    seed: u64,
    items: &[Item],
    skipped_rows: &mut SkippedRows,
) -> Result<Box<GroupSampler>, EvalError> {
    let policy = |cause| EvalError::Policy { suite: config.name().to_string(), cause };
    let sampling = config.sampling(suites::stops(config.kind));
    let (samples, batch) = (config.samples.unwrap_or(1), config.batch.unwrap_or(BATCH));
    let model = evaluated.weights.model().map_err(policy)?;
    let options = GenerationConfig { sampling, samples, batch, seed };
    let mut generator = GroupSampler::new(model, 0, evaluated.tokenizer.clone(), options);
    for (id, item) in items.iter().enumerate() {
        let Some(question) = &item.question else { continue };
        let prompt = Prompt { id: id as u64, messages: question.messages(), checks: item.checks.clone() };
        let asked = question
            .tokens(&evaluated.tokenizer)
            .and_then(|tokens| generator.submit_tokens(Arc::new(prompt), tokens));
        match asked {
            Ok(()) => {}
            Err(
                error @ (PolicyError::PromptTooLong { .. }
                | PolicyError::EmptyPrompt { .. }
                | PolicyError::Template { .. }
                | PolicyError::TemplateUnreadable { .. }
                | PolicyError::Tokenizer { .. }),
            ) => skipped_rows.skip(&item.place, error.to_string())?,
            Err(error) => return Err(policy(error)),
        }
    }
    Ok(Box::new(generator))
}
