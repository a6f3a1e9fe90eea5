//! A forest's trees as libtorch's ordinary attention takes them, where the kernels do not run.
//!
//! On the CPU each tree goes alone, without padding. On a device, where a call costs more than some padding, short ones go
//! together.

use tch::{Device, Kind, Tensor};

use super::{Forest, TreeSpan};
use crate::device::upload;
use crate::kernels::AttentionShape;

/// The trees of a forest, ready for attention in layers with one window or none.
#[derive(Debug)]
pub struct PaddedTrees {
    groups: Vec<Group>,
    /// Where each row of the flat axis stands among the rows of all groups, i64 `[tokens]`.
    places: Tensor,
}

/// Trees that go through one call.
#[derive(Debug)]
struct Group {
    trees: i64,
    /// Tokens of each, padding included.
    length: i64,
    /// The flat axis's row of each token, i64 `[trees × length]`. Padding follows a tree and names some row.
    rows: Tensor,
    /// What a token may attend to, additive (0 or −∞), `[trees, 1, length, length]`; `None` where plain causal order says
    /// it all. Padding attends to padding, so that its rows are numbers.
    mask: Option<Tensor>,
}

/// How trees are padded.
#[derive(Debug, Clone, Copy)]
struct Padding {
    /// Trees of up to this many tokens go together, others alone.
    together: i64,
    /// What the length is a multiple of.
    step: usize,
}

impl Padding {
    /// Each tree alone and as it is.
    const CPU: Self = Padding { together: 0, step: 1 };
    /// A call costs more than what short trees waste; attention with a mask wants its rows to be of this length.
    const DEVICE: Self = Padding { together: 512, step: 8 };
}

/// The branch that padding belongs to; the prompt is 0.
const NO_BRANCH: i64 = -1;

impl PaddedTrees {
    /// For queries, keys and values of this kind. With a window, a token attends to that many tokens of its sequence, itself
    /// among them.
    pub fn new(forest: &Forest, window: Option<usize>, kind: Kind) -> Self {
        let padding = if forest.tokens.device() == Device::Cpu { Padding::CPU } else { Padding::DEVICE };
        PaddedTrees::with(padding, forest, window, kind)
    }

    fn with(padding: Padding, forest: &Forest, window: Option<usize>, kind: Kind) -> Self {
        let device = forest.tokens.device();
        let (short, long): (Vec<&TreeSpan>, Vec<&TreeSpan>) =
            forest.spans.iter().partition(|span| span.len() <= padding.together);
        let short = (!short.is_empty()).then_some(short);
        let mut places = vec![0; forest.len() as usize];
        let mut before = 0;
        let groups = short.into_iter().chain(long.into_iter().map(|span| vec![span])).map(|spans| {
            let group = pad(&spans, padding.step, window, kind, device);
            for (tree, span) in spans.iter().enumerate() {
                let first = before + tree as i64 * group.length;
                let rows = span.start as usize..(span.start + span.len()) as usize;
                places[rows].iter_mut().zip(first..).for_each(|(place, row)| *place = row);
            }
            before += group.trees * group.length;
            group
        });
        let groups = groups.collect();
        PaddedTrees { groups, places: upload(&places, device) }
    }

    /// Attention of rotated rows `[tokens, (heads + 2 kv_heads) head_dim]`: `[tokens, heads head_dim]`.
    pub fn attend(&self, qkv: &Tensor, shape: &AttentionShape) -> Tensor {
        let parts: Vec<Tensor> = self.groups.iter().map(|group| group.attend(qkv, shape)).collect();
        let all = if let [one] = &parts[..] { one.shallow_clone() } else { Tensor::cat(&parts, 0) };
        all.index_select(0, &self.places)
    }
}

impl Group {
    /// The same of this group's rows: `[trees × length, heads head_dim]`.
    fn attend(&self, qkv: &Tensor, shape: &AttentionShape) -> Tensor {
        let &Group { trees, length, .. } = self;
        let &AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        let all = qkv.index_select(0, &self.rows).view([trees, length, heads + 2 * kv_heads, head_dim]);
        // [trees, tokens, own, head_dim] → [trees, heads, tokens, head_dim], key and value heads repeated for their groups
        // of query heads.
        let part = |from: i64, own: i64| {
            let part = all.narrow(2, from, own).transpose(1, 2);
            if own == heads {
                return part;
            }
            let groups = [trees, own, heads / own, length, head_dim];
            part.unsqueeze(2).expand(groups, false).reshape([trees, heads, length, head_dim])
        };
        let (query, key, value) = (part(0, heads), part(heads, kv_heads), part(heads + kv_heads, kv_heads));
        let (mask, causal) = (self.mask.as_ref(), self.mask.is_none());
        Tensor::scaled_dot_product_attention(&query, &key, &value, mask, 0.0, causal, None, false)
            .transpose(1, 2)
            .reshape([trees * length, heads * head_dim])
    }
}

