//! Counter-based random numbers.
//!
//! A draw depends on its key and its position alone, so a sample draws the same numbers whatever
//! the batch, the worker or the restart. The generator is ChaCha with 8 rounds, whose block counter
//! gives random access (Bernstein, "ChaCha, a variant of Salsa20", 2008).

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What the numbers are for. Two purposes never share a number, even under one seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Choosing the next token of a completion.
    Sampling = 1,
    /// The order of minibatches.
    Shuffle = 2,
    /// Making prompts.
    Prompts = 3,
    /// Where adapters begin.
    Adapter = 4,
    /// Where a reward model's head begins.
    Head = 5,
    /// The order of a dataset's rows.
    Dataset = 20,
}

/// A stream of numbers that can be read at any position.
#[derive(Debug, Clone)]
pub struct Stream {
    generator: ChaCha8Rng,
}

impl Stream {
    /// The stream of `purpose` under `seed`. Two numbers of the caller's tell streams apart. For sampling they are the
    /// prompt's id and the sample's number.
    pub fn new(seed: u64, purpose: Purpose, first: u64, second: u64) -> Self {
        let mut key = [0; 32];
        for (bytes, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, first, second]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Stream { generator: ChaCha8Rng::from_seed(key) }
    }

    /// The 64 bits at `position`.
    pub fn bits(&mut self, position: u64) -> u64 {
        self.generator.set_word_pos(u128::from(position) * 2);
        self.generator.next_u64()
    }

    /// A number of [0, 1) at `position`, with 53 random bits.
    pub fn uniform(&mut self, position: u64) -> f64 {
        (self.bits(position) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A whole number of [0, bound) at `position`. The bias, below bound / 2^64, is negligible.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, position: u64, bound: usize) -> usize {
        assert!(bound > 0, "a draw below 0 has no value");
        ((u128::from(self.bits(position)) * bound as u128) >> 64) as usize
    }

    /// Fisher–Yates: `items` in a random order, the draws taken from position 0 on.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64, last + 1);
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_depends_on_its_key_and_position_only() {
        let mut stream = Stream::new(7, Purpose::Sampling, 3, 1);
        let in_order: Vec<f64> = (0..50).map(|token| stream.uniform(token)).collect();
        let mut again = Stream::new(7, Purpose::Sampling, 3, 1);
        for token in (0..50).rev() {
            assert_eq!(again.uniform(token), in_order[token as usize]);
        }
        for other in [
            Stream::new(8, Purpose::Sampling, 3, 1),
            Stream::new(7, Purpose::Shuffle, 3, 1),
            Stream::new(7, Purpose::Sampling, 4, 1),
            Stream::new(7, Purpose::Sampling, 3, 2),
        ] {
            let mut other = other;
            assert!((0..50).all(|token| other.uniform(token) != in_order[token as usize]));
        }
    }

    #[test]
    fn uniform_numbers_have_the_mean_and_variance_of_the_uniform_distribution() {
        let mut stream = Stream::new(1, Purpose::Sampling, 0, 0);
        let n = 20_000;
        let draws: Vec<f64> = (0..n).map(|position| stream.uniform(position)).collect();
        let mean = draws.iter().sum::<f64>() / n as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert!((variance - 1.0 / 12.0).abs() < 0.003, "{variance}");
    }

    #[test]
    fn a_shuffle_is_a_permutation() {
        let mut items: Vec<usize> = (0..100).collect();
        Stream::new(5, Purpose::Shuffle, 0, 0).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
