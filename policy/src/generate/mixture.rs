//! The second model of an engine: samples of its geometric mixture with the first, token by token.
//!
//! log π′ = (1 − c) log π + c log π_ref + constant (Munos et al., "Nash Learning from Human Feedback", 2023, §4), which is a
//! sum of logits.

use arriero_buffers::Completion;
use tch::Tensor;

use super::{Admitted, Row};
use crate::cache::{KvCache, Sequence};
use crate::device::upload;
use crate::error::Result;
use crate::forest::Forest;
use crate::model::Model;

/// See the module. It has a KV cache of its own, which holds the sequences that are drawn from the mixture.
pub(super) struct Mixture {
    model: Model,
    pub cache: KvCache,
    /// c.
    weight: f64,
}

impl Mixture {
    /// A mixture in which `model` has this weight. The cache has no room yet.
    pub fn new(model: Model, weight: f64) -> Self {
        Mixture { cache: KvCache::new(&model, 0), model: model.packed(), weight }
    }

    /// Gives the cache at most this many bytes; it must be empty.
    pub fn give_memory(&mut self, bytes: usize) {
        self.cache = KvCache::new(&self.model, bytes);
    }

    /// The mixture's logits, from the policy's: f32 `[rows, vocab]` both.
    fn mix(&self, policy: &Tensor, hidden: &Tensor) -> Tensor {
        self.model.logits(hidden) * self.weight + policy * (1.0 - self.weight)
    }

    /// Passes the prompts that want samples of the mixture through the second model. Returns the policy's logits after
    /// every prompt, as they were given, and the mixture's after each of these.
    ///
    /// # Errors
    /// If a prompt does not fit the second model's context.
    pub fn admit(&mut self, admitted: &[Admitted], logits: Tensor) -> Result<Tensor> {
        let of_mixture = || admitted.iter().enumerate().filter(|(_, admitted)| !admitted.mixed.is_empty());
        let sources: Vec<i64> = of_mixture().map(|(index, _)| index as i64).collect();
        if sources.is_empty() {
            return Ok(logits);
        }
        let prompts: Vec<(u64, &[u32])> = of_mixture()
            .map(|(_, admitted)| (admitted.waiting.request.prompt_id, &admitted.waiting.request.tokens[..]))
            .collect();
        let device = self.model.compute().device;
        let forest = Forest::pack_prompts(&prompts, self.model.config().max_positions, device)?;
        let groups: Vec<&[Sequence]> = of_mixture().map(|(_, admitted)| &admitted.mixed[..]).collect();
        let first: Vec<&Sequence> = groups.iter().map(|sequences| &sequences[0]).collect();
        let slots = self.cache.prompt_slots(&first);
        let cache = &mut self.cache;
        let hidden = self.model.forest(&forest, &mut |layer, qkv| cache.fill(layer, qkv, &slots));
        self.cache.share_prompts(&groups);
        let ends: Vec<i64> = forest.spans.iter().map(|span| span.start + span.prompt - 1).collect();
        let hidden = hidden.index_select(0, &upload(&ends, device));
        let mixed = self.mix(&logits.index_select(0, &upload(&sources, device)), &hidden);
        Ok(Tensor::cat(&[logits, mixed], 0))
    }

    /// Replaces the policy's next-token logits by the mixture's in the rows that are drawn from it.
    ///
    /// # Errors
    /// If there is no memory for the cache.
    pub fn decode(&mut self, rows: &mut [Row], logits: Tensor) -> Result<Tensor> {
        let (mut places, mut tokens, mut positions) = (Vec::new(), Vec::new(), Vec::new());
        for (place, row) in rows.iter().enumerate() {
            if let Some(sequence) = &row.mixed {
                places.push(place as i64);
                tokens.push(last_token(&row.completion));
                positions.push(sequence.len() as i64);
            }
        }
        if places.is_empty() {
            return Ok(logits);
        }
        let step = self.cache.step(rows.iter_mut().filter_map(|row| row.mixed.as_mut()))?;
        let place = |values: &[i64]| upload(values, self.model.compute().device);
        let (tokens, positions, places) = (place(&tokens), place(&positions), place(&places));
        let cache = &mut self.cache;
        let hidden =
            self.model.layers(&tokens, &positions, &mut |layer, qkv| cache.attend(&step, layer, qkv));
        let mixed = self.mix(&logits.index_select(0, &places), &hidden);
        Ok(logits.index_copy(0, &places, &mixed))
    }
}

/// The token that the next one follows.
pub(super) fn last_token(completion: &Completion) -> i64 {
    completion.last_token().map_or(0, i64::from)
}
