//! The bounded, ordered store of trees from which the learner draws minibatches.

use std::collections::BTreeMap;

use crate::random::{Purpose, Stream};
use crate::tree::Tree;

/// Why a tree could not be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BufferError {
    /// The buffer is full.
    #[error(
        "the experience buffer is full: it holds its {0} trees; raise queues.buffer or train before adding more"
    )]
    Full(usize),
    /// A tree of the same prompt is stored already.
    #[error("prompt {0} is in the experience buffer already: each prompt gives one tree a round")]
    Duplicate(u64),
}

/// Trees in the order of their prompts, whatever the order in which they arrived. So the workers' timing never reaches
/// the learner.
#[derive(Debug, Clone)]
pub struct ExperienceBuffer {
    capacity: usize,
    trees: BTreeMap<u64, Tree>,
}

impl ExperienceBuffer {
    /// An empty buffer for at most `capacity` trees.
    pub fn new(capacity: usize) -> Self {
        ExperienceBuffer { capacity, trees: BTreeMap::new() }
    }

    /// A buffer of these trees with room for no more. If two have the same prompt, the last one stays.
    pub fn of(trees: impl IntoIterator<Item = Tree>) -> Self {
        let trees: BTreeMap<u64, Tree> = trees.into_iter().map(|tree| (tree.prompt_id, tree)).collect();
        ExperienceBuffer { capacity: trees.len(), trees }
    }

    /// Stores a tree.
    ///
    /// # Errors
    /// If the buffer is full, or holds a tree of the same prompt.
    pub fn insert(&mut self, tree: Tree) -> Result<(), BufferError> {
        if self.trees.contains_key(&tree.prompt_id) {
            return Err(BufferError::Duplicate(tree.prompt_id));
        }
        if self.trees.len() >= self.capacity {
            return Err(BufferError::Full(self.capacity));
        }
        self.trees.insert(tree.prompt_id, tree);
        Ok(())
    }

    /// A copy of the first tree, by prompt, that has a branch without reference log-probabilities.
    pub fn without_reference(&self) -> Option<Tree> {
        let lacks = |tree: &&Tree| {
            tree.branches.iter().any(|branch| branch.reference_logps.len() != branch.loss_tokens())
        };
        self.trees.values().find(lacks).cloned()
    }

    /// Replaces the stored tree of the same prompt. Does nothing if there is none.
    pub fn replace(&mut self, tree: Tree) {
        if let Some(stored) = self.trees.get_mut(&tree.prompt_id) {
            *stored = tree;
        }
    }

    /// Takes out the trees of these prompts.
    pub fn discard(&mut self, prompts: &[u64]) {
        for prompt_id in prompts {
            self.trees.remove(prompt_id);
        }
    }

    /// Trees stored.
    pub fn len(&self) -> usize {
        self.trees.len()
    }

    /// True if no tree is stored.
    pub fn is_empty(&self) -> bool {
        self.trees.is_empty()
    }

    /// The trees in the order of their prompts.
    pub fn trees(&self) -> impl Iterator<Item = &Tree> {
        self.trees.values()
    }

    /// Empties the buffer.
    pub fn clear(&mut self) {
        self.trees.clear();
    }

    /// Every tree once, in the order of the prompts, cut into pieces of `size` trees. The last may be smaller.
    ///
    /// # Panics
    /// If `size` is 0.
    pub fn minibatches_in_order(&self, size: usize) -> Vec<Vec<&Tree>> {
        self.trees.values().collect::<Vec<_>>().chunks(size).map(<[&Tree]>::to_vec).collect()
    }

    /// One epoch's minibatches: every tree once, in an order drawn from (seed, round, epoch), cut into pieces of `size`
    /// trees. The last may be smaller.
    ///
    /// # Panics
    /// If `size` is 0.
    pub fn minibatches(&self, seed: u64, round: u64, epoch: u64, size: usize) -> Vec<Vec<&Tree>> {
        let mut order: Vec<&Tree> = self.trees.values().collect();
        Stream::new(seed, Purpose::Shuffle, round, epoch).shuffle(&mut order);
        order.chunks(size).map(<[&Tree]>::to_vec).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tree(prompt_id: u64) -> Tree {
        Tree { prompt_id, prompt: vec![1], ..Tree::default() }
    }

    #[test]
    fn refuses_what_is_over_its_capacity_and_what_it_has() {
        let mut buffer = ExperienceBuffer::new(2);
        assert_eq!(buffer.insert(tree(3)), Ok(()));
        assert_eq!(buffer.insert(tree(3)), Err(BufferError::Duplicate(3)));
        assert_eq!(buffer.insert(tree(1)), Ok(()));
        assert_eq!(buffer.insert(tree(2)), Err(BufferError::Full(2)));
        buffer.clear();
        assert!(buffer.is_empty());
    }

    #[test]
    fn what_is_discarded_is_gone_and_nothing_else() {
        let mut buffer = ExperienceBuffer::new(4);
        for prompt_id in 1..=4 {
            buffer.insert(tree(prompt_id)).expect("there is room");
        }
        buffer.discard(&[4, 1, 9]);
        assert_eq!(buffer.trees().map(|tree| tree.prompt_id).collect::<Vec<_>>(), [2, 3]);
    }

    proptest! {
        #[test]
        fn an_epoch_holds_every_tree_once_whatever_the_order_of_arrival(
            mut ids in proptest::collection::btree_set(any::<u64>(), 1..40).prop_map(Vec::from_iter),
            size in 1usize..9,
        ) {
            let fill = |ids: &[u64]| {
                let mut buffer = ExperienceBuffer::new(ids.len());
                for &id in ids {
                    buffer.insert(tree(id)).expect("there is room");
                }
                buffer
            };
            let epoch = |buffer: &ExperienceBuffer| -> Vec<Vec<u64>> {
                let batches = buffer.minibatches(5, 0, 0, size);
                batches.iter().map(|batch| batch.iter().map(|tree| tree.prompt_id).collect()).collect()
            };
            let forward = epoch(&fill(&ids));
            ids.reverse();
            prop_assert_eq!(&forward, &epoch(&fill(&ids)));
            prop_assert!(forward.iter().rev().skip(1).all(|batch| batch.len() == size));
            let mut flat: Vec<u64> = forward.into_iter().flatten().collect();
            flat.sort_unstable();
            ids.sort_unstable();
            prop_assert_eq!(flat, ids);
        }
    }
}
