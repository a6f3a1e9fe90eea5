//! Where prompts come from.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use arriero_buffers::{Message, Prompt};
use arriero_data::{Counts, DataConfig, DataError, OnError, Row as DataRow};
use arriero_reward::instructions::{self, InstructionsConfig};
use serde::{Deserialize, Serialize};
use serde_aux::serde_introspection::serde_introspect;
use toml::{Table, Value};

use crate::document::Section;
use crate::error::ExperimentError;

/// Held-out prompts of a file get ids from here on. So no two prompts of an experiment share one.
const HELD_OUT_IDS: u64 = 1_000_000_000;

/// Which prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// To sample experience from.
    Train,
    /// To measure on.
    HeldOut,
}

/// The prompts of an experiment.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompts {
    /// Where they come from.
    pub source: PromptSource,
    per_round: usize,
}

/// Where prompts come from: `kind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PromptSource {
    /// Instructions that can be checked, made from a seed.
    Instructions(InstructionsConfig),
    /// Files of JSON lines; see [`read_prompts`].
    File(PromptFiles),
    /// Rows of datasets.
    Data(Box<PromptData>),
    /// There are none: every stage learns from `[data]`, and nothing is measured.
    None,
}

/// Options of `kind = "file"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptFiles {
    /// To sample experience from.
    pub path: PathBuf,
    /// To measure on.
    pub held_out_path: PathBuf,
}

/// Options of `kind = "data"`. Any row with a prompt will do. A prompt that is a text becomes a turn of the user.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PromptData {
    /// To sample experience from. Default none; then no stage can sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<DataConfig>,
    /// To measure on. Default none: nothing is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<DataConfig>,
}

const KINDS: [&str; 4] = ["instructions", "file", "data", "none"];

fn option_names(kind: &str) -> &'static [&'static str] {
    match kind {
        "instructions" => serde_introspect::<InstructionsConfig>(),
        "file" => serde_introspect::<PromptFiles>(),
        "data" => serde_introspect::<PromptData>(),
        _ => &[],
    }
}

impl Prompts {
    /// Prompts of one round.
    pub fn per_round(&self) -> usize {
        self.per_round
    }

    pub(crate) fn to_table(&self) -> Result<Table, toml::ser::Error> {
        let mut table = Table::try_from(&self.source)?;
        table.insert("per_round".to_string(), Value::try_from(self.per_round)?);
        Ok(table)
    }
}

/// The prompts of a split.
#[derive(Debug, Clone, Default)]
pub struct PromptSet {
    /// In the order in which they are sampled from.
    pub prompts: Vec<Prompt>,
    /// What became of a dataset's rows; nothing for other sources.
    pub counts: Counts,
}

impl From<Vec<Prompt>> for PromptSet {
    fn from(prompts: Vec<Prompt>) -> Self {
        PromptSet { prompts, counts: Counts::default() }
    }
}

impl PromptSource {
    /// Where a prompt stands, for errors.
    pub fn place(&self, split: Split, id: u64) -> String {
        match (self, split) {
            (PromptSource::Instructions(_), Split::Train) => "built-in training prompts".to_string(),
            (PromptSource::Instructions(_), Split::HeldOut) => "built-in held-out prompts".to_string(),
            (PromptSource::File(files), Split::Train) => format!("{} (id {id})", files.path.display()),
            (PromptSource::File(files), Split::HeldOut) => {
                format!("{} (id {})", files.held_out_path.display(), id.saturating_sub(HELD_OUT_IDS))
            }
            (PromptSource::Data(data), split) => {
                let path = data.rows(split).map_or("", |rows| &rows.path);
                format!("{path} (place {} of its rows)", id % HELD_OUT_IDS + 1)
            }
            (PromptSource::None, _) => "no prompts".to_string(),
        }
    }

    /// The share of a split's rows that may be skipped. `None` where a row that cannot be used stops the run.
    pub fn skips(&self, split: Split) -> Option<f64> {
        let PromptSource::Data(data) = self else { return None };
        let rows = data.rows(split).filter(|rows| rows.on_error == OnError::Skip)?;
        Some(rows.max_skipped)
    }

    pub(crate) fn load(&self, split: Split, seed: u64) -> Result<PromptSet, ExperimentError> {
        let prompts = match (self, split) {
            (PromptSource::Instructions(config), Split::Train) => {
                instructions::generate(config, instructions::Split::Train)
            }
            (PromptSource::Instructions(config), Split::HeldOut) => {
                instructions::generate(config, instructions::Split::HeldOut)
            }
            (PromptSource::File(files), Split::Train) => read_prompts(&files.path)?,
            (PromptSource::File(files), Split::HeldOut) => {
                let mut prompts = read_prompts(&files.held_out_path)?;
                for prompt in &mut prompts {
                    prompt.id += HELD_OUT_IDS;
                }
                prompts
            }
            (PromptSource::Data(data), split) => return data.load(split, seed),
            (PromptSource::None, _) => Vec::new(),
        };
        Ok(prompts.into())
    }
}

impl PromptData {
    fn rows(&self, split: Split) -> Option<&DataConfig> {
        match split {
            Split::Train => self.train.as_ref(),
            Split::HeldOut => self.held_out.as_ref(),
        }
    }

