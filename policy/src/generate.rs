//! Batched generation: finished sequences leave at once and waiting prompts take their places.
//!
//! A prompt's samples share one pass over the prompt. Tokens are drawn on the host with random
//! numbers keyed by (seed, prompt, sample, token), so that a sample does not depend on its
//! neighbours.

use std::collections::VecDeque;
use std::sync::Arc;

use arriero_buffers::random::{Purpose, Stream};
use arriero_buffers::{Completion, Finish, Group, Prompt};
use rayon::prelude::*;
use tch::{Kind, Tensor, no_grad};

use crate::cache::KvCache;
use crate::error::{PolicyError, Result};
use crate::forest::Forest;
use crate::model::Model;
use crate::sampling::{Draw, SamplingConfig, draw};
use crate::tokenizer::Tokenizer;

/// Prompt tokens that go through the model at once.
const PREFILL_TOKENS: usize = 1024;

/// Cache capacity grows in steps of this many tokens.
const CAPACITY_STEP: usize = 64;

/// Options of a generator.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// How tokens are drawn.
    pub sampling: SamplingConfig,
    /// Completions of a prompt.
    pub samples: usize,
    /// Sequences decoded at once; raised to `samples` where it is less.
    pub batch: usize,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// A prompt that waits for its turn.
struct Waiting {
    prompt: Arc<Prompt>,
    tokens: Vec<u32>,
}

/// A group whose completions are not all there yet.
struct Unfinished {
    group: Group,
    missing: usize,
}

/// A sequence in a slot of the cache.
struct Row {
    prompt_id: u64,
    limit: usize,
    /// Tokens in the cache.
    length: usize,
    stream: Stream,
    completion: Completion,
    done: bool,
    /// Takes the most probable token whatever the sampling options say.
    greedy: bool,
}

impl Row {
    /// Adds a token.
    fn push(&mut self, drawn: Draw, version: u32, eos_ids: &[u32]) {
        let completion = &mut self.completion;
        completion.tokens.push(drawn.token);
        completion.logps.push(drawn.logp);
        completion.sampled_logps.push(drawn.sampled_logp);
        completion.weight_versions.push(version);
        if eos_ids.contains(&drawn.token) {
            completion.finish = Finish::EndOfTurn;
        }
        self.done = completion.finish == Finish::EndOfTurn || completion.tokens.len() >= self.limit;
    }
}

/// A model that generates.
pub struct Generator {
    model: Model,
    version: u32,
    tokenizer: Tokenizer,
    config: GenerationConfig,
    /// True if the last of a prompt's samples is decoded greedily.
    greedy_last: bool,
    cache: KvCache,
    waiting: VecDeque<Waiting>,
    rows: Vec<Row>,
    unfinished: Vec<Unfinished>,
    logits: Vec<f32>,
    sampled_tokens: u64,
}

impl std::fmt::Debug for Generator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generator")
            .field("version", &self.version)
            .field("rows", &self.rows.len())
            .finish_non_exhaustive()
    }
}

impl Generator {
    /// A generator of weights `version`.
    pub fn new(model: Model, version: u32, tokenizer: Tokenizer, config: GenerationConfig) -> Self {
        let config = GenerationConfig { batch: config.batch.max(config.samples), ..config };
        Generator {
            model,
            version,
            tokenizer,
            config,
            greedy_last: false,
            cache: KvCache::empty(),
            waiting: VecDeque::new(),
            rows: Vec::new(),
            unfinished: Vec::new(),
            logits: Vec::new(),
            sampled_tokens: 0,
        }
    }

    /// Decodes one completion more of each prompt, the last one, greedily: ReMax's baseline.
    pub fn with_greedy_baseline(mut self) -> Self {
        self.config.samples += 1;
        self.config.batch = self.config.batch.max(self.config.samples);
        self.greedy_last = true;
        self
    }

    /// Accepts a prompt.
    ///
    /// # Errors
    /// If the chat template refuses it, or it leaves no room in the model's context.
    pub fn submit(&mut self, prompt: Arc<Prompt>) -> Result<()> {
        let tokens = self.tokenizer.prompt_tokens(&prompt.messages)?;
        self.submit_tokens(prompt, tokens)
    }

