//! What `arriero data prepare` does, from TOML.

use std::path::{Path, PathBuf};

use arriero_data::DataConfig;
use arriero_data::prepare::{
    NearDuplicatesConfig, Preparation, RulesConfig, ScoreRule, SemanticDuplicatesConfig, Source, Topic,
};
use arriero_reward::RewardConfig;

use crate::document::{Document, Section};
use crate::error::ExperimentError;
use crate::model::{ModelPlan, model};
use crate::reward::reward;
use crate::unscored::Unscored;

/// What `arriero data prepare` does.
#[derive(Debug, Clone, PartialEq)]
pub struct PreparationPlan {
    /// The steps.
    pub steps: Preparation,
    /// The scorer of each `[[score]]`, and what rows do that it cannot score.
    pub scorers: Vec<(RewardConfig, Unscored)>,
    /// What embeds, where that is needed.
    pub model: Option<ModelPlan>,
    /// The most tokens of a text that are embedded. Default 512.
    pub max_tokens: usize,
    /// Where the rows go.
    pub output: PathBuf,
    /// Where the report goes. Default the output's name with `.report.json` behind it.
    pub report: PathBuf,
}

/// Reads a preparation, with `set` (`key=value`) on top of the file.
///
/// # Errors
/// As [`load`](crate::load()).
pub fn read_preparation(path: &Path, set: &[String]) -> Result<PreparationPlan, ExperimentError> {
    let document = Document::read(Some(path), set)?;
    let mut root = document.root();
    let output: PathBuf = root.take("output")?.ok_or_else(|| {
        root.fail("output", "is missing; expected the file to write, such as \"prepared.jsonl\"")
    })?;
    let report: Option<PathBuf> = root.take("report")?;
    let seed = root.take("seed")?.unwrap_or(0);
    let shuffle = root.take("shuffle")?.unwrap_or(true);
    let rows: Option<usize> = root.take("rows")?;
    let sources = root.children("source")?.into_iter().map(source).collect::<Result<_, _>>()?;
    let rules = optional::<RulesConfig>(&mut root, "rules")?;
    let near_duplicates = optional::<NearDuplicatesConfig>(&mut root, "near_duplicates")?;
    let semantic_duplicates = optional::<SemanticDuplicatesConfig>(&mut root, "semantic_duplicates")?;
    let topics: Vec<Topic> = root
        .children("topic")?
        .into_iter()
        .map(|section| section.read_whole(&Topic::default()))
        .collect::<Result<_, _>>()?;
    let scored = root.children("score")?.into_iter().map(score).collect::<Result<Vec<_>, _>>()?;
    let (scores, scorers) = scored.into_iter().unzip();
    let steps = Preparation {
        sources,
        rules,
        near_duplicates,
        semantic_duplicates,
        topics,
        scores,
        rows,
        shuffle,
        seed,
    };
    let section = root.child("model")?;
    let (model, max_tokens) = match steps.needs_embeddings() {
        true => embedder(section)?,
        false => (None, 0),
    };
    root.finish()?;
    steps
        .validate()
        .map_err(|message| ExperimentError::Prompts { place: path.display().to_string(), message })?;
    let report = report.unwrap_or_else(|| {
        let mut name = output.clone().into_os_string();
        name.push(".report.json");
        name.into()
    });
    Ok(PreparationPlan { steps, scorers, model, max_tokens, output, report })
}

/// A table that may be left out.
fn optional<T: Default + serde::Serialize + serde::de::DeserializeOwned>(
    root: &mut Section<'_>,
    key: &str,
) -> Result<Option<T>, ExperimentError> {
    let is_given = root.has(key);
    let section = root.child(key)?;
    if is_given { section.read_whole(&T::default()).map(Some) } else { Ok(None) }
}

/// One `[[source]]`: the keys of `[data]`, its name and its weight. Rows come in the file's order, unless it says otherwise.
fn source(mut section: Section<'_>) -> Result<Source, ExperimentError> {
    let default = DataConfig { shuffle: false, ..DataConfig::default() };
    let data: DataConfig = section.read(&default)?;
    section.check(data.validate())?;
    let name = section.take("name")?.unwrap_or_else(|| data.path.clone());
    let weight = section.take("weight")?;
    section.finish()?;
    Ok(Source { name, data, weight })
}

/// One `[[score]]`: what becomes of rows, and their scorer.
fn score(mut section: Section<'_>) -> Result<(ScoreRule, (RewardConfig, Unscored)), ExperimentError> {
    let rule: ScoreRule = section.read(&ScoreRule::default())?;
    if !section.has("reward") {
        return Err(section.fail(
            "reward",
            "is missing; expected a table such as { kind = \"reward_model\", path = \"…\" }",
        ));
    }
    let reward = reward(section.child("reward")?)?;
    section.finish()?;
    Ok((rule, reward))
}

/// `[model]`, with how much of a text it embeds.
fn embedder(mut section: Section<'_>) -> Result<(Option<ModelPlan>, usize), ExperimentError> {
    let max_tokens = section.take("max_tokens")?.unwrap_or(512);
    section.counts(&[("max_tokens", max_tokens, usize::MAX)])?;
    let (model, _) = model(section)?;
    Ok((Some(model), max_tokens))
}
