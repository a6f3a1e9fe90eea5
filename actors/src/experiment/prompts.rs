//! Where prompts come from.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use arriero_buffers::{Message, Prompt};
use arriero_reward::instructions::{self, InstructionsConfig};
use serde::{Deserialize, Serialize};
use serde_aux::serde_introspection::serde_introspect;
use toml::{Table, Value};

use super::document::{ExperimentError, Section};

/// Held-out prompts of a file get ids from here on, so that no two prompts of an experiment share one.
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

const KINDS: [&str; 2] = ["instructions", "file"];

fn option_names(kind: &str) -> &'static [&'static str] {
    match kind {
        "instructions" => serde_introspect::<InstructionsConfig>(),
        "file" => serde_introspect::<PromptFiles>(),
        _ => &[],
    }
}

impl Prompts {
    /// Prompts of one round.
    pub fn per_round(&self) -> usize {
        self.per_round
    }

    pub(super) fn to_table(&self) -> Result<Table, toml::ser::Error> {
        let mut table = Table::try_from(&self.source)?;
        table.insert("per_round".to_string(), Value::try_from(self.per_round)?);
        Ok(table)
    }
}

impl super::Plan {
    /// The prompts of a split.
    ///
    /// # Errors
    /// If a file cannot be read, or holds no prompts.
    pub fn load_prompts(&self, split: Split) -> Result<Vec<Prompt>, ExperimentError> {
        self.prompts.source.load(split)
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
        }
    }

    fn load(&self, split: Split) -> Result<Vec<Prompt>, ExperimentError> {
        match (self, split) {
            (PromptSource::Instructions(config), Split::Train) => {
                Ok(instructions::generate(config, instructions::Split::Train))
            }
            (PromptSource::Instructions(config), Split::HeldOut) => {
                Ok(instructions::generate(config, instructions::Split::HeldOut))
            }
            (PromptSource::File(files), Split::Train) => read_prompts(&files.path),
            (PromptSource::File(files), Split::HeldOut) => {
                let mut prompts = read_prompts(&files.held_out_path)?;
                for prompt in &mut prompts {
                    prompt.id += HELD_OUT_IDS;
                }
                Ok(prompts)
            }
        }
    }
}

/// Reads `[prompts]` of an experiment whose longest arm has `rounds` rounds.
pub(super) fn prompts(mut section: Section<'_>, rounds: usize) -> Result<Prompts, ExperimentError> {
    let source: PromptSource = section.read_kind(&KINDS, option_names, Some(KINDS[0]))?;
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
            source.load(Split::HeldOut)?;
            source.load(Split::Train)?.len()
        }
    };
    let given: Option<usize> = section.take("per_round")?;
    let per_round = given.unwrap_or(train / rounds);
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
/// Names the line, and what is wrong with it; a file without a prompt is an error too.
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
