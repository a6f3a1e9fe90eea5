//! Prompts and groups on top of the engine.

use std::collections::HashMap;
use std::sync::Arc;

use arriero_buffers::{Group, Prompt};

use super::{Answer, Engine, Request};
use crate::error::Result;
use crate::model::Model;
use crate::sampling::SamplingConfig;
use crate::tokenizer::Tokenizer;

/// Options of a [`GroupSampler`].
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

/// An engine that completes prompts, all with the same options.
#[derive(Debug)]
pub struct GroupSampler {
    engine: Engine,
    tokenizer: Tokenizer,
    config: GenerationConfig,
    /// By the request's number, which grows with each submission.
    prompts: HashMap<u64, Arc<Prompt>>,
    greedy_last: bool,
    mixed: usize,
}

impl GroupSampler {
    /// A sampler of weights `version`.
    pub fn new(model: Model, version: u32, tokenizer: Tokenizer, config: GenerationConfig) -> Self {
        // A greedy sample more has its place.
        let batch = config.batch.max(config.samples.saturating_add(1));
        let engine = Engine::new(model, version, tokenizer.clone(), batch);
        GroupSampler { engine, tokenizer, config, prompts: HashMap::new(), greedy_last: false, mixed: 0 }
    }

    /// Decodes one completion more of each prompt, the last one, greedily: ReMax's baseline.
    pub fn with_greedy_baseline(mut self) -> Self {
        self.config.samples += 1;
        self.greedy_last = true;
        self
    }

    /// Decodes as many completions again of each prompt, the last ones, drawn from the geometric mixture of the model with
    /// `other`, which has this weight in it: the reference's for XPO, the mixture's for Nash-MD.
    ///
    /// # Errors
    /// As [`Engine::with_mixture`].
    pub fn with_mixture(mut self, other: Model, weight: f64) -> Result<Self> {
        self.mixed = self.config.samples;
        self.config.samples *= 2;
        self.engine =
            self.engine.with_mixture(other, weight)?.with_batch(self.config.batch.max(self.config.samples));
        Ok(self)
    }

    /// As [`Engine::with_cache_memory`].
    pub fn with_cache_memory(mut self, bytes: usize) -> Self {
        self.engine = self.engine.with_cache_memory(bytes);
        self
    }

    /// As [`Engine::renew`].
    pub fn renew(&mut self, model: Model, version: u32) {
        self.engine.renew(model, version);
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
        let request_id = self.engine.submit(Request {
            tokens,
            samples: self.config.samples,
            sampling: self.config.sampling.clone(),
            end_tokens: self.tokenizer.eos_ids().to_vec(),
            seed: self.config.seed,
            prompt_id: prompt.id,
            greedy_last: self.greedy_last,
            mixed: self.mixed,
            report: false,
            alternatives: 0,
        })?;
        self.prompts.insert(request_id, prompt);
        Ok(())
    }

    /// True if nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.engine.is_idle()
    }

    /// Tokens drawn so far.
    pub fn sampled_tokens(&self) -> u64 {
        self.engine.sampled_tokens()
    }

    /// Admits what fits, then adds one token to every sequence. Returns the groups that this
    /// completed.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn step(&mut self) -> Result<Vec<Group>> {
        let answers = self.engine.step()?;
        Ok(answers.into_iter().filter_map(|answer| self.group(answer)).collect())
    }

    /// Works until idle; the groups in the order of their prompts' submission.
    ///
    /// # Errors
    /// As [`GroupSampler::step`].
    pub fn run(&mut self) -> Result<Vec<Group>> {
        let mut answers = Vec::new();
        while !self.is_idle() {
            answers.extend(self.engine.step()?);
        }
        answers.sort_by_key(|answer| answer.request_id);
        Ok(answers.into_iter().filter_map(|answer| self.group(answer)).collect())
    }

    fn group(&mut self, answer: Answer) -> Option<Group> {
        let prompt = self.prompts.remove(&answer.request_id)?;
        let Request { tokens, .. } = Arc::unwrap_or_clone(answer.request);
        Some(Group { prompt, prompt_tokens: tokens, completions: answer.completions })
    }
}
