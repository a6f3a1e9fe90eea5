//! What came of a suite.

use serde::{Deserialize, Serialize};

use crate::figure::Figure;

/// A suite in figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What the suite is called.
    pub suite: String,
    /// Where its rows are.
    pub path: String,
    /// The options, those with their defaults left out.
    pub options: serde_json::Value,
    /// The seed of the answers' random numbers.
    pub seed: u64,
    /// False where it was stopped before the end. The figures are then of the items that were done.
    pub is_complete: bool,
    /// Rows that were read.
    pub rows: u64,
    /// Items among them that were to be asked.
    pub items: usize,
    /// Rows that serve as examples.
    pub examples: usize,
    /// Items that figures are made of.
    pub judged: usize,
    /// Rows that were left out.
    pub skipped: u64,
    /// The first of these, with their causes.
    pub skipped_rows: Vec<String>,
    /// Tokens that were generated or, where nothing is generated, went through the model.
    pub tokens: u64,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// The figures.
    pub figures: Vec<Figure>,
}

impl Report {
    /// The figure of this name.
    pub fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == name)
    }
}
