//! The generator's keys and values, in pages.
//!
//! A sequence holds pages of [`PAGE_TOKENS`] tokens. The samples of a prompt share its full pages; the last,
//! partly filled one is copied for each. What a sequence may need in the end is promised to it when it is
//! admitted, so that none is stopped half-way; pages are taken as they fill, and memory as pages are taken.

use tch::{Kind, Tensor};

use crate::device::{Compute, upload};
use crate::error::{PolicyError, Result};
use crate::kernels::{self, AttentionShape, PAGE_TOKENS};
use crate::model::Model;

/// Pages that the cache has room for at first.
const FIRST_PAGES: usize = 64;

/// The pages of one sequence.
#[derive(Debug, Default)]
pub struct Sequence {
    pages: Vec<u32>,
    /// Tokens in the cache.
    length: usize,
    /// Pages that it may still take.
    promised: usize,
}

impl Sequence {
    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.length
    }

    /// True before the prompt is there.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Where a token lies, counted over all pages.
    fn slot(&self, token: usize) -> i64 {
        (self.pages[token / PAGE_TOKENS] as usize * PAGE_TOKENS + token % PAGE_TOKENS) as i64
    }
}

/// Keys and values of all sequences.
#[derive(Debug)]
pub struct KvCache {
    /// Of each layer: `[pages, kv_heads, 2, page tokens × head_dim]` as the kernels want it, else
    /// `[pages, page tokens, 2, kv_heads, head_dim]`; keys, then values.
    layers: Vec<Tensor>,
    shapes: Vec<AttentionShape>,
    compute: Compute,
    fast: bool,
    /// How many sequences hold each page.
    holders: Vec<u32>,
    free: Vec<u32>,
    /// Pages promised or held, and how many there may be.
    promised: usize,
    limit: usize,
}

/// Where the tokens of prompts lie.
#[derive(Debug)]
pub struct PromptSlots {
    host: Vec<i64>,
    /// The same for libtorch's ordinary operators, copied once for all layers.
    device: Option<Tensor>,
}

/// Where a decode step writes, and what it may see.
#[derive(Debug)]
pub struct DecodeStep {
    /// The new token's place of each sequence.
    slots: Vec<i64>,
    /// Pages of each sequence, rows of one width.
    tables: Vec<i64>,
    /// Tokens of each sequence, the new one included.
    lengths: Vec<i64>,
    /// The same for libtorch's ordinary operators.
    plain: Option<PlainStep>,
}

#[derive(Debug)]
struct PlainStep {
    slots: Tensor,
    tables: Tensor,
    /// Additive, `[sequences, 1, 1, table tokens]`, of layers without and with a window.
    masks: [Tensor; 2],
}

fn pages_of(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}

impl KvCache {
    /// An empty cache for `model` that may grow to `limit` bytes.
    pub fn new(model: &Model, limit: usize) -> Self {
        let config = model.config();
        let shapes: Vec<_> = (0..config.num_layers).map(|layer| model.attention_shape(layer)).collect();
        let mut cache = KvCache {
            layers: Vec::new(),
            shapes,
            compute: model.compute(),
            fast: model.is_fast(),
            holders: Vec::new(),
            free: Vec::new(),
            promised: 0,
            limit: 0,
        };
        cache.limit = limit / cache.page_bytes();
        cache
    }

    /// Bytes of a page in all layers.
    fn page_bytes(&self) -> usize {
        let element = if self.compute.kind == Kind::Float { 4 } else { 2 };
        self.shapes.iter().map(|shape| shape.kv_heads * shape.head_dim).sum::<i64>() as usize
            * 2
            * PAGE_TOKENS
            * element
    }

    /// Pages that `samples` sequences of up to `most` tokens after a common prompt need.
    fn needed(prompt: usize, samples: usize, most: usize) -> usize {
        let shared = prompt / PAGE_TOKENS;
        shared.saturating_add(samples.saturating_mul(pages_of(most) - shared))
    }