fn pad(spans: &[&TreeSpan], step: usize, window: Option<usize>, kind: Kind, device: Device) -> Group {
    let longest = spans.iter().map(|span| span.len()).max().unwrap_or(0);
    let length = (longest as usize).next_multiple_of(step) as i64;
    // Of each token: its row, its branch, its position.
    let (mut rows, mut branches, mut positions) = (Vec::new(), Vec::new(), Vec::new());
    for span in spans {
        rows.extend(span.start..span.start + span.len());
        branches.extend(std::iter::repeat_n(0, span.prompt as usize));
        positions.extend(0..span.prompt);
        for (branch, &tokens) in (1..).zip(&span.branches) {
            branches.extend(std::iter::repeat_n(branch, tokens as usize));
            positions.extend(span.prompt..span.prompt + tokens);
        }
        let padding = span.len()..length;
        // Rows in turn: their gradients are zeros, and are not all added at one place.
        rows.extend(padding.clone().map(|place| span.start + place % span.len()));
        branches.extend(padding.clone().map(|_| NO_BRANCH));
        positions.extend(padding);
    }
    let trees = spans.len() as i64;
    let deepest = |span: &&TreeSpan| span.prompt + span.branches.iter().max().unwrap_or(&0);
    let deepest = spans.iter().map(deepest).max().unwrap_or(0);
    let window = window.map(|window| window as i64).filter(|&window| window < deepest);
    let is_plain = window.is_none() && spans.iter().all(|span| span.branches.len() < 2);
    let mask = (!is_plain).then(|| {
        let tokens = [&branches[..], &positions].concat();
        let tokens = upload(&tokens, device).view([2, trees, length]);
        let (branch, position) = (tokens.get(0), tokens.get(1));
        let (own, other) = (branch.unsqueeze(2), branch.unsqueeze(1));
        let place = Tensor::arange(length, (Kind::Int64, device));
        let mut seen = own.eq_tensor(&other).logical_or(&other.eq(0));
        seen = seen.logical_and(&place.unsqueeze(0).le_tensor(&place.unsqueeze(1)));
        if let Some(window) = window {
            seen = seen.logical_and(&(position.unsqueeze(2) - position.unsqueeze(1)).lt(window));
        }
        let mask = Tensor::zeros([trees, length, length], (kind, device));
        mask.masked_fill(&seen.logical_not(), f64::NEG_INFINITY).unsqueeze(1)
    });
    Group { trees, length, rows: upload(&rows, device), mask }
}

#[cfg(test)]
mod tests {
    use arriero_buffers::Tree;

    use super::super::tests::{numbers, tree};
    use super::*;

    /// A forest of trees with these lengths of prompt and branches.
    fn forest(trees: &[(usize, &[usize])]) -> Forest {
        let one = |&(prompt, branches): &(usize, &[usize])| {
            let branches: Vec<Vec<u32>> = branches.iter().map(|&tokens| vec![2; tokens + 1]).collect();
            tree(0, &vec![1; prompt], &branches.iter().map(Vec::as_slice).collect::<Vec<_>>())
        };
        let trees: Vec<Tree> = trees.iter().map(one).collect();
        Forest::pack(&trees.iter().collect::<Vec<_>>(), 64, Device::Cpu).expect("it fits")
    }

    /// The columns that each row of the one tree's mask sees.
    fn seen(trees: &[(usize, &[usize])], window: Option<usize>) -> Option<Vec<Vec<usize>>> {
        let forest = forest(trees);
        let trees = PaddedTrees::new(&forest, window, Kind::Float);
        let mask = trees.groups[0].mask.as_ref()?;
        let size = trees.groups[0].length as usize;
        let numbers: Vec<f32> = Vec::try_from(mask.flatten(0, -1)).expect("a vector");
        assert!(numbers.iter().all(|&number| number == 0.0 || number == f32::NEG_INFINITY));
        let columns = |row: &[f32]| (0..size).filter(|&column| row[column] == 0.0).collect();
        Some(numbers.chunks(size).map(columns).collect())
    }

