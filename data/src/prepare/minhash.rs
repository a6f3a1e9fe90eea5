//! Near-duplicates by their words: MinHash signatures (Broder, 1997) in locality-sensitive buckets (Indyk and Motwani,
//! 1998).

use std::collections::{BTreeSet, HashMap};

use arriero_buffers::random::{Purpose, Stream};
use xxhash_rust::xxh3::xxh3_64;

/// The prime 2^61 − 1, modulo which the permutations are computed.
const PRIME: u128 = (1 << 61) - 1;

/// Makes signatures. For each of `permutations` random orders of all shingles, a signature says which of the text's
/// comes first.
#[derive(Debug)]
pub struct MinHash {
    /// x ↦ a·x + b modulo [`PRIME`].
    permutations: Vec<(u128, u128)>,
    ngram: usize,
}

impl MinHash {
    /// Of shingles of `ngram` words. The permutations are always the same.
    pub fn new(permutations: usize, ngram: usize) -> Self {
        let mut stream = Stream::new(0, Purpose::Dataset, u64::MAX, 0);
        let mut draw = |place: u64| u128::from(stream.bits(place)) % (PRIME - 1) + 1;
        let permutations = (0..permutations as u64).map(|one| (draw(2 * one), draw(2 * one + 1))).collect();
        MinHash { permutations, ngram: ngram.max(1) }
    }

    /// A text's signature. Letter case, punctuation and white space do not matter. `None` for a text without words.
    pub fn signature(&self, text: &str) -> Option<Vec<u32>> {
        let hashes: BTreeSet<u64> = shingles(text, self.ngram);
        if hashes.is_empty() {
            return None;
        }
        let least = |&(a, b): &(u128, u128)| {
            let order = |&hash: &u64| ((a * (u128::from(hash) % PRIME) + b) % PRIME) as u64;
            // The upper bits of 61: enough to tell shingles apart, at half the memory.
            (hashes.iter().map(order).min().unwrap_or(0) >> 29) as u32
        };
        Some(self.permutations.iter().map(least).collect())
    }
}

/// Hashes of all runs of `ngram` words; of all words, if there are fewer.
fn shingles(text: &str, ngram: usize) -> BTreeSet<u64> {
    let lower = text.to_lowercase();
    let words: Vec<&str> =
        lower.split(|character: char| !character.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    if words.is_empty() {
        return BTreeSet::new();
    }
    words.windows(ngram.min(words.len())).map(|run| xxh3_64(run.join(" ").as_bytes())).collect()
}

/// An estimate of the share j of their shingles that two texts have in common (Jaccard's index): the share of places in
/// which their signatures agree. Its deviation is √(j(1 − j)/permutations).
pub fn similarity(one: &[u32], other: &[u32]) -> f64 {
    let equal = one.iter().zip(other).filter(|(one, other)| one == other).count();
    equal as f64 / one.len().max(1) as f64
}

/// Signatures of what was kept so far, in buckets.
#[derive(Debug)]
pub struct Neighbours {
    threshold: f64,
    /// Places of a signature that make one bucket's key.
    band: usize,
    buckets: HashMap<u64, Vec<u32>>,
    signatures: Vec<Vec<u32>>,
}

impl Neighbours {
    /// For texts that are duplicates from `threshold` on.
    pub fn new(threshold: f64, permutations: usize) -> Self {
        // With n/r bands of r places, texts of similarity s meet with probability 1 − (1 − s^r)^(n/r). These are the
        // longest bands that still let 99% of pairs at the threshold meet.
        let meets = |band: usize| {
            let bands = (permutations / band) as i32;
            1.0 - (1.0 - threshold.powi(band as i32)).powi(bands)
        };
        let band = (1..=permutations).rev().find(|&band| meets(band) >= 0.99).unwrap_or(1);
        Neighbours { threshold, band, buckets: HashMap::new(), signatures: Vec::new() }
    }

    /// The number of an earlier signature that is at least as similar as the threshold: the most similar of all that it
    /// meets. If there is none, the signature is kept under the next number.
    pub fn insert(&mut self, signature: Vec<u32>) -> Option<usize> {
        let keys: Vec<u64> = signature.chunks_exact(self.band).zip(0u64..).map(key).collect();
        let met: BTreeSet<u32> =
            keys.iter().filter_map(|key| self.buckets.get(key)).flatten().copied().collect();
        let similar = met
            .into_iter()
            .map(|number| (number as usize, similarity(&signature, &self.signatures[number as usize])));
        let best = similar
            .filter(|(_, share)| *share >= self.threshold)
            .reduce(|best, other| if other.1 > best.1 { other } else { best });
        if let Some((number, _)) = best {
            return Some(number);
        }
        let number = self.signatures.len() as u32;
        for key in keys {
            self.buckets.entry(key).or_default().push(number);
        }
        self.signatures.push(signature);
        None
    }
}

/// The bucket of a band's places.
fn key((places, band): (&[u32], u64)) -> u64 {
    let bytes: Vec<u8> =
        band.to_le_bytes().into_iter().chain(places.iter().flat_map(|place| place.to_le_bytes())).collect();
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words `from..to`, so that with shingles of one word Jaccard's index is that of the ranges.
    fn words(from: usize, to: usize) -> String {
        (from..to).map(|number| format!("w{number}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn signatures_estimate_jaccards_index() {
        let hashing = MinHash::new(256, 1);
        let signature = |text: &str| hashing.signature(text).expect("words");
        for shared in [0, 20, 50, 80, 95, 100] {
            // 100 words each, of which `shared` are common: j = s/(200 − s).
            let (one, other) = (words(0, 100), words(100 - shared, 200 - shared));
            let exact = shared as f64 / (200 - shared) as f64;
            let estimate = similarity(&signature(&one), &signature(&other));
            let deviation = (exact * (1.0 - exact) / 256.0).sqrt();
            assert!((estimate - exact).abs() <= 3.0 * deviation + 1e-9, "{shared}: {estimate} of {exact}");
        }
        assert_eq!(signature("Hello,  WORLD!"), signature("hello world"));
        assert_eq!(hashing.signature("?! …"), None);
    }

    #[test]
    fn shingles_are_runs_of_words() {
        assert_eq!(shingles("a b c d", 3).len(), 2);
        assert_eq!(shingles("a b a b", 2).len(), 2);
        assert_eq!(shingles("a b", 5), shingles("A, b.", 5));
    }

    #[test]
    fn near_duplicates_are_met_and_others_are_not() {
        let hashing = MinHash::new(128, 1);
        let signature = |text: &str| hashing.signature(text).expect("words");
        let mut neighbours = Neighbours::new(0.7, 128);
        // With five places a band, 1 − (1 − 0.7^5)^25 = 0.98995 of pairs at 0.7 meet; with four, 1 − (1 − 0.7^4)^32 =
        // 0.9998.
        assert_eq!(neighbours.band, 4);
        for number in 0..50 {
            assert_eq!(neighbours.insert(signature(&words(number * 100, number * 100 + 100))), None);
        }
        for number in 0..50 {
            let near = words(number * 100 + 5, number * 100 + 105); // j = 95/105
            assert_eq!(neighbours.insert(signature(&near)), Some(number));
        }
        let half = words(50, 150); // j = 50/150 with each of two
        assert_eq!(neighbours.insert(signature(&half)), None);
    }
}
