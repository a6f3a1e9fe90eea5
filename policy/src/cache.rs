//! The generator's keys and values.

use tch::Tensor;

use crate::config::{ModelConfig, SlidingWindow};
use crate::device::Compute;
use crate::error::{PolicyError, Result};
use crate::forest::TreeSpan;

/// Keys and values of up to `slots` sequences. The sequences in use lie in the first slots, without
/// gaps, so that a decode step works on one block.
#[derive(Debug)]
pub struct KvCache {
    /// (keys, values) of each layer, `[slots, capacity, kv_heads, head_dim]`.
    layers: Vec<(Tensor, Tensor)>,
    slots: usize,
    capacity: i64,
    window: Option<SlidingWindow>,
}

/// Where a decode step writes, and what it may see.
#[derive(Debug)]
pub struct DecodeStep {
    /// The token's row in the cache seen as `[slots × capacity]`, i64 `[sequences]`.
    rows: Tensor,
    /// Additive, `[sequences, 1, 1, longest]`.
    mask: Tensor,
    /// The same for layers with a sliding window, where that hides anything.
    window_mask: Option<Tensor>,
    longest: i64,
}

impl KvCache {
    /// A cache without room.
    pub fn empty() -> Self {
        KvCache { layers: Vec::new(), slots: 0, capacity: 0, window: None }
    }

    /// A cache for `slots` sequences of up to `capacity` tokens.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new(config: &ModelConfig, compute: Compute, slots: usize, capacity: usize) -> Result<Self> {
        let shape = [slots as i64, capacity as i64, config.num_kv_heads as i64, config.head_dim as i64];
        let refused = |_| PolicyError::CacheTooLarge { slots, capacity };
        let empty = || Tensor::f_zeros(shape, (compute.kind, compute.device)).map_err(refused);
        let layers = (0..config.num_layers).map(|_| Ok((empty()?, empty()?))).collect::<Result<_>>()?;
        Ok(KvCache { layers, slots, capacity: capacity as i64, window: config.sliding_window.clone() })
    }

    /// Sequences that there is room for.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Tokens a sequence may have.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Copies one layer's keys and values of a prompt into `count` slots from `slot` on.
    pub fn fill(
        &mut self,
        layer: usize,
        slot: usize,
        count: usize,
        span: &TreeSpan,
        key: &Tensor,
        value: &Tensor,
    ) {
        let (keys, values) = &self.layers[layer];
        for (store, rows) in [(keys, key), (values, value)] {
            let rows = rows.narrow(0, span.start, span.prompt);
            let mut target = store.narrow(0, slot as i64, count as i64).narrow(1, 0, span.prompt);
            target.copy_(&rows.unsqueeze(0).expand_as(&target));
        }
    }

    /// Moves a sequence of `length` tokens to another slot.
    pub fn relocate(&mut self, from: usize, to: usize, length: usize) {
        for (keys, values) in &self.layers {
            for store in [keys, values] {
                let part = |slot: usize| store.get(slot as i64).narrow(0, 0, length as i64);
                part(to).copy_(&part(from));
            }
        }
    }

    /// Copies the first `sequences` slots of a smaller cache.
    pub fn adopt(&mut self, smaller: &KvCache, sequences: usize) {
        for (new, old) in self.layers.iter().zip(&smaller.layers) {
            for (new, old) in [(&new.0, &old.0), (&new.1, &old.1)] {
                let part =
                    |store: &Tensor| store.narrow(0, 0, sequences as i64).narrow(1, 0, smaller.capacity);
                part(new).copy_(&part(old));
            }
        }
    }

    /// Prepares a step that adds one token to each of the first `lengths.len()` sequences, which have
    /// `lengths` tokens so far.
    pub fn step(&self, lengths: &[usize], compute: Compute) -> DecodeStep {
        let longest = lengths.iter().max().map_or(0, |&length| length + 1);
        let rows: Vec<i64> = lengths
            .iter()
            .enumerate()
            .map(|(slot, &length)| slot as i64 * self.capacity + length as i64)
            .collect();
        let mask = |window: usize| {
            let mut mask = vec![0.0f32; lengths.len() * longest];
            for (row, &length) in mask.chunks_mut(longest.max(1)).zip(lengths) {
                row[length + 1..].fill(f32::NEG_INFINITY);
                row[..(length + 1).saturating_sub(window)].fill(f32::NEG_INFINITY);
            }
            Tensor::from_slice(&mask)
                .view([lengths.len() as i64, 1, 1, longest as i64])
                .to_device(compute.device)
                .to_kind(compute.kind)
        };
        let window = self.window.as_ref().filter(|window| window.size < longest);
        DecodeStep {
            rows: Tensor::from_slice(&rows).to_device(compute.device),
            mask: mask(longest),
            window_mask: window.map(|window| mask(window.size)),
            longest: longest as i64,
        }
    }

    /// Stores one layer's new keys and values `[sequences, kv_heads, head_dim]` and attends to all
    /// that each sequence has, or to the window: `[sequences, heads, head_dim]`.
    pub fn attend(
        &mut self,
        step: &DecodeStep,
        layer: usize,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
    ) -> Tensor {
        let (keys, values) = &self.layers[layer];
        let [sequences, kv_heads, head_dim] = key.size()[..] else { unreachable!("three dimensions") };
        for (store, new) in [(keys, key), (values, value)] {
            let mut flat = store.view([-1, kv_heads, head_dim]);
            let _ = flat.index_copy_(0, &step.rows, new);
        }
        let seen = |store: &Tensor| store.narrow(0, 0, sequences).narrow(1, 0, step.longest).transpose(1, 2);
        // The query heads of one key head stand in the place of query positions, so that keys and
        // values are read where they lie, once for the whole group.
        let grouped = query.view([sequences, kv_heads, -1, head_dim]);
        let groups = grouped.size()[2];
        let windowed = self.window.as_ref().is_some_and(|window| window.layers[layer]);
        let mask = step.window_mask.as_ref().filter(|_| windowed).unwrap_or(&step.mask);
        let mask = mask.expand([sequences, 1, groups, step.longest], false);
        Tensor::scaled_dot_product_attention(
            &grouped,
            &seen(keys),
            &seen(values),
            Some(&mask),
            0.0,
            false,
            None,
            false,
        )
        .reshape([sequences, -1, head_dim])
    }
}