    #[test]
    fn a_window_counts_positions_and_not_places() {
        let one: [(usize, &[usize]); 1] = [(2, &[3, 1])];
        let expected = [vec![0], vec![0, 1], vec![1, 2], vec![2, 3], vec![3, 4], vec![1, 5]];
        assert_eq!(seen(&one, Some(2)).expect("a sequence has five tokens"), expected);
        assert_eq!(seen(&one, Some(4)).expect("a sequence has five tokens")[4], [1, 2, 3, 4]);
        // A window that holds every sequence changes nothing.
        assert!(seen(&one, None).is_some());
        assert_eq!(seen(&one, Some(5)), seen(&one, None));
    }

    #[test]
    fn a_branch_sees_the_prompt_and_itself() {
        let expected = [vec![0], vec![0, 1], vec![0, 1, 2], vec![0, 1, 2, 3], vec![0, 1, 4]];
        assert_eq!(seen(&[(2, &[2, 1])], None).expect("two branches"), expected);
        // One branch is plain causal order, unless a window cuts it.
        assert_eq!(seen(&[(2, &[4])], None), None);
        assert!(seen(&[(2, &[4])], Some(3)).is_some());
    }

    /// Trees of 3, 9, 4 and 10 tokens: on a device the two short ones together, the others alone.
    #[test]
    fn short_trees_are_padded_together() {
        let forest = forest(&[(2, &[1]), (4, &[3, 2]), (4, &[]), (5, &[5])]);
        for (padding, expected) in [
            (Padding { together: 4, step: 8 }, vec![(2, 8, false), (1, 16, true), (1, 16, false)]),
            (Padding { together: 9, step: 8 }, vec![(3, 16, true), (1, 16, false)]),
            (Padding::CPU, vec![(1, 3, false), (1, 9, true), (1, 4, false), (1, 10, false)]),
        ] {
            let PaddedTrees { groups, places } = PaddedTrees::with(padding, &forest, None, Kind::Float);
            let shapes = groups.iter().map(|group| (group.trees, group.length, group.mask.is_some()));
            assert_eq!(shapes.collect::<Vec<_>>(), expected);
            // What is gathered by the rows and then by the places is what was there.
            let rows: Vec<&Tensor> = groups.iter().map(|group| &group.rows).collect();
            let there_and_back = Tensor::cat(&rows, 0).index_select(0, &places);
            assert_eq!(numbers(&there_and_back), (0..forest.len()).collect::<Vec<_>>());
            // No row of a mask is without a column, padding's included.
            for mask in groups.iter().filter_map(|group| group.mask.as_ref()) {
                assert_eq!(mask.amax([-1], false).abs().max().double_value(&[]), 0.0);
            }
        }
    }

    /// Attention and its gradient, in f64, with a window and without.
    #[test]
    fn padding_changes_nothing() {
        tch::manual_seed(4);
        let forest = forest(&[(2, &[1]), (4, &[3, 2]), (11, &[]), (5, &[5, 0, 9])]);
        let shape =
            AttentionShape { heads: 4, kv_heads: 2, head_dim: 8, scale: 8.0f32.sqrt().recip(), window: 0 };
        let qkv = Tensor::randn([forest.len(), 64], (Kind::Double, Device::Cpu));
        let direction = Tensor::randn([forest.len(), 32], (Kind::Double, Device::Cpu));
        let results = |padding: Padding, window: Option<usize>| {
            let qkv = qkv.copy().set_requires_grad(true);
            let found = PaddedTrees::with(padding, &forest, window, Kind::Double).attend(&qkv, &shape);
            (&found * &direction).sum(Kind::Double).backward();
            [found.detach(), qkv.grad()]
        };
        for window in [None, Some(3)] {
            let expected = results(Padding::CPU, window);
            for together in [10, 512] {
                let found = results(Padding { together, ..Padding::DEVICE }, window);
                for (found, expected) in found.iter().zip(&expected) {
                    let difference = (found - expected).abs().max().double_value(&[]);
                    assert!(difference < 1e-12, "window {window:?}, up to {together} together: {difference}");
                }
            }
        }
    }
}