    fn load(&self, split: Split, seed: u64) -> Result<PromptSet, ExperimentError> {
        let Some(rows) = self.rows(split) else { return Ok(PromptSet::default()) };
        let refused = |cause: DataError| ExperimentError::Prompts {
            place: rows.path.clone(),
            message: cause.to_string(),
        };
        let first = if split == Split::HeldOut { HELD_OUT_IDS } else { 0 };
        let mut prompts = Vec::new();
        let mut opened = rows.open(seed).map_err(refused)?;
        for (entry, id) in opened.by_ref().zip(first..) {
            let entry = entry.map_err(refused)?;
            let messages =
                entry.row.prompt().map(<[Message]>::to_vec).ok_or_else(|| ExperimentError::Prompts {
                    place: entry.place(),
                    message: format!("a {} row has no prompt; expected rows with one", entry.row.kind()),
                })?;
            let checks = match entry.row {
                DataRow::Prompt { checks, .. } => checks,
                _ => serde_json::Value::Null,
            };
            prompts.push(Prompt { id, messages, checks });
        }
        Ok(PromptSet { prompts, counts: opened.counts().clone() })
    }
}

/// Reads `[prompts]` of an experiment whose longest arm has `rounds` rounds. `samples` says whether a stage needs
/// prompts to sample from.
pub(crate) fn prompts(
    mut section: Section<'_>,
    rounds: usize,
    samples: bool,
    seed: u64,
) -> Result<Prompts, ExperimentError> {
    let default = if samples || !section.is_empty() { "instructions" } else { "none" };
    let source: PromptSource = section.read_kind(&KINDS, option_names, Some(default))?;
    let train = match &source {
        PromptSource::Instructions(config) => {
            section.check(config.validate())?;
            for (key, count) in [("train", config.train), ("held_out", config.held_out)] {
                if count == 0 {
                    return Err(section.fail(key, "is 0, an empty prompt set; it must be at least 1"));
                }
            }
            config.train
        }
        PromptSource::File(_) => {
            source.load(Split::HeldOut, seed)?;
            source.load(Split::Train, seed)?.prompts.len()
        }
        PromptSource::Data(data) => {
            for (key, rows) in [("train", &data.train), ("held_out", &data.held_out)] {
                let checked = rows.as_ref().map_or(Ok(()), DataConfig::validate);
                checked.map_err(|cause| section.fail(key, &format!("is wrong: {cause}")))?;
            }
            source.load(Split::HeldOut, seed)?;
            source.load(Split::Train, seed)?.prompts.len()
        }
        PromptSource::None => 0,
    };
    let given: Option<usize> = section.take("per_round")?;
    let per_round = given.unwrap_or(train / rounds);
    if samples && train == 0 {
        let message =
            "leaves nothing to sample from, but a stage samples; give it training prompts, or [data]";
        return Err(section.fail("kind", message));
    }
    if !samples {
        section.finish()?;
        return Ok(Prompts { source, per_round: 0 });
    }
    if per_round == 0 || per_round.saturating_mul(rounds) > train {
        let message = format!(
            "is {per_round}, but {rounds} rounds of it must fit in the {train} training prompts and be more than 0"
        );
        return Err(section.fail("per_round", &message));
    }
    section.finish()?;
    Ok(Prompts { source, per_round })
}

/// One line of a prompt file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: Option<u64>,
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
    #[serde(default)]
    checks: serde_json::Value,
}

/// Reads a file with one JSON object a line: `{"prompt": "…"}` or `{"messages": [{"role": …, "content":
/// …}]}`, with an `id` (default: the line's number from 0) and the scorer's `checks` where there are any.
///
/// # Errors
/// Names the line, and what is wrong with it. A file without a prompt is an error, too.
pub fn read_prompts(path: &Path) -> Result<Vec<Prompt>, ExperimentError> {
    let text = std::fs::read_to_string(path)
        .map_err(|cause| ExperimentError::Unreadable { path: path.to_path_buf(), cause })?;
    let mut prompts = Vec::new();
    let mut ids = HashSet::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let fail = |message: String| ExperimentError::Prompts {
            place: format!("{}:{}", path.display(), number + 1),
            message,
        };
        let row: Row = serde_json::from_str(line).map_err(|error| fail(format!("no prompt: {error}")))?;
        let messages = match (row.prompt, row.messages) {
            (Some(text), None) => vec![Message::user(text)],
            (None, Some(messages)) => messages,
            _ => return Err(fail("expected either \"prompt\" or \"messages\"".to_string())),
        };
        if messages.iter().all(|message| message.content.trim().is_empty()) {
            return Err(fail("the prompt is empty".to_string()));
        }
        let id = row.id.unwrap_or(number as u64);
        if id >= HELD_OUT_IDS {
            return Err(fail(format!("the id {id} is too large; it must be below {HELD_OUT_IDS}")));
        }
        if !ids.insert(id) {
            return Err(fail(format!("the id {id} is that of an earlier line")));
        }
        prompts.push(Prompt { id, messages, checks: row.checks });
    }
    if prompts.is_empty() {
        let message =
            "the file holds no prompts; expected one JSON object a line, such as {\"prompt\": \"…\"}";
        return Err(ExperimentError::Prompts {
            place: path.display().to_string(),
            message: message.to_string(),
        });
    }
    Ok(prompts)
}
