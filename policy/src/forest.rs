//! Trees packed on one flat token axis, without padding.
//!
//! A tree's prompt stands once and its branches follow; positions restart at each branch; attention
//! never crosses branches or trees. The last token of a branch predicts nothing, so it is a target
//! but never an input, unless it is what comes after a token that counts ([`ReadAt::Token`]).

use arriero_buffers::Tree;
use tch::{Device, Tensor};

use crate::device::upload;
use crate::error::{PolicyError, Result};

mod padded;

pub(crate) use padded::PaddedTrees;

/// Where the hidden state of a response token is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadAt {
    /// Where it is predicted: its probability, and a critic's value of the state in which it was drawn.
    Predictor,
    /// Where it stands: a reward model's score of the text that it ends.
    Token,
}

/// Where a tree's tokens lie on the flat axis.
#[derive(Debug)]
pub struct TreeSpan {
    /// First token of the prompt.
    pub start: i64,
    /// Tokens of the prompt, the tree's root.
    pub prompt: i64,
    /// Input tokens of each branch: one less than its response has, or as many with [`ReadAt::Token`].
    pub branches: Vec<i64>,
}

impl TreeSpan {
    /// Tokens of the tree on the flat axis.
    pub fn len(&self) -> i64 {
        self.prompt + self.branches.iter().sum::<i64>()
    }

    /// Never true: a tree has a prompt.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A packed batch.
#[derive(Debug)]
pub struct Forest {
    /// Token ids, i64 `[tokens]`.
    pub tokens: Tensor,
    /// Position of each token in its sequence, i64 `[tokens]`.
    pub positions: Tensor,
    /// The trees, in order.
    pub spans: Vec<TreeSpan>,
    /// The same for the kernels: of each tree its start, its number of segments (the prompt and the
    /// branches), and their lengths.
    pub layout: Vec<i64>,
    /// For each response token that carries loss, the row whose hidden state is read for it (see [`ReadAt`]): i64
    /// `[response tokens]`, in the order of trees, branches, tokens.
    pub predictors: Tensor,
    /// These tokens themselves, i64 `[response tokens]`.
    pub targets: Tensor,
}

impl Forest {
    /// Packs trees, to read what predicts the response tokens.
    ///
    /// # Errors
    /// If a prompt is empty, or a sequence is longer than `max_positions`.
    pub fn pack(trees: &[&Tree], max_positions: usize, device: Device) -> Result<Self> {
        Forest::pack_for(ReadAt::Predictor, trees, max_positions, device)
    }

    /// Packs trees, to read at either place.
    ///
    /// # Errors
    /// As [`Forest::pack`].
    pub fn pack_for(read: ReadAt, trees: &[&Tree], max_positions: usize, device: Device) -> Result<Self> {
        let mut tokens: Vec<i64> = Vec::new();
        let mut positions: Vec<i64> = Vec::new();
        let mut predictors: Vec<i64> = Vec::new();
        let mut targets: Vec<i64> = Vec::new();
        let mut spans = Vec::with_capacity(trees.len());
        let mut layout = Vec::new();
        for tree in trees {
            if tree.prompt.is_empty() {
                return Err(PolicyError::EmptyPrompt { prompt_id: tree.prompt_id });
            }
            if tree.longest_sequence() > max_positions {
                return Err(PolicyError::SequenceTooLong {
                    prompt_id: tree.prompt_id,
                    tokens: tree.longest_sequence(),
                    limit: max_positions,
                });
            }
            let start = tokens.len() as i64;
            let prompt = tree.prompt.len() as i64;
            tokens.extend(tree.prompt.iter().map(|&token| i64::from(token)));
            positions.extend(0..prompt);
            let mut branches = Vec::with_capacity(tree.branches.len());
            for branch in &tree.branches {
                let Some((_, before_last)) = branch.tokens.split_last() else {
                    branches.push(0);
                    continue;
                };
                let first_row = tokens.len() as i64;
                let (inputs, before) = match read {
                    ReadAt::Predictor => (before_last, Some(start + prompt - 1)),
                    ReadAt::Token => (&branch.tokens[..], None),
                };
                let rows = before.into_iter().chain(first_row..);
                for (index, (&token, row)) in branch.tokens.iter().zip(rows).enumerate() {
                    if branch.carries_loss(index) {
                        predictors.push(row);
                        targets.push(i64::from(token));
                    }
                }
                tokens.extend(inputs.iter().map(|&token| i64::from(token)));
                positions.extend(prompt..prompt + inputs.len() as i64);
                branches.push(inputs.len() as i64);
            }
            layout.extend([start, 1 + branches.len() as i64, prompt]);
            layout.extend(&branches);
            spans.push(TreeSpan { start, prompt, branches });
        }
        let tensor = |values: &[i64]| upload(values, device);
        Ok(Forest {
            tokens: tensor(&tokens),
            positions: tensor(&positions),
            spans,
            layout,
            predictors: tensor(&predictors),
            targets: tensor(&targets),
        })
    }

