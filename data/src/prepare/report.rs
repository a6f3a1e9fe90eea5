//! What became of every row.

use std::collections::BTreeMap;

use serde::Serialize;

/// What a preparation did.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Report {
    /// Source by source.
    pub sources: Vec<SourceReport>,
    /// Rows that are left, by topic; `none` for those of no topic.
    pub topics: BTreeMap<String, u64>,
    /// Figures of each score, before its bounds dropped rows.
    pub scores: BTreeMap<String, ScoreFigures>,
}

/// What became of one source's rows. The rows read are the sum of those outside of the split, skipped, dropped and
/// left.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct SourceReport {
    /// Its name.
    pub name: String,
    /// Rows looked at.
    pub read: u64,
    /// Rows on another side of the split.
    pub outside_split: u64,
    /// Rows that cannot be used, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Where the first of them are, and what is wrong with them.
    pub examples: Vec<String>,
    /// Rows that a step dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Rows that passed all steps.
    pub left: u64,
    /// Of these, rows that the mix had no room for.
    pub left_over: u64,
    /// Lines written: a row that is up-sampled counts as often as it is written.
    pub written: u64,
}

/// Figures of a score.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ScoreFigures {
    /// Rows with a score.
    pub scored: u64,
    /// Rows without: there was no answer, or its score is no finite number.
    pub unscored: u64,
    /// The least.
    pub min: f64,
    /// The mean.
    pub mean: f64,
    /// The greatest.
    pub max: f64,
}

impl ScoreFigures {
    /// Of scores beside the numbers of their rows.
    pub(super) fn of(scored: &[(usize, f64)], unscored: u64) -> Self {
        if scored.is_empty() {
            return ScoreFigures { unscored, ..ScoreFigures::default() };
        }
        let scores = || scored.iter().map(|(_, score)| *score);
        ScoreFigures {
            scored: scored.len() as u64,
            unscored,
            min: scores().fold(f64::INFINITY, f64::min),
            mean: scores().sum::<f64>() / scored.len() as f64,
            max: scores().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}
