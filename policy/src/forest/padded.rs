//! A forest's trees as libtorch's ordinary attention takes them, where the kernels do not run.
//!
//! On the CPU each tree goes alone, without padding. On a device, where a call costs more than some padding, short ones go
//! together.

use tch::{Device, Kind, Tensor};

use super::{Forest, TreeSpan};
use crate::device::upload;

/// Trees that go through libtorch's ordinary attention in one call.
#[derive(Debug)]
pub struct Padded {
    /// How many trees.
    pub trees: i64,
    /// Tokens of each, padding included.
    pub length: i64,
    /// The flat axis's row of each token, i64 `[trees × length]`. Padding follows a tree and names some row.
    pub rows: Tensor,
    /// What a token may attend to, additive (0 or −∞), `[trees, 1, length, length]`; `None` where plain causal order says
    /// it all. Padding attends to padding, so that its rows are numbers.
    pub mask: Option<Tensor>,
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
const PADDING: i64 = -1;

impl Forest {
    /// The trees as libtorch's ordinary attention wants them, and where each row of the flat axis stands among the rows of
    /// all of these, i64 `[tokens]`. Masks are of this kind. With a window, a token attends to that many tokens of its
    /// sequence, itself among them.
    pub fn padded(&self, window: Option<usize>, kind: Kind) -> (Vec<Padded>, Tensor) {
        let padding = if self.tokens.device() == Device::Cpu { Padding::CPU } else { Padding::DEVICE };
        self.padded_by(padding, window, kind)
    }

    fn padded_by(&self, padding: Padding, window: Option<usize>, kind: Kind) -> (Vec<Padded>, Tensor) {
        let (short, long): (Vec<&TreeSpan>, Vec<&TreeSpan>) =
            self.spans.iter().partition(|span| span.len() <= padding.together);
        let together = (!short.is_empty()).then_some(short);
        let groups = together.into_iter().chain(long.into_iter().map(|span| vec![span]));
        let mut places = vec![0; self.len() as usize];
        let mut before = 0;
        let padded = groups.map(|spans| {
            let padded = pad(&spans, padding.step, window, kind, self.tokens.device());
            for (tree, span) in spans.iter().enumerate() {
                let first = before + tree as i64 * padded.length;
                let rows = span.start as usize..(span.start + span.len()) as usize;
                places[rows].iter_mut().zip(first..).for_each(|(place, row)| *place = row);
            }
            before += padded.trees * padded.length;
            padded
        });
        let padded = padded.collect();
        (padded, upload(&places, self.tokens.device()))
    }
}

fn pad(spans: &[&TreeSpan], step: usize, window: Option<usize>, kind: Kind, device: Device) -> Padded {
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
        branches.extend(padding.clone().map(|_| PADDING));
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
    Padded { trees, length, rows: upload(&rows, device), mask }
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
        let (padded, _) = forest.padded(window, Kind::Float);
        let mask = padded[0].mask.as_ref()?;
        let size = padded[0].length as usize;
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
            let (padded, places) = forest.padded_by(padding, None, Kind::Float);
            let shapes = padded.iter().map(|padded| (padded.trees, padded.length, padded.mask.is_some()));
            assert_eq!(shapes.collect::<Vec<_>>(), expected);
            // What is gathered by the rows and then by the places is what was there.
            let rows: Vec<Tensor> = padded.iter().map(|padded| padded.rows.shallow_clone()).collect();
            let there_and_back = Tensor::cat(&rows, 0).index_select(0, &places);
            assert_eq!(numbers(&there_and_back), (0..forest.len()).collect::<Vec<_>>());
            // No row of a mask is without a column, padding's included.
            for mask in padded.iter().filter_map(|padded| padded.mask.as_ref()) {
                assert_eq!(mask.amax([-1], false).abs().max().double_value(&[]), 0.0);
            }
        }
    }
}
