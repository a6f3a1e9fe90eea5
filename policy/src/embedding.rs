//! Texts as vectors: the decoder's hidden states, averaged over a text's tokens.

use arriero_buffers::Tree;
use tch::{Kind, no_grad};

use crate::error::Result;
use crate::forest::{Forest, micro_batches};
use crate::model::Model;
use crate::weights::to_host;

/// A vector of unit length for each token sequence (`hidden_size` entries; zeros for a sequence without tokens): the mean
/// of the final, normed hidden states, in packed batches of at most `budget` tokens.
///
/// The first token's state is left out where there are others: it is the same in every text, and far larger than the rest
/// in many models (Xiao et al., "Efficient streaming language models with attention sinks", 2024).
///
/// # Errors
/// If a sequence does not fit the model.
pub fn embed(model: &Model, sequences: &[Vec<u32>], budget: usize) -> Result<Vec<Vec<f32>>> {
    let tree = |tokens: &Vec<u32>| Tree { prompt: tokens.clone(), ..Tree::default() };
    let trees: Vec<Tree> = sequences.iter().filter(|tokens| !tokens.is_empty()).map(tree).collect();
    let views: Vec<&Tree> = trees.iter().collect();
    let mut found = Vec::with_capacity(trees.len());
    no_grad(|| {
        for batch in micro_batches(&views, budget) {
            let forest = Forest::pack(batch, model.config().max_positions, model.compute().device)?;
            let hidden = model.forest(&forest, &mut |_, _| ());
            for span in &forest.spans {
                let skipped = i64::from(span.len() > 1);
                let own = hidden.narrow(0, span.start + skipped, span.len() - skipped);
                found.push(unit(to_host(&own.mean_dim(0, false, Kind::Float))));
            }
        }
        Ok::<(), crate::error::PolicyError>(())
    })?;
    let mut found = found.into_iter();
    let nothing = vec![0.0; model.config().hidden_size];
    let vector = |tokens: &Vec<u32>| {
        let own = if tokens.is_empty() { None } else { found.next() };
        own.unwrap_or_else(|| nothing.clone())
    };
    Ok(sequences.iter().map(vector).collect())
}

/// The same direction, of length 1.
fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|entry| entry * entry).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|entry| *entry /= length);
    }
    vector
}
