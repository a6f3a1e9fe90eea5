//! Batched generation: finished sequences leave at once and waiting requests take their places.
//!
//! - [`Engine`]: completes requests, each with its own options;
//! - [`Request`], and what comes back of it: [`DrawnToken`]s while it goes on, an [`Answer`] in the end;
//! - `mixture`: a second model, from whose mixture with the first some samples are drawn;
//! - [`GroupSampler`]: prompts and groups, all with the same options, on top of it;
//! - `text`: tokens to text while they come, and stop strings.
//!
//! A request's samples share one pass over its prompt. Tokens are drawn with random numbers of the host's,
//! keyed by (seed, prompt, sample, token), so that a sample does not depend on its neighbours.

mod group_sampler;
mod mixture;
mod request;
mod text;

use std::collections::VecDeque;
use std::sync::Arc;

use arriero_buffers::random::{Purpose, Stream};
use arriero_buffers::{Completion, Finish};
use tch::{Device, Kind, Tensor, no_grad};

use crate::cache::{KvCache, Sequence};
use crate::device::upload;
use crate::error::{PolicyError, Result};
use crate::forest::Forest;
use crate::kernels;
use crate::model::Model;
use crate::sampling::{Alternative, Draw, SamplingConfig, alternatives, draw_all, host_copy};
use crate::tokenizer::Tokenizer;

use mixture::{Mixture, last_token};

pub use group_sampler::{GenerationConfig, GroupSampler};
pub use request::{Answer, DrawnToken, Request};
use text::TextStream;

/// Prompt tokens that go through the model at once.
const PREFILL_TOKENS: usize = 1024;

/// The share of the free memory that the cache may take where nothing else is said.
const CACHE_SHARE: f64 = 0.5;

/// A request that waits for its turn.
struct Waiting {
    id: u64,
    request: Arc<Request>,
}

/// A request whose prompt has its places in the caches.
struct Admitted {
    waiting: Waiting,
    sequences: Vec<Sequence>,
    /// In the cache of the second model, of the last samples.
    mixed: Vec<Sequence>,
}

/// A request whose completions are not all there yet.
struct Unfinished {
    answer: Answer,
    missing: usize,
}

/// A sequence that is being decoded.
struct Row {
    request_id: u64,
    request: Arc<Request>,
    limit: usize,
    sequence: Sequence,
    /// Its place in the cache of the second model, where it is drawn from the mixture.
    mixed: Option<Sequence>,
    stream: Stream,
    completion: Completion,
    /// Kept where somebody looks at the text before the end: stop strings, reports.
    text: Option<TextStream>,
    drawn: Option<DrawnToken>,
    done: bool,
}

impl Row {
    /// How its tokens are drawn.
    fn sampling(&self) -> SamplingConfig {
        let greedy = self.request.greedy_last && self.completion.sample as usize + 1 == self.request.samples;
        let sampling = self.request.sampling.clone();
        if greedy { SamplingConfig { temperature: 0.0, ..sampling } } else { sampling }
    }

    /// Adds a token; `alternatives` is what else could have been drawn, where somebody asked.
    fn advance(
        &mut self,
        drawn: Draw,
        alternatives: Vec<Alternative>,
        version: u32,
        tokenizer: &Tokenizer,
    ) -> Result<()> {
        let request = &self.request;
        let completion = &mut self.completion;
        completion.push(drawn.token, drawn.logp, drawn.sampled_logp, version);
        if request.end_tokens.contains(&drawn.token) {
            completion.finish = Finish::EndOfTurn;
        }
        self.done = completion.finish == Finish::EndOfTurn || completion.drawn_len() >= self.limit;
        let Some(text) = &mut self.text else { return Ok(()) };
        if text.push(tokenizer, drawn.token, self.done)? {
            if completion.finish != Finish::EndOfTurn {
                completion.finish = Finish::Stop;
            }
            self.done = true;
        }
        if request.report {
            self.drawn = Some(DrawnToken {
                request_id: self.request_id,
                sample: completion.sample,
                draw: drawn,
                alternatives,
                text: text.take_new(),
                finish: self.done.then_some(completion.finish),
            });
        }
        Ok(())
    }
}

