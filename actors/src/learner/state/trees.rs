//! Trees in a file, one a line as JSON. JSON knows only finite numbers: the bits of all f32 stand beside the tree.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Error, Write};
use std::path::Path;

use arriero_buffers::{Branch, Tree};
use arriero_policy::{PolicyError, Result};
use serde::{Deserialize, Serialize};

/// A line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// With 0 in the place of every f32.
    tree: Tree,
    /// Their bits, in the order of [`floats`].
    bits: Vec<u32>,
}

/// Writes trees, and makes the file durable.
///
/// # Errors
/// If the disk is full or the place is not writable.
pub fn write<'a>(path: &Path, trees: impl Iterator<Item = &'a Tree>) -> Result<()> {
    let unwritable =
        |error: Error| PolicyError::Unwritable { path: path.to_path_buf(), cause: error.to_string() };
    let mut file = BufWriter::new(File::create(path).map_err(unwritable)?);
    for tree in trees {
        let mut line = Line { tree: tree.clone(), bits: Vec::new() };
        for float in floats(&mut line.tree) {
            line.bits.push(std::mem::take(float).to_bits());
        }
        let text = serde_json::to_string(&line).map_err(|error| unwritable(error.into()))?;
        writeln!(file, "{text}").map_err(unwritable)?;
    }
    let file = file.into_inner().map_err(|error| unwritable(error.into_error()))?;
    file.sync_all().map_err(unwritable)
}

/// Reads what [`write`] wrote, to the last bit.
///
/// # Errors
/// If the file is missing or broken.
pub fn read(path: &Path) -> Result<Vec<Tree>> {
    let unreadable = |cause| PolicyError::Unreadable { path: path.to_path_buf(), cause };
    let file = File::open(path).map_err(unreadable)?;
    let tree = |(index, text): (usize, std::io::Result<String>)| {
        let broken = |cause: String| PolicyError::WrongState {
            cause: format!("line {} of {} is broken ({cause})", index + 1, path.display()),
        };
        let text = text.map_err(unreadable)?;
        let Line { mut tree, bits } =
            serde_json::from_str(&text).map_err(|error| broken(error.to_string()))?;
        let floats = floats(&mut tree);
        if floats.len() != bits.len() {
            let (expected, found) = (floats.len(), bits.len());
            return Err(broken(format!("its tree has {expected} numbers, and it has the bits of {found}")));
        }
        floats.into_iter().zip(bits).for_each(|(float, bits)| *float = f32::from_bits(bits));
        Ok(tree)
    };
    BufReader::new(file).lines().enumerate().map(tree).collect()
}

/// Every f32 of a tree. All fields are named: a new one must be put where it belongs.
fn floats(tree: &mut Tree) -> Vec<&mut f32> {
    let Tree {
        address: _,
        prompt_id: _,
        prompt: _,
        branches,
        version: _,
        greedy_reward,
        rival_rewards,
        strength: _,
        margin,
    } = tree;
    let mut floats = Vec::new();
    for branch in branches {
        let Branch {
            sample: _,
            tokens: _,
            is_context: _,
            is_format: _,
            behaviour_logps,
            reference_logps,
            old_logps,
            old_values,
            mismatched_ratio,
            reward,
            truncated: _,
        } = branch;
        for vector in [behaviour_logps, reference_logps, old_logps, old_values] {
            floats.extend(vector);
        }
        floats.extend(mismatched_ratio);
        floats.push(reward);
    }
    floats.extend(greedy_reward);
    floats.extend(rival_rewards);
    floats.extend(margin);
    floats
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The least f32, a third, both infinities, a NaN with a payload, the negative 0.
    const ODD: [f32; 6] =
        [f32::from_bits(1), 1.0 / 3.0, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7fc0_0123), -0.0];

    fn odd_tree() -> Tree {
        let mut tree = Tree {
            prompt_id: u64::MAX,
            prompt: vec![1, 2],
            branches: vec![
                Branch {
                    tokens: vec![3; 6],
                    behaviour_logps: ODD.to_vec(),
                    reference_logps: ODD.iter().rev().copied().collect(),
                    old_logps: vec![0.1; 6],
                    old_values: vec![-1e-40; 6],
                    mismatched_ratio: Some(f32::NAN),
                    reward: f32::NEG_INFINITY,
                    ..Branch::default()
                },
                Branch { tokens: vec![4], ..Branch::default() },
            ],
            version: Some(3),
            greedy_reward: Some(0.7),
            rival_rewards: vec![0.3, f32::NAN],
            margin: Some(f32::INFINITY),
            ..Tree::default()
        };
        tree.branches[1].reward = 16_777_217.0 / 3.0;
        tree
    }

    fn bits(tree: &Tree) -> Vec<u32> {
        floats(&mut tree.clone()).into_iter().map(|float| float.to_bits()).collect()
    }

    #[test]
    fn trees_keep_every_bit() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("trees.jsonl");
        let plain = Tree { prompt_id: 7, prompt: vec![1], ..Tree::default() };
        write(&path, [&odd_tree(), &plain].into_iter()).expect("written");
        let found = read(&path).expect("read");
        assert_eq!((found.len(), bits(&odd_tree()).len()), (2, 4 * 6 + 2 + 1 + 4));
        assert_eq!(bits(&found[0]), bits(&odd_tree()));
        // A NaN is not equal to itself: what is no number is compared without them.
        let mut without = [odd_tree(), found[0].clone()];
        without.iter_mut().flat_map(floats).for_each(|float| *float = 0.0);
        assert_eq!(without[0], without[1]);
        assert_eq!(found[1], plain);
    }

    #[test]
    fn a_line_that_lacks_a_number_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("trees.jsonl");
        write(&path, std::iter::once(&odd_tree())).expect("written");
        let text = std::fs::read_to_string(&path).expect("text");
        std::fs::write(&path, text.replace("\"bits\":[1,", "\"bits\":[")).expect("written");
        let error = read(&path).expect_err("a number is missing").to_string();
        assert!(error.contains("its tree has 31 numbers, and it has the bits of 30"), "{error}");
    }
}
