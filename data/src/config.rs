//! How a dataset is read: the `[data]` section of an experiment file.

use std::collections::BTreeMap;

use arriero_buffers::Role;
use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// How a dataset is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// A file of JSON lines or Parquet, plain or gzipped, a folder of such files, or a Hugging Face dataset as
    /// `owner/name` or `hf://owner/name/folder@revision:split`. Default split train.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What rows are. Default auto: as the first row shows.
    pub format: Format,
    /// What a field is called in the file, where it lacks its usual name, such as `prompt = "instruction"`.
    pub fields: BTreeMap<String, String>,
    /// Fields of prompts that go to the scorers, besides those that scorers know by name.
    pub checks: Vec<String>,
    /// Whether texts without roles (TRL's standard format) get the chat template. Default auto: as in TRL,
    /// they do not.
    pub template: Template,
    /// A system message for conversations that have none. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Whose turns carry loss where a row is a whole conversation (`messages`). Default the assistant's.
    pub loss: Vec<Role>,
    /// Which share of the rows, by the hash of their prompts. Default all.
    pub split: Split,
    /// Whether rows come in a random order, under the experiment's seed. Default true.
    pub shuffle: bool,
    /// How many rows the order is drawn among where a file has no index (gzip, Parquet). Default 10,000.
    pub shuffle_buffer: usize,
    /// At most this many rows, counted behind the split and the shuffle. Default all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// What a row that cannot be used does. Default stop.
    pub on_error: OnError,
    /// The greatest share of rows that may be skipped, from 0 to 1. Default 0.1.
    pub max_skipped: f64,
    /// The longest row, in bytes. Default 1 MiB.
    pub max_row_bytes: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        DataConfig {
            path: String::new(),
            format: Format::Auto,
            fields: BTreeMap::new(),
            checks: Vec::new(),
            template: Template::Auto,
            system: None,
            loss: vec![Role::Assistant],
            split: Split::default(),
            shuffle: true,
            shuffle_buffer: 10_000,
            limit: None,
            on_error: OnError::Stop,
            max_skipped: 0.1,
            max_row_bytes: 1 << 20,
        }
    }
}

/// What the rows of a file are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// What the first row shows.
    #[default]
    Auto,
    /// `text`, or `messages`: a whole conversation.
    LanguageModeling,
    /// `prompt`, with what scorers check.
    PromptOnly,
    /// `prompt`, `completion`.
    PromptCompletion,
    /// `chosen`, `rejected`; `prompt`, or what both begin with.
    Preference,
    /// `prompt`, `completion`, `label`.
    UnpairedPreference,
    /// `prompt`, `completions`, `labels`.
    StepwiseSupervision,
    /// Anthropic's HH: `chosen` and `rejected` are whole transcripts.
    Hh,
    /// GSM8K: `question`, `answer`.
    Gsm8k,
    /// IFEval: `prompt`, `instruction_id_list`, `kwargs`.
    Ifeval,
}

impl Format {
    /// Its name in configurations.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Auto => "auto",
            Format::LanguageModeling => "language_modeling",
            Format::PromptOnly => "prompt_only",
            Format::PromptCompletion => "prompt_completion",
            Format::Preference => "preference",
            Format::UnpairedPreference => "unpaired_preference",
            Format::StepwiseSupervision => "stepwise_supervision",
            Format::Hh => "hh",
            Format::Gsm8k => "gsm8k",
            Format::Ifeval => "ifeval",
        }
    }
}

/// Whether texts without roles get the chat template.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Template {
    /// As in TRL: a prompt and a completion that are texts stand one behind the other as they are.
    #[default]
    Auto,
    /// Such texts are turns of the user and of the assistant.
    Always,
}

/// A share of the rows: those whose [`prompt_hash`](crate::Row::prompt_hash), as a fraction of 2^64, is at least `from`
/// and less than `to`. So a row's side does not depend on the seed, the order or the rows beside it, and two rows of
/// one prompt land together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Split {
    /// Default 0.
    pub from: f64,
    /// Default 1.
    pub to: f64,
}

impl Default for Split {
    fn default() -> Self {
        Split { from: 0.0, to: 1.0 }
    }
}

impl Split {
    /// Whether a row of this hash belongs to it.
    pub fn holds(&self, hash: u64) -> bool {
        // 53 bits are exact in f64, so that the place is below 1.
        let place = (hash >> 11) as f64 / (1u64 << 53) as f64;
        self.from <= place && place < self.to
    }
}

/// What a row that cannot be used does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// It stops the run.
    #[default]
    Stop,
    /// It is left out, and counted.
    Skip,
}

/// The fields that rows may have.
pub(crate) const FIELDS: &[&str] = &[
    "text",
    "messages",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "edited",
    "strength",
    "margin",
    "label",
    "completions",
    "labels",
    "question",
    "answer",
    "solution",
    "ground_truth",
    "checks",
    "constraints",
    "instruction_id_list",
    "kwargs",
    "schema",
];

impl DataConfig {
    /// Checks that options are in their ranges.
    ///
    /// # Errors
    /// With a sentence that begins with the option's name.
    pub fn validate(&self) -> Result<(), String> {
        if self.path.is_empty() {
            return Err("path is missing; expected a file, a folder, or a Hugging Face dataset".to_string());
        }
        for (field, name) in &self.fields {
            if !FIELDS.contains(&field.as_str()) {
                return Err(format!(
                    "fields names \"{field}\", which no format reads (all: {})",
                    FIELDS.join(", ")
                ));
            }
            if name.is_empty() {
                return Err(format!("fields has no name for \"{field}\"; leave it out to use \"{field}\""));
            }
        }
        let Split { from, to } = self.split;
        if !(0.0 <= from && from < to && to <= 1.0) {
            return Err(format!(
                "split is from {from} to {to}; expected 0 <= from < to <= 1, such as {{ to = 0.9 }} to train \
                 on and {{ from = 0.9 }} to hold out"
            ));
        }
        if self.shuffle_buffer == 0 {
            return Err("shuffle_buffer is 0; it must be at least 1".to_string());
        }
        if self.limit == Some(0) {
            return Err("limit is 0; it must be at least 1, or left out".to_string());
        }
        if !(0.0..=1.0).contains(&self.max_skipped) {
            return Err(format!("max_skipped is {}, but must be from 0 to 1", self.max_skipped));
        }
        if self.loss.is_empty() {
            return Err(
                "loss is empty, so that nothing would be learnt; expected roles, such as [\"assistant\"]"
                    .to_string(),
            );
        }
        if self.max_row_bytes == 0 {
            return Err("max_row_bytes is 0; it must be at least 1".to_string());
        }
        Ok(())
    }

    pub(crate) fn checked(&self) -> Result<(), DataError> {
        self.validate().map_err(DataError::Config)
    }
}