/// A model that completes requests.
pub struct Engine {
    model: Model,
    version: u32,
    tokenizer: Tokenizer,
    /// Sequences decoded at once.
    batch: usize,
    cache: KvCache,
    /// Bytes of the caches together.
    cache_memory: usize,
    mixture: Option<Mixture>,
    next_id: u64,
    waiting: VecDeque<Waiting>,
    rows: Vec<Row>,
    unfinished: Vec<Unfinished>,
    drawn: Vec<DrawnToken>,
    sampled_tokens: u64,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("version", &self.version)
            .field("rows", &self.rows.len())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine of weights `version` that decodes up to `batch` sequences at once.
    pub fn new(model: Model, version: u32, tokenizer: Tokenizer, batch: usize) -> Self {
        let available = match model.compute().device {
            Device::Cpu => available_memory(),
            _ => kernels::free_device_memory(model.output().matrix()),
        };
        let cache_memory = (available as f64 * CACHE_SHARE) as usize;
        let cache = KvCache::new(&model, cache_memory);
        Engine {
            model: model.packed(),
            version,
            tokenizer,
            batch,
            cache,
            cache_memory,
            mixture: None,
            next_id: 0,
            waiting: VecDeque::new(),
            rows: Vec::new(),
            unfinished: Vec::new(),
            drawn: Vec::new(),
            sampled_tokens: 0,
        }
    }

    /// The same engine with a cache of at most this many bytes. Without it, half the memory that was free.
    pub fn with_cache_memory(mut self, bytes: usize) -> Self {
        self.cache_memory = bytes;
        self.share_memory();
        self
    }

    /// The same engine with room for `batch` sequences at once.
    fn with_batch(mut self, batch: usize) -> Self {
        self.batch = self.batch.max(batch);
        self
    }

    /// The same engine with a second model of the same vocabulary, which has this weight in the mixture that
    /// [`Request::mixed`] samples are drawn from. Half of the cache's memory is its.
    ///
    /// # Errors
    /// If the vocabularies differ in size.
    pub fn with_mixture(mut self, model: Model, weight: f64) -> Result<Self> {
        let (found, expected) = (model.config().vocab_size, self.model.config().vocab_size);
        if found != expected {
            let message =
                format!("a mixture with a model of {found} tokens, expected {expected} as the engine's");
            return Err(PolicyError::WrongRequest { message });
        }
        self.mixture = Some(Mixture::new(model, weight));
        self.share_memory();
        Ok(self)
    }

    fn share_memory(&mut self) {
        let share = match &mut self.mixture {
            Some(mixture) => {
                mixture.give_memory(self.cache_memory / 2);
                self.cache_memory / 2
            }
            None => self.cache_memory,
        };
        self.cache = KvCache::new(&self.model, share);
    }

    /// Goes on with other weights of the same shape. What is in the cache stays: sequences that are under way go on from
    /// keys and values of the weights before, and each of their tokens names the weights that drew it.
    pub fn renew(&mut self, model: Model, version: u32) {
        self.model = model.packed();
        self.version = version;
    }

    /// The most tokens that a sequence of this request can have.
    fn most_tokens(&self, request: &Request) -> usize {
        let wanted = request.tokens.len().saturating_add(request.sampling.max_new_tokens);
        wanted.min(self.model.config().max_positions)
    }

