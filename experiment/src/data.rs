//! What offline stages learn from: `[data]`, or `data = { … }` of a stage.

use std::path::Path;
use std::sync::Arc;

use arriero_data::DataConfig;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::document::{Document, Section};
use crate::error::ExperimentError;

/// What a stage says to sample its own experience although there is `[data]`.
pub(crate) const SAMPLED: &str = "sampled";

/// Rows at a time: their trees are allocated at once.
const MOST_ROWS: usize = 1 << 20;

/// What an offline stage learns from.
#[derive(Debug, Clone, PartialEq)]
pub struct DataPlan {
    /// Which rows.
    pub rows: DataConfig,
    /// What is made of them.
    pub examples: ExampleConfig,
}

/// What is made of rows: keys of `[data]` beside those of [`DataConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExampleConfig {
    /// The most tokens of a prompt with its response. The model's context counts where it is less. A row whose prompt
    /// leaves no room is dropped. Default 1024 (TRL's).
    pub max_length: usize,
    /// What becomes of a response that is longer. Default truncate (TRL's).
    pub too_long: TooLong,
    /// Rows that are in memory at a time. A dataset with no more is read once, and shuffled as a whole in each epoch. A
    /// larger one is read once an epoch, and each portion is shuffled on its own. Default 4096.
    pub portion: usize,
}

/// What becomes of a response that is longer than it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// It loses its end.
    Truncate,
    /// Its row is dropped.
    Drop,
}

impl Default for ExampleConfig {
    fn default() -> Self {
        ExampleConfig { max_length: 1024, too_long: TooLong::Truncate, portion: 4096 }
    }
}

impl DataPlan {
    /// Rows at a time for steps on `batch_size` of them. Only the last batch of all may be smaller.
    pub fn portion(&self, batch_size: usize) -> usize {
        (self.examples.portion / batch_size).max(1) * batch_size
    }

    pub(crate) fn to_table(&self) -> Result<Table, toml::ser::Error> {
        let mut table = Table::try_from(&self.rows)?;
        table.extend(Table::try_from(self.examples)?);
        Ok(table)
    }
}

/// Reads the `[data]` of a file, if one is given, with `set` (`option=value`) on top of it. Other tables of the file do
/// not matter.
///
/// # Errors
/// As [`load`](crate::load()).
pub fn read_data(path: Option<&Path>, set: &[String]) -> Result<DataPlan, ExperimentError> {
    let set: Vec<String> = set.iter().map(|assignment| format!("data.{assignment}")).collect();
    data(Document::read(path, &set)?.root().child("data")?)
}

/// Reads a `data` section.
pub(crate) fn data(mut section: Section<'_>) -> Result<DataPlan, ExperimentError> {
    let rows: DataConfig = section.read(&DataConfig::default())?;
    let examples: ExampleConfig = section.read(&ExampleConfig::default())?;
    section.check(rows.validate())?;
    section.counts(&[
        ("max_length", examples.max_length, usize::MAX),
        ("portion", examples.portion, MOST_ROWS),
    ])?;
    section.finish()?;
    Ok(DataPlan { rows, examples })
}

/// What a stage learns from: its own `data`, or `shared`, the file's; `None` where it samples.
pub(crate) fn of_stage(
    section: &mut Section<'_>,
    shared: Option<&Arc<DataPlan>>,
) -> Result<Option<Arc<DataPlan>>, ExperimentError> {
    match section.text("data") {
        Some(word) if word == SAMPLED => {
            let _: Option<String> = section.take("data")?;
            Ok(None)
        }
        Some(word) => {
            let message = format!(
                "is \"{word}\"; expected \"{SAMPLED}\", the name of an earlier stage of the arm whose samples to learn \
                 from, or a table such as {{ path = \"pairs.jsonl\" }}"
            );
            Err(section.fail("data", &message))
        }
        None if section.has("data") => Ok(Some(Arc::new(data(section.child("data")?)?))),
        None => {
            section.knows("data");
            Ok(shared.cloned())
        }
    }
}

/// What [`of_stage`] reads back as this.
pub(crate) fn written(data: Option<&Arc<DataPlan>>) -> Result<Value, toml::ser::Error> {
    match data {
        None => Ok(Value::String(SAMPLED.to_string())),
        Some(data) => Ok(Value::Table(data.to_table()?)),
    }
}
