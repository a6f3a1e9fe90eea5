//! Reward models: a decoder under a scalar head, which scores a conversation at its last token.
//!
//! The text is that of Hugging Face's classifiers: the whole conversation under the chat template, the assistant's turn
//! closed. Files are `AutoModelForSequenceClassification`s of one label ([`Head::Score`]).

use arriero_buffers::random::{Purpose, Stream};
use arriero_buffers::{Branch, Tree};
use tch::{Tensor, no_grad};

use crate::checkpoint::Weights;
use crate::config::{Head, ModelConfig, SCORE};
use crate::error::{PolicyError, Result};
use crate::forest::{Forest, ReadAt, micro_batches};
use crate::head;
use crate::model::Model;
use crate::tokenizer::Tokenizer;
use crate::weights::to_host;

/// Deviation of a fresh head's entries (transformers' `initializer_range`).
const INITIAL_DEVIATION: f64 = 0.02;

/// A reward model to be trained: the decoder of `weights` under a fresh head, drawn under `seed`.
pub fn initial(
    config: &ModelConfig,
    weights: &Weights,
    tokenizer: &Tokenizer,
    seed: u64,
) -> (ModelConfig, Weights) {
    let config = config.with_score(tokenizer.pad_id());
    let mut stream = Stream::new(seed, Purpose::Head, 0, 0);
    // Box and Muller, 1958.
    let mut normal = |place: u64| {
        let (first, second) = (stream.uniform(2 * place), stream.uniform(2 * place + 1));
        let normal = (-2.0 * (1.0 - first).ln()).sqrt() * (std::f64::consts::TAU * second).cos();
        (normal * INITIAL_DEVIATION) as f32
    };
    let head: Vec<f32> = (0..config.hidden_size as u64).map(&mut normal).collect();
    let shapes = config.tensor_shapes();
    let decoder =
        shapes.iter().filter_map(|(name, _)| Some((name.clone(), weights.get(name)?.shallow_clone())));
    let mut all: Weights = decoder.collect();
    all.insert(SCORE.to_string(), Tensor::from_slice(&head).view([1, -1]));
    (config, all)
}

/// Ends every response as the chat template closes the assistant's turn, where a sample ends with its end of turn, or was
/// cut short before it.
///
/// # Errors
/// If the template refuses the plainest conversation.
pub fn close(tree: &mut Tree, tokenizer: &Tokenizer) -> Result<()> {
    let closing = tokenizer.closing_tokens()?;
    for branch in &mut tree.branches {
        close_tokens(&mut branch.tokens, &closing, tokenizer.eos_ids());
        if !branch.is_context.is_empty() {
            branch.is_context.resize(branch.tokens.len(), false);
        }
    }
    Ok(())
}

/// Appends what `tokens` lack of `closing`.
pub fn close_tokens(tokens: &mut Vec<u32>, closing: &[u32], eos_ids: &[u32]) {
    let ends_a_turn = tokens.last().is_some_and(|last| eos_ids.contains(last));
    let there = (1..=closing.len()).rev().find(|&count| tokens.ends_with(&closing[..count]));
    let there = there.unwrap_or(usize::from(ends_a_turn).min(closing.len()));
    tokens.extend(&closing[there..]);
}

/// Whole conversations in tokens, which mostly begin alike: what they begin with is computed once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversations {
    /// For messages.
    pub prompt_id: u64,
    /// Token ids of each.
    pub sequences: Vec<Vec<u32>>,
}

