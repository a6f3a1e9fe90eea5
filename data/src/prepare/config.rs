//! What a preparation does.

use serde::{Deserialize, Serialize};

use super::rules::RulesConfig;
use crate::config::DataConfig;

/// What a preparation does: sources, steps, and where the rows go.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Preparation {
    /// What is read, in this order.
    pub sources: Vec<Source>,
    /// Rules about answers. Default none.
    pub rules: Option<RulesConfig>,
    /// Rows whose words are nearly those of an earlier row. Default kept.
    pub near_duplicates: Option<NearDuplicatesConfig>,
    /// Rows that mean nearly the same as another. Default kept.
    pub semantic_duplicates: Option<SemanticDuplicatesConfig>,
    /// Topics, of which each row gets one. Default none.
    pub topics: Vec<Topic>,
    /// Scores, of which each row gets all. Default none.
    pub scores: Vec<ScoreRule>,
    /// How many rows to write. Default all, or as many as the sources' weights allow without writing a row twice.
    pub rows: Option<usize>,
    /// Whether rows are written in a random order.
    pub shuffle: bool,
    /// Decides every random choice.
    pub seed: u64,
}

/// One dataset of a preparation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Source {
    /// For the report.
    pub name: String,
    /// How it is read; its order is that of its files.
    pub data: DataConfig,
    /// Its share of what is written, relative to the other sources'. All sources have one, or none has.
    pub weight: Option<f64>,
}

/// What of a row is compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compared {
    /// The prompt's turns; of a row without a prompt, all of it.
    Prompt,
    /// The prompt and the first answer.
    #[default]
    Row,
}

/// Rows whose words are nearly those of an earlier row are dropped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NearDuplicatesConfig {
    /// The least share of common shingles (Jaccard's index) of duplicates, as MinHash estimates it. Default 0.8.
    pub threshold: f64,
    /// Words of a shingle. Default 5.
    pub ngram: usize,
    /// Hash functions; the estimate's deviation is at most 0.5/√permutations. Default 128.
    pub permutations: usize,
    /// What of a row is compared. Default row.
    pub of: Compared,
}

impl Default for NearDuplicatesConfig {
    fn default() -> Self {
        NearDuplicatesConfig { threshold: 0.8, ngram: 5, permutations: 128, of: Compared::Row }
    }
}

/// Of rows whose embeddings are alike, only the best is kept (Llama 3, section 4.2.3: greedily by quality and difficulty,
/// dropping what is too similar to a row that was kept).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SemanticDuplicatesConfig {
    /// From which cosine on. Default 0.98.
    pub threshold: f64,
    /// What of a row is compared. Default row.
    pub of: Compared,
    /// Whether only rows of one topic are compared, which takes less time. Default false.
    pub within_topic: bool,
}

impl Default for SemanticDuplicatesConfig {
    fn default() -> Self {
        SemanticDuplicatesConfig { threshold: 0.98, of: Compared::Row, within_topic: false }
    }
}

/// A topic. A row belongs to the first topic of which it has a keyword. Else it belongs to the one whose description is
/// nearest by embedding, if topics have descriptions.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Topic {
    /// As rows are tagged.
    pub name: String,
    /// Words or phrases, whatever the letters' case; whole words only.
    pub keywords: Vec<String>,
    /// What it is about.
    pub description: String,
    /// Whether its rows are dropped. Default false.
    pub drop: bool,
}

/// What becomes of rows by their score. The scorer itself is the caller's.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScoreRule {
    /// As rows carry it, such as quality or difficulty.
    pub name: String,
    /// Rows below are dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Rows above are dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// The share of the rows with the highest scores that is kept, from 0 to 1 (Llama 3's quality filter keeps the top
    /// quarter of the reward model's scores).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top: Option<f64>,
}

impl Preparation {
    /// Checks that options are in their ranges.
    ///
    /// # Errors
    /// With a sentence that names the option.
    pub fn validate(&self) -> Result<(), String> {
        if self.sources.is_empty() {
            return Err("source is missing; expected at least one, with a path".to_string());
        }
        for source in &self.sources {
            source.data.validate().map_err(|cause| format!("source {}: {cause}", source.name))?;
            if source.weight.is_some_and(|weight| !(weight > 0.0 && weight.is_finite())) {
                return Err(format!("source {}: weight must be a number above 0", source.name));
            }
        }
        let weighted = self.sources.iter().filter(|source| source.weight.is_some()).count();
        if weighted != 0 && weighted != self.sources.len() {
            return Err("weight must be given for all sources or for none".to_string());
        }
        if let Some(rules) = &self.rules {
            rules.validate().map_err(|cause| format!("rules: {cause}"))?;
        }
        if let Some(config) = &self.near_duplicates {
            if !(0.0 < config.threshold && config.threshold <= 1.0) {
                return Err("near_duplicates: threshold must be above 0 and at most 1".to_string());
            }
            if config.ngram == 0 || !(1..=4096).contains(&config.permutations) {
                return Err(
                    "near_duplicates: ngram must be at least 1, permutations from 1 to 4096".to_string()
                );
            }
        }
        if self.semantic_duplicates.as_ref().is_some_and(|config| !(-1.0..=1.0).contains(&config.threshold)) {
            return Err("semantic_duplicates: threshold must be from -1 to 1".to_string());
        }
        for topic in &self.topics {
            if topic.name.is_empty() || (topic.keywords.is_empty() && topic.description.is_empty()) {
                return Err("topic must have a name, and keywords or a description".to_string());
            }
        }
        for score in &self.scores {
            if score.name.is_empty() {
                return Err("score must have a name, such as quality".to_string());
            }
            if score.top.is_some_and(|top| !(0.0 < top && top <= 1.0)) {
                return Err(format!("score {}: top must be above 0 and at most 1", score.name));
            }
        }
        if self.rows == Some(0) {
            return Err("rows is 0; it must be at least 1, or left out".to_string());
        }
        Ok(())
    }

    /// Whether it takes embeddings.
    pub fn needs_embeddings(&self) -> bool {
        self.semantic_duplicates.is_some() || self.topics.iter().any(|topic| !topic.description.is_empty())
    }
}