    /// Accepts a request, and gives it a number.
    ///
    /// # Errors
    /// If its prompt is empty, leaves no room in the model's context or needs more than the whole cache, or
    /// an option is out of range.
    pub fn submit(&mut self, mut request: Request) -> Result<u64> {
        let (prompt_id, limit) = (request.prompt_id, self.model.config().max_positions);
        if request.tokens.is_empty() {
            return Err(PolicyError::EmptyPrompt { prompt_id });
        }
        if request.tokens.len() >= limit {
            return Err(PolicyError::PromptTooLong { prompt_id, tokens: request.tokens.len(), limit });
        }
        if !(1..=self.batch).contains(&request.samples) {
            let message =
                format!("samples is {}; it must be at least 1 and at most {}", request.samples, self.batch);
            return Err(PolicyError::WrongRequest { message });
        }
        request.sampling.validate().map_err(|message| PolicyError::WrongRequest { message })?;
        self.cache.check(request.tokens.len(), request.samples, self.most_tokens(&request))?;
        let room = self.mixture.as_ref().map_or(0, |_| request.samples);
        if request.mixed > room {
            let message = format!(
                "mixed is {}; it must be at most {room}, the samples of an engine with two models",
                request.mixed
            );
            return Err(PolicyError::WrongRequest { message });
        }
        if let Some(mixture) = self.mixture.as_ref().filter(|_| request.mixed > 0) {
            mixture.cache.check(request.tokens.len(), request.mixed, self.most_tokens(&request))?;
        }
        // Special tokens are no text, so that text never contains them.
        let tokenizer = &self.tokenizer;
        let marker = |stop: &String| tokenizer.id(stop).filter(|&id| tokenizer.is_special(id));
        request.end_tokens.extend(request.sampling.stop.iter().filter_map(marker));
        let id = self.next_id;
        self.next_id += 1;
        self.waiting.push_back(Waiting { id, request: Arc::new(request) });
        Ok(id)
    }

    /// Forgets a request: its sequences make room at once. False if it is not here (any more).
    pub fn cancel(&mut self, request_id: u64) -> bool {
        let before = self.waiting.len() + self.unfinished.len();
        self.waiting.retain(|waiting| waiting.id != request_id);
        self.unfinished.retain(|unfinished| unfinished.answer.request_id != request_id);
        self.drawn.retain(|drawn| drawn.request_id != request_id);
        while let Some(slot) = self.rows.iter().position(|row| row.request_id == request_id) {
            self.leave(slot);
        }
        before > self.waiting.len() + self.unfinished.len()
    }