    /// Accepts a prompt that is rendered already.
    ///
    /// # Errors
    /// If it is empty or leaves no room in the model's context.
    pub fn submit_tokens(&mut self, prompt: Arc<Prompt>, tokens: Vec<u32>) -> Result<()> {
        let limit = self.model.config().max_positions;
        if tokens.is_empty() {
            return Err(PolicyError::EmptyPrompt { prompt_id: prompt.id });
        }
        if tokens.len() >= limit {
            return Err(PolicyError::PromptTooLong { prompt_id: prompt.id, tokens: tokens.len(), limit });
        }
        self.waiting.push_back(Waiting { prompt, tokens });
        Ok(())
    }

    /// True if nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.rows.is_empty()
    }

    /// Tokens drawn so far.
    pub fn sampled_tokens(&self) -> u64 {
        self.sampled_tokens
    }

    /// The text of a prompt's first sample so far; empty where it is not being generated.
    ///
    /// # Errors
    /// If the tokens cannot be decoded.
    pub fn text_in_progress(&self, prompt_id: u64) -> Result<String> {
        let row = self.rows.iter().find(|row| row.prompt_id == prompt_id && row.completion.sample == 0);
        row.map_or(Ok(String::new()), |row| self.tokenizer.decode(&row.completion.tokens, true))
    }

    /// Admits what fits, then adds one token to every sequence. Returns the groups that this
    /// completed.
    ///
    /// # Errors
    /// If a completion's tokens cannot be decoded.
    pub fn step(&mut self) -> Result<Vec<Group>> {
        no_grad(|| {
            let mut groups = Vec::new();
            self.admit()?;
            self.retire(&mut groups)?;
            if !self.rows.is_empty() {
                self.decode();
                self.retire(&mut groups)?;
            }
            Ok(groups)
        })
    }

    /// Works until idle; the groups in the order of their prompts' submission.
    ///
    /// # Errors
    /// As [`Generator::step`].
    pub fn run(&mut self) -> Result<Vec<Group>> {
        let order: Vec<u64> = self.waiting.iter().map(|waiting| waiting.prompt.id).collect();
        let mut groups = Vec::new();
        while !self.is_idle() {
            groups.extend(self.step()?);
        }
        groups.sort_by_key(|group| order.iter().position(|&id| id == group.prompt.id));
        Ok(groups)
    }

    /// Passes waiting prompts through the model, as many as there is room for, and draws the first
    /// token of each of their samples.
    fn admit(&mut self) -> Result<()> {
        let samples = self.config.samples;
        let mut admitted: Vec<Waiting> = Vec::new();
        let mut tokens = 0;
        while self.rows.len() + (admitted.len() + 1) * samples <= self.config.batch {
            let Some(next) = self.waiting.front() else { break };
            if !admitted.is_empty() && tokens + next.tokens.len() > PREFILL_TOKENS {
                break;
            }
            tokens += next.tokens.len();
            admitted.extend(self.waiting.pop_front());
        }
        if admitted.is_empty() {
            return Ok(());
        }
        self.reserve(&admitted)?;
        let compute = self.model.compute();
        let prompts: Vec<(u64, &[u32])> =
            admitted.iter().map(|waiting| (waiting.prompt.id, &waiting.tokens[..])).collect();
        let forest = Forest::pack_prompts(&prompts, self.model.config().max_positions, compute.device)?;
        let first_slot = self.rows.len();
        let cache = &mut self.cache;
        let hidden = self.model.forest(&forest, &mut |layer, key, value| {
            for (index, span) in forest.spans.iter().enumerate() {
                cache.fill(layer, first_slot + index * samples, samples, span, key, value);
            }
        });
        let ends: Vec<i64> = forest.spans.iter().map(|span| span.start + span.prompt - 1).collect();
        let ends = Tensor::from_slice(&ends).to_device(compute.device);
        let hidden = hidden.index_select(0, &ends);
        for waiting in admitted {
            let limit = self
                .config
                .sampling
                .max_new_tokens
                .min(self.model.config().max_positions - waiting.tokens.len());
            for sample in 0..samples as u32 {
                self.rows.push(Row {
                    prompt_id: waiting.prompt.id,
                    limit,
                    length: waiting.tokens.len(),
                    stream: Stream::new(
                        self.config.seed,
                        Purpose::Sampling,
                        waiting.prompt.id,
                        sample.into(),
                    ),
                    completion: Completion {
                        sample,
                        tokens: Vec::new(),
                        logps: Vec::new(),
                        sampled_logps: Vec::new(),
                        weight_versions: Vec::new(),
                        text: String::new(),
                        finish: Finish::Length,
                    },
                    done: false,
                    greedy: self.greedy_last && sample as usize + 1 == samples,
                });
            }
            let group =
                Group { prompt: waiting.prompt, prompt_tokens: waiting.tokens, completions: Vec::new() };
            self.unfinished.push(Unfinished { group, missing: samples });
        }
        self.draw(&hidden, first_slot, samples);
        Ok(())
    }

    /// Makes room in the cache for these prompts and their completions, and slots for those that wait.
    fn reserve(&mut self, admitted: &[Waiting]) -> Result<()> {
        let longest = admitted.iter().map(|waiting| waiting.tokens.len()).max().unwrap_or(0);
        let wanted = longest.saturating_add(self.config.sampling.max_new_tokens);
        let wanted = wanted.min(self.model.config().max_positions);
        let prompts = admitted.len() + self.waiting.len();
        let slots = prompts.saturating_mul(self.config.samples).saturating_add(self.rows.len());
        let slots = slots.min(self.config.batch);
        if wanted <= self.cache.capacity() && slots <= self.cache.slots() {
            return Ok(());
        }
        let capacity = wanted.next_multiple_of(CAPACITY_STEP).max(self.cache.capacity());
        let slots = slots.max(self.cache.slots());
        let mut larger = KvCache::new(self.model.config(), self.model.compute(), slots, capacity)?;
        larger.adopt(&self.cache, self.rows.len());
        self.cache = larger;
        Ok(())
    }

    fn decode(&mut self) {
        let compute = self.model.compute();
        let lengths: Vec<usize> = self.rows.iter().map(|row| row.length).collect();
        let step = self.cache.step(&lengths, compute);
        let last = |row: &Row| row.completion.tokens.last().map_or(0, |&token| i64::from(token));
        let tokens: Vec<i64> = self.rows.iter().map(last).collect();
        let positions: Vec<i64> = lengths.iter().map(|&length| length as i64).collect();
        let place = |values: &[i64]| Tensor::from_slice(values).to_device(compute.device);
        let cache = &mut self.cache;
        let hidden =
            self.model.layers(&place(&tokens), &place(&positions), &mut |layer, query, key, value| {
                cache.attend(&step, layer, query, key, value)
            });
        for row in &mut self.rows {
            row.length += 1;
        }
        self.draw(&hidden, 0, 1);
    }

    /// Draws the next token of the rows from `first` on, `share` of which share each row of `hidden`.
    fn draw(&mut self, hidden: &Tensor, first: usize, share: usize) {
        let logits =
            hidden.matmul(&self.model.output().tr()).to_kind(Kind::Float).to_device(tch::Device::Cpu);
        let vocabulary = self.model.config().vocab_size;
        self.logits.resize(logits.numel(), 0.0);
        logits.copy_data(&mut self.logits, logits.numel());
        let (version, sampling, eos_ids) = (self.version, &self.config.sampling, self.tokenizer.eos_ids());
        let greedy = SamplingConfig { temperature: 0.0, ..sampling.clone() };
        let logits = &self.logits;
        self.rows[first..].par_iter_mut().enumerate().for_each(|(index, row)| {
            let logits = &logits[index / share * vocabulary..][..vocabulary];
            let position = row.completion.tokens.len() as u64;
            let sampling = if row.greedy { &greedy } else { sampling };
            let drawn = draw(logits, sampling, &mut row.stream, position);
            row.push(drawn, version, eos_ids);
        });
        self.sampled_tokens += (self.rows.len() - first) as u64;
    }

    /// Takes finished sequences out; `groups` gets what this completes.
    fn retire(&mut self, groups: &mut Vec<Group>) -> Result<()> {
        let mut slot = 0;
        while slot < self.rows.len() {
            if !self.rows[slot].done {
                slot += 1;
                continue;
            }
            let mut row = self.rows.swap_remove(slot);
            if let Some(moved) = self.rows.get(slot) {
                self.cache.relocate(self.rows.len(), slot, moved.length);
            }
            row.completion.text = self.tokenizer.decode(&row.completion.tokens, true)?;
            let owner =
                self.unfinished.iter().position(|unfinished| unfinished.group.prompt.id == row.prompt_id);
            let Some(owner) = owner else { continue };
            let unfinished = &mut self.unfinished[owner];
            unfinished.group.completions.push(row.completion);
            unfinished.missing -= 1;
            if unfinished.missing == 0 {
                let mut group = self.unfinished.remove(owner).group;
                group.completions.sort_by_key(|completion| completion.sample);
                groups.push(group);
            }
        }
        Ok(())
    }
}
