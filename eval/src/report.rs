//! What came of a suite.

use serde::Serialize;

use crate::config::SuiteConfig;
use crate::figure::Figure;

/// A suite in figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What the suite is called.
    pub suite: String,
    /// Where its rows are.
    pub path: String,
    /// The options, those with their defaults left out.
    pub options: SuiteConfig,
    /// The seed of the answers' random numbers.
    pub seed: u64,
    /// False where it was stopped before the end: the figures are of the items that were done by then.
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

/// Counts of a suite's rows.
pub(crate) struct Totals {
    pub is_complete: bool,
    pub rows: u64,
    pub items: usize,
    pub examples: usize,
    pub skipped: u64,
    pub skipped_rows: Vec<String>,
    pub tokens: u64,
    pub seconds: f64,
}

impl Report {
    pub(crate) fn new(
        config: &SuiteConfig,
        seed: u64,
        totals: Totals,
        figures: Vec<Figure>,
        judged: usize,
    ) -> Self {
        let Totals { is_complete, rows, items, examples, skipped, skipped_rows, tokens, seconds } = totals;
        Report {
            suite: config.name().to_string(),
            path: config.source().unwrap_or_default().to_string(),
            options: config.clone(),
            seed,
            is_complete,
            rows,
            items,
            examples,
            judged,
            skipped,
            skipped_rows,
            tokens,
            seconds,
            figures,
        }
    }

    /// The figure of this name.
    pub fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == name)
    }
}