    /// True if nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.rows.is_empty()
    }

    /// Tokens drawn so far.
    pub fn sampled_tokens(&self) -> u64 {
        self.sampled_tokens
    }

    /// Requests that wait for their turn.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sequences that are being decoded.
    pub fn decoding(&self) -> usize {
        self.rows.len()
    }

    /// The tokens that were drawn since the last call, for the requests that report.
    pub fn take_drawn(&mut self) -> Vec<DrawnToken> {
        std::mem::take(&mut self.drawn)
    }

    /// Admits what fits, then adds one token to every sequence. Returns the requests that this
    /// completed.
    ///
    /// # Errors
    /// If there is no memory for the cache, or a completion's tokens cannot be decoded.
    pub fn step(&mut self) -> Result<Vec<Answer>> {
        no_grad(|| {
            let mut answers = Vec::new();
            self.admit()?;
            self.retire(&mut answers)?;
            if !self.rows.is_empty() {
                self.decode()?;
                self.retire(&mut answers)?;
            }
            Ok(answers)
        })
    }

    /// Passes waiting prompts through the model, as many as there is room for, and draws the first
    /// token of each of their samples.
    fn admit(&mut self) -> Result<()> {
        let mut admitted: Vec<Admitted> = Vec::new();
        let (mut tokens, mut decoding) = (0, self.rows.len());
        while let Some(Waiting { request, .. }) = self.waiting.front() {
            let fits = admitted.is_empty() || tokens + request.tokens.len() <= PREFILL_TOKENS;
            let (prompt, samples, most) = (request.tokens.len(), request.samples, self.most_tokens(request));
            let second = self.mixture.as_ref().filter(|_| request.mixed > 0);
            let has_room = self.cache.has_room(prompt, samples, most)
                && second.is_none_or(|mixture| mixture.cache.has_room(prompt, request.mixed, most));
            if decoding + samples > self.batch || !fits || !has_room {
                break;
            }
            tokens += prompt;
            decoding += samples;
            let mixed = match &mut self.mixture {
                Some(mixture) if request.mixed > 0 => mixture.cache.admit(prompt, request.mixed, most)?,
                _ => Vec::new(),
            };
            let sequences = self.cache.admit(prompt, samples, most)?;
            admitted.extend(self.waiting.pop_front().map(|waiting| Admitted { waiting, sequences, mixed }));
        }
        if admitted.is_empty() {
            return Ok(());
        }
        let compute = self.model.compute();
        let prompts: Vec<(u64, &[u32])> = admitted
            .iter()
            .map(|Admitted { waiting, .. }| (waiting.request.prompt_id, &waiting.request.tokens[..]))
            .collect();
        let forest = Forest::pack_prompts(&prompts, self.model.config().max_positions, compute.device)?;
        let first: Vec<&Sequence> = admitted.iter().map(|admitted| &admitted.sequences[0]).collect();
        let slots = self.cache.prompt_slots(&first);
        let cache = &mut self.cache;
        let hidden = self.model.forest(&forest, &mut |layer, qkv| cache.fill(layer, qkv, &slots));
        let groups: Vec<&[Sequence]> = admitted.iter().map(|admitted| &admitted.sequences[..]).collect();
        self.cache.share_prompts(&groups);
        let ends: Vec<i64> = forest.spans.iter().map(|span| span.start + span.prompt - 1).collect();
        let hidden = hidden.index_select(0, &upload(&ends, compute.device));
        let mut logits = self.model.logits(&hidden);
        // Rows of the mixture's logits follow those of the policy's.
        let mut next_mixed = admitted.len();
        if let Some(mixture) = &mut self.mixture {
            logits = mixture.admit(&admitted, logits)?;
        }
        let first_row = self.rows.len();
        let mut sources = Vec::new();
        for (source, Admitted { waiting: Waiting { id, request }, sequences, mixed }) in
            admitted.into_iter().enumerate()
        {
            sources.extend(std::iter::repeat_n(source, request.samples - mixed.len()));
            sources.extend(std::iter::repeat_n(next_mixed, mixed.len()));
            next_mixed += usize::from(!mixed.is_empty());
            let own = std::iter::repeat_with(|| None).take(request.samples - mixed.len());
            let mixed = own.chain(mixed.into_iter().map(Some));
            for (sample, (sequence, mixed)) in (0..).zip(sequences.into_iter().zip(mixed)) {
                let row = self.row(id, &request, sample, sequence);
                self.rows.push(Row { mixed, ..row });
            }
            let missing = request.samples;
            let answer = Answer { request_id: id, request, completions: Vec::new() };
            self.unfinished.push(Unfinished { answer, missing });
        }
        self.draw(&logits, first_row, &sources)
    }

    /// A sequence that has its prompt in the cache and nothing else.
    fn row(&self, request_id: u64, request: &Arc<Request>, sample: u32, sequence: Sequence) -> Row {
        let room = self.model.config().max_positions - request.tokens.len();
        let watched = request.report || !request.sampling.stop.is_empty();
        Row {
            request_id,
            limit: request.sampling.max_new_tokens.min(room),
            sequence,
            mixed: None,
            stream: Stream::new(request.seed, Purpose::Sampling, request.prompt_id, sample.into()),
            completion: Completion::empty(sample),
            text: watched.then(|| TextStream::new(&request.sampling.stop)),
            drawn: None,
            done: false,
            request: Arc::clone(request),
        }
    }

    fn decode(&mut self) -> Result<()> {
        let compute = self.model.compute();
        let tokens: Vec<i64> = self.rows.iter().map(|row| last_token(&row.completion)).collect();
        let positions: Vec<i64> = self.rows.iter().map(|row| row.sequence.len() as i64).collect();
        let step = self.cache.step(self.rows.iter_mut().map(|row| &mut row.sequence))?;
        let place = |values: &[i64]| upload(values, compute.device);
        let cache = &mut self.cache;
        let hidden = self
            .model
            .layers(&place(&tokens), &place(&positions), &mut |layer, qkv| cache.attend(&step, layer, qkv));
        let mut logits = self.model.logits(&hidden);
        if let Some(mixture) = &mut self.mixture {
            logits = mixture.decode(&mut self.rows, logits)?;
        }
        let sources: Vec<usize> = (0..self.rows.len()).collect();
        self.draw(&logits, 0, &sources)
    }

    /// Draws the next token of the rows from `first` on; each one's row of `logits` is in `sources`.
    fn draw(&mut self, logits: &Tensor, first: usize, sources: &[usize]) -> Result<()> {
        let vocabulary = self.model.config().vocab_size;
        let rows = &mut self.rows[first..];
        let configs: Vec<SamplingConfig> = rows.iter().map(Row::sampling).collect();
        let wanted = rows.iter_mut().zip(&configs).zip(sources);
        let mut wanted: Vec<_> = wanted
            .map(|((row, config), &source)| {
                let position = row.completion.drawn_len() as u64;
                (source, config, &mut row.stream, position)
            })
            .collect();
        let draws = draw_all(logits, &mut wanted);
        // A logit that is no number makes the sum of all none. On a device that is the sum in the log-probability, which
        // is on the host already.
        let is_broken =
            logits.device() == Device::Cpu && !logits.sum(Kind::Float).double_value(&[]).is_finite();
        if is_broken || draws.iter().any(|draw| !draw.logp.is_finite()) {
            return Err(PolicyError::LogitsNotFinite);
        }
        let looks = rows.iter().any(|row| row.request.alternatives > 0);
        let host = if looks { host_copy(logits) } else { Vec::new() };
        for ((row, drawn), source) in rows.iter_mut().zip(draws).zip(sources) {
            let others = match row.request.alternatives {
                0 => Vec::new(),
                count => alternatives(&host[source * vocabulary..][..vocabulary], &drawn, count),
            };
            row.advance(drawn, others, self.version, &self.tokenizer)?;
        }
        self.drawn.extend(rows.iter_mut().filter_map(|row| row.drawn.take()));
        self.sampled_tokens += sources.len() as u64;
        Ok(())
    }

    /// Takes finished sequences out; `answers` gets what this completes.
    fn retire(&mut self, answers: &mut Vec<Answer>) -> Result<()> {
        let mut slot = 0;
        while slot < self.rows.len() {
            if !self.rows[slot].done {
                slot += 1;
                continue;
            }
            let mut row = self.leave(slot);
            row.completion.text = match row.text {
                Some(text) => text.into_text(),
                None => self.tokenizer.decode(&row.completion.drawn_tokens().collect::<Vec<_>>(), true)?,
            };
            let owner = |unfinished: &Unfinished| unfinished.answer.request_id == row.request_id;
            let Some(owner) = self.unfinished.iter().position(owner) else { continue };
            let unfinished = &mut self.unfinished[owner];
            unfinished.answer.completions.push(row.completion);
            unfinished.missing -= 1;
            if unfinished.missing == 0 {
                let mut answer = self.unfinished.remove(owner).answer;
                answer.completions.sort_by_key(|completion| completion.sample);
                answers.push(answer);
            }
        }
        Ok(())
    }

    /// Takes a sequence out of the batch.
    fn leave(&mut self, index: usize) -> Row {
        let mut row = self.rows.swap_remove(index);
        self.cache.release(std::mem::take(&mut row.sequence));
        if let (Some(mixture), Some(sequence)) = (&mut self.mixture, row.mixed.take()) {
            mixture.cache.release(sequence);
        }
        row
    }
}

/// Bytes of memory that nobody uses, as Linux tells it; elsewhere 8 GiB are assumed.
fn available_memory() -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok());
    kibibytes.map_or(8 << 30, |kibibytes| kibibytes << 10)
}
