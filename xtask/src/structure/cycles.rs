//! The loops in a graph of imports.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

/// The names that one file takes from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Import {
    pub from: PathBuf,
    pub to: PathBuf,
    pub names: BTreeSet<String>,
}

/// Imports between nodes. A node is a file, with the folder below it.
#[derive(Debug, Default)]
pub(super) struct Graph {
    edges: BTreeMap<String, BTreeMap<String, Vec<Import>>>,
}

impl Graph {
    /// An import from one node to another. Those within a node are no part of the graph.
    pub fn add(&mut self, from: &str, to: &str, import: Import) {
        if from != to {
            self.edges.entry(from.into()).or_default().entry(to.into()).or_default().push(import);
        }
    }

    /// Keeps the imports for which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&Import) -> bool) {
        for targets in self.edges.values_mut() {
            targets.retain(|_, imports| {
                imports.retain(&mut keep);
                !imports.is_empty()
            });
        }
    }

    /// For every edge that is on a loop, a shortest loop that has it. Each loop comes once, short ones first. It begins
    /// with its first node in alphabetical order. The way from its last node to its first is left out.
    pub fn cycles(&self) -> Vec<Vec<&str>> {
        let mut cycles = BTreeSet::new();
        for (from, targets) in &self.edges {
            for to in targets.keys() {
                if let Some(mut cycle) = self.path(to, from) {
                    let first = (0..cycle.len()).min_by_key(|&index| cycle[index]).unwrap_or(0);
                    cycle.rotate_left(first);
                    cycles.insert((cycle.len(), cycle));
                }
            }
        }
        cycles.into_iter().map(|(_, cycle)| cycle).collect()
    }

    /// A shortest path, both ends included.
    fn path<'a>(&'a self, from: &'a str, to: &str) -> Option<Vec<&'a str>> {
        let mut before: BTreeMap<&str, &str> = BTreeMap::from([(from, from)]);
        let mut open = VecDeque::from([from]);
        while let Some(node) = open.pop_front() {
            if node == to {
                let mut path = vec![node];
                while let Some(&last) = path.last()
                    && last != from
                {
                    path.push(before[last]);
                }
                path.reverse();
                return Some(path);
            }
            for next in self.edges.get(node).into_iter().flat_map(BTreeMap::keys) {
                if !before.contains_key(next.as_str()) {
                    before.insert(next, node);
                    open.push_back(next);
                }
            }
        }
        None
    }
}

/// Each loop in words: what closes it, file by file.
pub(super) fn describe(graph: &Graph) -> Vec<String> {
    let describe = |cycle: Vec<&str>| {
        let mut text = format!("a loop: {} → {}", cycle.join(" → "), cycle[0]);
        for (index, from) in cycle.iter().enumerate() {
            let to = cycle[(index + 1) % cycle.len()];
            for Import { from, to, names } in &graph.edges[*from][to] {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let (from, to) = (from.display(), to.display());
                text.push_str(&format!("\n  {from} → {to}: {}", names.join(", ")));
            }
        }
        text
    };
    graph.cycles().into_iter().map(describe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &str)]) -> Graph {
        let mut graph = Graph::default();
        for (from, to) in edges {
            let file = |name: &str| PathBuf::from(format!("{name}.rs"));
            let names = BTreeSet::from([to.to_uppercase()]);
            graph.add(from, to, Import { from: file(from), to: file(to), names });
        }
        graph
    }

    #[test]
    fn one_direction_has_no_loop() {
        let none: [Vec<&str>; 0] = [];
        assert_eq!(graph(&[("a", "b"), ("b", "c"), ("a", "c"), ("d", "c")]).cycles(), none);
    }

    #[test]
    fn every_loop_is_found_once_and_short_ones_come_first() {
        let graph =
            graph(&[("c", "a"), ("a", "b"), ("b", "c"), ("b", "a"), ("c", "d"), ("x", "y"), ("y", "x")]);
        assert_eq!(graph.cycles(), [vec!["a", "b"], vec!["x", "y"], vec!["a", "b", "c"]]);
    }

    #[test]
    fn a_loop_is_spelled_out_with_files_and_names() {
        let found = describe(&graph(&[("b", "a"), ("a", "b")]));
        assert_eq!(found, ["a loop: a → b → a\n  a.rs → b.rs: B\n  b.rs → a.rs: A"]);
    }
}