    /// Whether this much fits an empty cache.
    ///
    /// # Errors
    /// If it never will.
    pub fn check(&self, prompt: usize, samples: usize, most: usize) -> Result<()> {
        let needed = Self::needed(prompt, samples, most);
        match needed <= self.limit {
            true => Ok(()),
            false => Err(PolicyError::CacheTooSmall {
                sequences: samples,
                tokens: most,
                needed: needed.saturating_mul(self.page_bytes()) >> 20,
                limit: self.limit.saturating_mul(self.page_bytes()) >> 20,
            }),
        }
    }

    /// Whether this much fits beside what is there.
    pub fn has_room(&self, prompt: usize, samples: usize, most: usize) -> bool {
        self.promised.saturating_add(Self::needed(prompt, samples, most)) <= self.limit
    }

    /// Room for a prompt and its samples; the first sequence is the one that [`KvCache::fill`] is to fill.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn admit(&mut self, prompt: usize, samples: usize, most: usize) -> Result<Vec<Sequence>> {
        let shared = prompt / PAGE_TOKENS;
        self.promised += Self::needed(prompt, samples, most);
        let mut first = Sequence { pages: Vec::new(), length: prompt, promised: pages_of(most) };
        for _ in 0..pages_of(prompt) {
            self.take(&mut first)?;
        }
        let mut sequences = Vec::with_capacity(samples);
        for _ in 1..samples {
            let pages = first.pages[..shared].to_vec();
            for &page in &pages {
                self.holders[page as usize] += 1;
            }
            let mut sequence = Sequence { pages, length: prompt, promised: pages_of(most) - shared };
            if shared < first.pages.len() {
                self.take(&mut sequence)?;
            }
            sequences.push(sequence);
        }
        sequences.insert(0, first);
        Ok(sequences)
    }

    /// Gives a sequence its next page.
    fn take(&mut self, sequence: &mut Sequence) -> Result<()> {
        if self.free.is_empty() {
            self.grow()?;
        }
        let page = self.free.pop().unwrap_or_default();
        self.holders[page as usize] = 1;
        sequence.pages.push(page);
        sequence.promised -= 1;
        Ok(())
    }

    fn grow(&mut self) -> Result<()> {
        let held = self.holders.len();
        let pages = (2 * held).max(FIRST_PAGES).min(self.limit).max(held + 1);
        for index in 0..self.shapes.len() {
            let AttentionShape { kv_heads, head_dim, .. } = self.shapes[index];
            let page = PAGE_TOKENS as i64;
            let shape = match self.fast {
                true => vec![pages as i64, kv_heads, 2, page * head_dim],
                false => vec![pages as i64, page, 2, kv_heads, head_dim],
            };
            // Zeros: a page's unused places are multiplied by weights of 0.
            let larger = Tensor::f_zeros(shape, (self.compute.kind, self.compute.device))
                .map_err(|_| PolicyError::CacheTooLarge { mebibytes: (pages * self.page_bytes()) >> 20 })?;
            match self.layers.get_mut(index) {
                Some(old) => {
                    larger.narrow(0, 0, held as i64).copy_(old);
                    *old = larger;
                }
                None => self.layers.push(larger),
            }
        }
        self.free.extend((held as u32..pages as u32).rev());
        self.holders.resize(pages, 0);
        Ok(())
    }

    /// Forgets a sequence.
    pub fn release(&mut self, sequence: Sequence) {
        self.promised -= sequence.promised;
        for page in sequence.pages {
            let holders = &mut self.holders[page as usize];
            *holders -= 1;
            if *holders == 0 {
                self.free.push(page);
                self.promised -= 1;
            }
        }
    }

    /// Where the tokens of these sequences lie that [`KvCache::admit`] made room for.
    pub fn prompt_slots(&self, sequences: &[&Sequence]) -> PromptSlots {
        let slots =
            |sequence: &&Sequence| (0..sequence.length).map(|token| sequence.slot(token)).collect::<Vec<_>>();
        let host: Vec<i64> = sequences.iter().flat_map(slots).collect();
        let device = (!self.fast).then(|| upload(&host, self.compute.device));
        PromptSlots { host, device }
    }

    /// Stores one layer's keys and values of rotated rows `[tokens, (heads + 2 kv_heads) head_dim]`.
    pub fn fill(&mut self, layer: usize, qkv: &Tensor, slots: &PromptSlots) {
        match &slots.device {
            None => kernels::page_write(qkv, &self.shapes[layer], &slots.host, &self.layers[layer]),
            Some(slots) => self.fill_plain(layer, qkv, slots),
        }
    }

    fn fill_plain(&mut self, layer: usize, qkv: &Tensor, slots: &Tensor) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shapes[layer];
        let rows = qkv.narrow(1, heads * head_dim, 2 * kv_heads * head_dim).to_kind(self.compute.kind);
        let mut flat = self.layers[layer].view([-1, 2, kv_heads, head_dim]);
        let _ = flat.index_copy_(0, slots, &rows.view([-1, 2, kv_heads, head_dim]));
    }

    /// Copies the partly filled last page of each first sequence to the others of its prompt.
    pub fn share_prompts(&mut self, groups: &[&[Sequence]]) {
        let (mut from, mut to) = (Vec::new(), Vec::new());
        for group in groups {
            let Some((first, others)) = group.split_first() else { continue };
            if first.length % PAGE_TOKENS > 0 {
                let page = first.length / PAGE_TOKENS;
                from.extend(others.iter().map(|_| i64::from(first.pages[page])));
                to.extend(others.iter().map(|sequence| i64::from(sequence.pages[page])));
            }
        }
        if from.is_empty() {
            return;
        }
        let place = |pages: &[i64]| upload(pages, self.compute.device);
        let (from, to) = (place(&from), place(&to));
        for layer in &mut self.layers {
            let copies = layer.index_select(0, &from);
            let _ = layer.index_copy_(0, &to, &copies);
        }
    }

    /// Prepares a step that adds one token to each of these sequences.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn step<'a>(&mut self, sequences: impl Iterator<Item = &'a mut Sequence>) -> Result<DecodeStep> {
        let mut step = DecodeStep { slots: Vec::new(), tables: Vec::new(), lengths: Vec::new(), plain: None };
        let mut tables: Vec<&[u32]> = Vec::new();
        for sequence in sequences {
            if sequence.length == sequence.pages.len() * PAGE_TOKENS {
                self.take(sequence)?;
            }
            step.slots.push(sequence.slot(sequence.length));
            sequence.length += 1;
            step.lengths.push(sequence.length as i64);
            tables.push(&sequence.pages);
        }
        let width = tables.iter().map(|pages| pages.len()).max().unwrap_or(0);
        for pages in tables {
            step.tables.extend(pages.iter().map(|&page| i64::from(page)));
            step.tables.extend(std::iter::repeat_n(0, width - pages.len()));
        }
        if !self.fast {
            step.plain = Some(self.plain_step(&step, width));
        }
        Ok(step)
    }

    /// The step on the device: one copy there, and the masks are made of it.
    fn plain_step(&self, step: &DecodeStep, width: usize) -> PlainStep {
        let sequences = step.lengths.len() as i64;
        let numbers = [&step.slots[..], &step.lengths, &step.tables].concat();
        let numbers = upload(&numbers, self.compute.device);
        let lengths = numbers.narrow(0, sequences, sequences).unsqueeze(1);
        let tokens = (width * PAGE_TOKENS) as i64;
        let places = Tensor::arange(tokens, (Kind::Int64, self.compute.device));
        let mask = |window: i64| {
            let mut hidden = places.ge_tensor(&lengths);
            if window > 0 {
                hidden = hidden.logical_or(&places.lt_tensor(&(&lengths - window)));
            }
            let zeros = Tensor::zeros([sequences, tokens], (self.compute.kind, self.compute.device));
            zeros.masked_fill(&hidden, f64::NEG_INFINITY).view([sequences, 1, 1, tokens])
        };
        let window = self.shapes.iter().map(|shape| shape.window).max().unwrap_or(0);
        let full = mask(0);
        let windowed = if window > 0 { mask(window) } else { full.shallow_clone() };
        PlainStep {
            slots: numbers.narrow(0, 0, sequences),
            tables: numbers.narrow(0, 2 * sequences, sequences * width as i64),
            masks: [full, windowed],
        }
    }

    /// Stores one layer's new keys and values and attends to all that each sequence has, or to the window:
    /// from rotated rows to `[sequences, heads head_dim]`.
    pub fn attend(&mut self, step: &DecodeStep, layer: usize, qkv: &Tensor) -> Tensor {
        let shape = self.shapes[layer];
        let qkv = &qkv.to_kind(self.compute.kind);
        let Some(plain) = &step.plain else {
            kernels::page_write(qkv, &shape, &step.slots, &self.layers[layer]);
            return kernels::page_attention(qkv, &shape, &self.layers[layer], &step.tables, &step.lengths);
        };
        self.fill_plain(layer, qkv, &plain.slots);
        let AttentionShape { heads, kv_heads, head_dim, window, .. } = shape;
        let sequences = qkv.size()[0];
        let groups = heads / kv_heads;
        let seen = self.layers[layer].index_select(0, &plain.tables);
        let seen = seen.view([sequences, -1, 2, kv_heads, head_dim]).permute([2, 0, 3, 1, 4]);
        // The query heads of one key head stand in the place of query positions, so that keys and
        // values are read once for the whole group.
        let query = qkv.narrow(1, 0, heads * head_dim);
        let query = query.reshape([sequences, kv_heads, groups, head_dim]);
        let mask = &plain.masks[usize::from(window > 0)];
        let mask = mask.expand([sequences, 1, groups, mask.size()[3]], false);
        Tensor::scaled_dot_product_attention(
            &query,
            &seen.get(0),
            &seen.get(1),
            Some(&mask),
            0.0,
            false,
            None,
            false,
        )
        .reshape([sequences, heads * head_dim])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::device::Compute;

    fn cache(limit_pages: usize) -> KvCache {
        let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny");
        let checkpoint = Checkpoint::open(&fixture).expect("the fixture");
        let model = Model::new(&checkpoint.config, &checkpoint.weights, Compute::CPU_F32).expect("a model");
        let bytes = KvCache::new(&model, 0).page_bytes();
        KvCache::new(&model, limit_pages * bytes)
    }

    /// A prompt of 20 tokens and 3 samples of up to 40: one shared page, and two more for each.
    #[test]
    fn what_is_promised_is_given_back() {
        let mut cache = cache(7);
        assert!(cache.has_room(20, 3, 40) && !cache.has_room(20, 4, 40));
        assert!(cache.check(20, 3, 40).is_ok());
        let error = cache.check(20, 4, 40).expect_err("nine pages").to_string();
        assert!(error.contains('4') && error.contains("40"), "{error}");
        let mut sequences = cache.admit(20, 3, 40).expect("memory");
        assert_eq!(cache.promised, 7);
        assert!(!cache.has_room(1, 1, 1));
        // The first page is one, the second is each one's own.
        assert!(sequences.iter().all(|sequence| sequence.pages[0] == sequences[0].pages[0]));
        let second: std::collections::HashSet<u32> =
            sequences.iter().map(|sequence| sequence.pages[1]).collect();
        assert_eq!(second.len(), 3);
        for _ in 20..40 {
            cache.step(sequences.iter_mut()).expect("what was promised");
        }
        assert!(sequences.iter().all(|sequence| sequence.len() == 40 && sequence.pages.len() == 3));
        cache.release(sequences.remove(1));
        assert_eq!(cache.promised, 5);
        for sequence in sequences {
            cache.release(sequence);
        }
        assert_eq!((cache.promised, cache.free.len()), (0, cache.holders.len()));
        assert!(cache.has_room(20, 3, 40));
    }
}