/// The score of each conversation, in packed batches of at most `budget` tokens (a conversation that is longer goes alone).
///
/// # Errors
/// If the model has no head, or a conversation is empty or does not fit it.
pub fn scores(model: &Model, all: &[Conversations], budget: usize) -> Result<Vec<Vec<f32>>> {
    let Some(head) = model.score() else {
        return Err(PolicyError::MissingTensor { name: SCORE.to_string() });
    };
    let pad = match model.config().head {
        Head::Score { pad } => pad,
        Head::Language => None,
    };
    // As transformers does: the score is that of the last token that is not for padding.
    let text = |tokens: &Vec<u32>| {
        let end = tokens.iter().rposition(|&token| Some(token) != pad).map_or(1, |last| last + 1);
        tokens[..end.min(tokens.len())].to_vec()
    };
    let mut trees = Vec::new();
    for Conversations { prompt_id, sequences } in all {
        let sequences: Vec<Vec<u32>> = sequences.iter().map(text).collect();
        let mut rest = &sequences[..];
        while !rest.is_empty() {
            // As many as fit, counted as if nothing were shared; one goes in any case.
            let mut tokens = 0;
            let fits = rest.iter().take_while(|sequence| {
                tokens += sequence.len();
                tokens <= budget
            });
            let (now, later) = rest.split_at(fits.count().max(1));
            trees.push(tree(*prompt_id, now)?);
            rest = later;
        }
    }
    let views: Vec<&Tree> = trees.iter().collect();
    let mut found = Vec::new();
    for batch in micro_batches(&views, budget) {
        found.extend(of_trees(model, head, batch)?);
    }
    let mut found = found.into_iter();
    Ok(all.iter().map(|set| found.by_ref().take(set.sequences.len()).collect()).collect())
}

/// Sequences as a tree: its prompt is what they all begin with, and each has a token of its own.
fn tree(prompt_id: u64, sequences: &[Vec<u32>]) -> Result<Tree> {
    let Some(shortest) = sequences.iter().map(Vec::len).min().filter(|&shortest| shortest > 0) else {
        return Err(PolicyError::EmptyPrompt { prompt_id });
    };
    let same = |&place: &usize| sequences.iter().all(|sequence| sequence[place] == sequences[0][place]);
    let shared = (0..shortest - 1).take_while(same).count();
    let branch = |sequence: &Vec<u32>| Branch { tokens: sequence[shared..].to_vec(), ..Branch::default() };
    let prompt = sequences[0][..shared].to_vec();
    Ok(Tree { prompt_id, prompt, branches: sequences.iter().map(branch).collect(), ..Tree::default() })
}

fn of_trees(model: &Model, head: &Tensor, trees: &[&Tree]) -> Result<Vec<f32>> {
    no_grad(|| {
        let (positions, device) = (model.config().max_positions, model.compute().device);
        let forest = Forest::pack_for(ReadAt::Token, trees, positions, device)?;
        let values = to_host(&head::values(&model.predictors(&forest), head));
        let mut end = 0;
        let last = |branch: &Branch| {
            end += branch.tokens.len();
            values[end - 1]
        };
        Ok(trees.iter().flat_map(|tree| &tree.branches).map(last).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_closed_once() {
        let closing = [2, 9];
        for (tokens, expected) in [
            (&[5, 2, 9][..], &[5, 2, 9][..]),
            (&[5, 2], &[5, 2, 9]),
            // Cut short, and ended by another token that ends turns.
            (&[5], &[5, 2, 9]),
            (&[5, 3], &[5, 3, 9]),
            (&[], &[2, 9]),
        ] {
            let mut tokens = tokens.to_vec();
            close_tokens(&mut tokens, &closing, &[2, 3]);
            assert_eq!(tokens, expected);
        }
    }

    #[test]
    fn sequences_share_what_they_begin_with_and_keep_a_token_each() {
        let tree = |sequences: &[&[u32]]| {
            let sequences: Vec<Vec<u32>> = sequences.iter().map(|tokens| tokens.to_vec()).collect();
            let tree = super::tree(7, &sequences).expect("tokens");
            (tree.prompt, tree.branches.into_iter().map(|branch| branch.tokens).collect::<Vec<_>>())
        };
        assert_eq!(tree(&[&[1, 2, 3, 4], &[1, 2, 5]]), (vec![1, 2], vec![vec![3, 4], vec![5]]));
        assert_eq!(tree(&[&[1, 2], &[1, 2]]), (vec![1], vec![vec![2], vec![2]]));
        assert!(super::tree(7, &[vec![]]).is_err());
    }
}