    /// Packs prompts alone, to fill a generator's cache.
    ///
    /// # Errors
    /// As [`Forest::pack`].
    pub fn pack_prompts(prompts: &[(u64, &[u32])], max_positions: usize, device: Device) -> Result<Self> {
        let trees: Vec<Tree> = prompts
            .iter()
            .map(|&(prompt_id, prompt)| Tree { prompt_id, prompt: prompt.to_vec(), ..Tree::default() })
            .collect();
        Forest::pack(&trees.iter().collect::<Vec<_>>(), max_positions, device)
    }

    /// Tokens on the flat axis.
    pub fn len(&self) -> i64 {
        self.spans.iter().map(TreeSpan::len).sum()
    }

    /// True if no tree was packed.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }
}

/// Cuts a batch into micro-batches of at most `budget` tokens, whole trees in their order. A tree
/// larger than the budget stands alone.
pub fn micro_batches<'a, 'b>(batch: &'b [&'a Tree], budget: usize) -> Vec<&'b [&'a Tree]> {
    let mut pieces = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (index, tree) in batch.iter().enumerate() {
        if index > start && tokens + tree.len() > budget {
            pieces.push(&batch[start..index]);
            (start, tokens) = (index, 0);
        }
        tokens += tree.len();
    }
    if start < batch.len() {
        pieces.push(&batch[start..]);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use arriero_buffers::Branch;

    use super::*;

    pub(super) fn tree(prompt_id: u64, prompt: &[u32], branches: &[&[u32]]) -> Tree {
        let branch = |tokens: &&[u32]| Branch {
            sample: 0,
            tokens: tokens.to_vec(),
            is_format: vec![false; tokens.len()],
            behaviour_logps: vec![0.0; tokens.len()],
            ..Branch::default()
        };
        Tree {
            prompt_id,
            prompt: prompt.to_vec(),
            branches: branches.iter().map(branch).collect(),
            ..Tree::default()
        }
    }

    pub(super) fn numbers(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor).expect("an i64 vector")
    }

    #[test]
    fn packs_the_prompt_once_and_predicts_each_first_token_from_its_end() {
        let first = tree(0, &[1, 2, 3], &[&[10, 11, 12], &[20]]);
        let second = tree(1, &[4], &[&[30, 31]]);
        let forest = Forest::pack(&[&first, &second], 64, Device::Cpu).expect("it fits");
        assert_eq!(numbers(&forest.tokens), [1, 2, 3, 10, 11, 4, 30]);
        assert_eq!(numbers(&forest.positions), [0, 1, 2, 3, 4, 0, 1]);
        assert_eq!(numbers(&forest.targets), [10, 11, 12, 20, 30, 31]);
        assert_eq!(numbers(&forest.predictors), [2, 3, 4, 2, 5, 6]);
        assert_eq!(forest.spans.iter().map(|span| span.start).collect::<Vec<_>>(), [0, 5]);
        assert_eq!(forest.layout, [0, 3, 3, 2, 0, 5, 2, 1, 1]);
    }

    #[test]
    fn reads_at_the_tokens_themselves_where_asked_to() {
        let first = tree(0, &[1, 2, 3], &[&[10, 11], &[], &[20]]);
        let second = tree(1, &[4], &[&[30]]);
        let forest = Forest::pack_for(ReadAt::Token, &[&first, &second], 64, Device::Cpu).expect("it fits");
        assert_eq!(numbers(&forest.tokens), [1, 2, 3, 10, 11, 20, 4, 30]);
        assert_eq!(numbers(&forest.positions), [0, 1, 2, 3, 4, 3, 0, 1]);
        assert_eq!(numbers(&forest.predictors), [3, 4, 5, 7]);
        assert_eq!(forest.layout, [0, 4, 3, 2, 0, 1, 6, 2, 1, 1]);
    }

    #[test]
    fn a_token_without_loss_is_read_and_not_predicted() {
        let mut tree = tree(0, &[1, 2], &[&[10, 11, 12, 13], &[20, 21]]);
        tree.branches[0].is_context = vec![false, true, true, false];
        let forest = Forest::pack(&[&tree], 64, Device::Cpu).expect("it fits");
        assert_eq!(numbers(&forest.tokens), [1, 2, 10, 11, 12, 20]);
        assert_eq!(numbers(&forest.targets), [10, 13, 20, 21]);
        assert_eq!(numbers(&forest.predictors), [1, 4, 1, 5]);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let long = tree(7, &[1; 5], &[&[2; 3]]);
        let error = Forest::pack(&[&long], 7, Device::Cpu).expect_err("8 tokens are too many");
        assert!(error.to_string().contains('8') && error.to_string().contains('7'), "{error}");
        assert!(Forest::pack(&[&tree(3, &[], &[])], 7, Device::Cpu).is_err());
    }

    #[test]
    fn micro_batches_keep_the_order_and_the_budget() {
        let trees: Vec<Tree> = [3, 3, 9, 2, 2].iter().map(|&n| tree(0, &vec![1; n], &[])).collect();
        let batch: Vec<&Tree> = trees.iter().collect();
        let sizes: Vec<usize> = micro_batches(&batch, 6).iter().map(|piece| piece.len()).collect();
        assert_eq!(sizes, [2, 1, 2]);
        assert!(micro_batches(&[], 6).is_empty());
    }
}
