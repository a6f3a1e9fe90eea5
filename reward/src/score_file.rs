//! Scores a file of completions: JSON lines in, the same with rewards out.
//!
//! A row that cannot be scored is named with its line and its cause. It stops the run or is skipped
//! and counted, as [`FileOptions`] says; none is given a reward of 0 instead.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};

use arriero_buffers::{Completion, Group, Score};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::RewardError;
use crate::rows::{self, Fields};
use crate::scorer::{RewardConfig, Scorer};

/// What a row that cannot be scored does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// It stops the run.
    #[default]
    Stop,
    /// It is left out, and counted.
    Skip,
}

/// How a file is scored.
#[derive(Debug, Clone, PartialEq)]
pub struct FileOptions {
    /// What a row that cannot be scored does. Default stop.
    pub on_error: OnError,
    /// The greatest share of rows that may be skipped, from 0 to 1. Default 0.1.
    pub max_skipped: f64,
    /// Which fields to read.
    pub fields: Fields,
}

impl Default for FileOptions {
    fn default() -> Self {
        FileOptions { on_error: OnError::Stop, max_skipped: 0.1, fields: Fields::default() }
    }
}

/// Why a file could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The reward's options are wrong.
    #[error(transparent)]
    Config(#[from] RewardError),
    /// The file could not be read further.
    #[error("line {line} cannot be read: {cause}")]
    Read {
        /// From 1.
        line: u64,
        /// Why.
        cause: std::io::Error,
    },
    /// A row could not be scored, and `on_error` is stop.
    #[error("line {line}: {cause}; mend it, or leave such rows out with on_error = \"skip\"")]
    Row {
        /// From 1.
        line: u64,
        /// What is wrong with it.
        cause: String,
    },
    /// More rows were skipped than may be.
    #[error(
        "{skipped} of {rows} rows were skipped, more than the share of {allowed} that max_skipped allows"
    )]
    TooManySkipped {
        /// How many.
        skipped: u64,
        /// Of how many.
        rows: u64,
        /// `max_skipped`.
        allowed: f64,
    },
    /// The file has no rows.
    #[error(
        "there are no rows; expected one JSON object a line, such as {{\"prompt\": \"…\", \"completion\": \"…\"}}"
    )]
    NoRows,
    /// The output could not be written.
    #[error("the output cannot be written: {0}")]
    Write(std::io::Error),
}

/// What came of a file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FileReport {
    /// Rows with a reward.
    pub scored: u64,
    /// Rows without.
    pub skipped: u64,
    /// The mean reward.
    pub reward: f64,
    /// The mean of each component, over the rows that have it.
    pub components: BTreeMap<String, f64>,
    /// Shares of instructions that are followed, strict and loose, over all rows' instructions
    /// (IFEval's instruction-level accuracies).
    pub instruction_accuracy: Option<[f64; 2]>,
    /// How many rows had a field that a new one replaced.
    pub replaced: BTreeMap<String, u64>,
}

/// A row that waits for its group.
struct Pending {
    line: u64,
    text: String,
    row: Map<String, Value>,
}

/// Rows of one prompt, which wait to be scored.
struct Waiting {
    group: Group,
    rows: Vec<Pending>,
}

/// A file on its way.
struct FileScorer<'a, W, S> {
    scorer: Box<dyn Scorer>,
    options: &'a FileOptions,
    output: W,
    skipped: S,
    report: FileReport,
    component_counts: BTreeMap<String, u64>,
    instructions: [u64; 3],
}

/// Scores all rows of `input` and writes those that have a reward to `output`, in their order: each with
/// `reward`, its `components`, and the scorer's details (for IFEval `strict`, `loose` and `instructions`).
/// Where rewards are compared within a group, rows with the same prompt and checks that follow each other
/// are one. A scorer that can do much at once is given many rows at once. `skipped` is told of each row that is left out.
///
/// # Errors
/// See [`FileError`]. What was written to `output` by then is not the whole.
pub fn score_file(
    mut input: impl BufRead,
    output: impl Write,
    config: &RewardConfig,
    options: &FileOptions,
    skipped: impl FnMut(u64, &str),
) -> Result<FileReport, FileError> {
    let share = options.max_skipped;
    if !(0.0..=1.0).contains(&share) {
        return Err(RewardError::Config(format!("max_skipped is {share}, but must be from 0 to 1")).into());
    }
    let scorer = config.build()?;
    let mut file = FileScorer {
        scorer,
        options,
        output,
        skipped,
        report: FileReport::default(),
        component_counts: BTreeMap::new(),
        instructions: [0; 3],
    };
    let checks = config.check_names();
    let grouped = config.compares_completions();
    let mut groups = Vec::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let read = input.read_until(b'\n', &mut bytes).map_err(|cause| FileError::Read { line, cause })?;
        if read == 0 {
            break;
        }
        let bytes = if line == 1 { bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes) } else { &bytes };
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        match read_row(line, bytes, &options.fields, &checks) {
            Ok((group, row)) => match groups.last_mut() {
                Some(Waiting { group: first, rows }) if grouped && is_same_prompt(first, &group) => {
                    let sample = first.completions.len() as u32;
                    let completions = group.completions.into_iter();
                    first
                        .completions
                        .extend(completions.map(|completion| Completion { sample, ..completion }));
                    rows.push(row);
                }
                _ => {
                    // The group before is complete.
                    file.score_if_enough(&mut groups)?;
                    groups.push(Waiting { group, rows: vec![row] });
                }
            },
            Err(cause) => {
                file.score(&mut groups)?;
                file.refuse(line, cause)?;
            }
        }
    }
    file.score(&mut groups)?;
    file.finish()
}

fn is_same_prompt(first: &Group, next: &Group) -> bool {
    !first.prompt.messages.is_empty()
        && first.prompt.messages == next.prompt.messages
        && first.prompt.checks == next.prompt.checks
}

fn read_row(line: u64, bytes: &[u8], fields: &Fields, checks: &[&str]) -> Result<(Group, Pending), String> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| format!("invalid UTF-8 at byte {} of the line", error.valid_up_to() + 1))?
        .trim();
    let value: Value = serde_json::from_str(text).map_err(|error| {
        // The error's own line is always 1.
        let cause = error.to_string();
        let cause = cause.split(" at line ").next().unwrap_or_default().to_string();
        format!("broken JSON: {cause} at column {}", error.column())
    })?;
    let Value::Object(row) = value else {
        return Err("expected a JSON object, one a line".to_string());
    };
    let group = rows::group(line, &row, fields, checks)?;
    Ok((group, Pending { line, text: text.to_string(), row }))
}

impl<W: Write, S: FnMut(u64, &str)> FileScorer<'_, W, S> {
    fn refuse(&mut self, line: u64, cause: String) -> Result<(), FileError> {
        if self.options.on_error == OnError::Stop {
            return Err(FileError::Row { line, cause });
        }
        self.report.skipped += 1;
        (self.skipped)(line, &cause);
        Ok(())
    }

    /// Scores what waits, if the scorer has use for as much at once.
    fn score_if_enough(&mut self, waiting: &mut Vec<Waiting>) -> Result<(), FileError> {
        let count: usize = waiting.iter().map(|waiting| waiting.rows.len()).sum();
        if count >= self.scorer.batch() { self.score(waiting) } else { Ok(()) }
    }

    fn score(&mut self, waiting: &mut Vec<Waiting>) -> Result<(), FileError> {
        let waiting = std::mem::take(waiting);
        let groups: Vec<&Group> = waiting.iter().map(|waiting| &waiting.group).collect();
        let outcomes = self.scorer.score_groups(&groups);
        for (Waiting { group, rows }, outcomes) in waiting.into_iter().zip(outcomes) {
            let details = match outcomes.iter().any(Result::is_ok) {
                true => self.scorer.details(&group),
                false => Ok(vec![Map::new(); rows.len()]),
            };
            let (details, broken) = match details {
                Ok(details) => (details, None),
                Err(error) => (vec![Map::new(); rows.len()], Some(error)),
            };
            for ((row, outcome), details) in rows.into_iter().zip(outcomes).zip(details) {
                match broken.clone().map_or(outcome, Err) {
                    // No row is at fault.
                    Err(error @ (RewardError::Config(_) | RewardError::Interrupted)) => {
                        return Err(error.into());
                    }
                    Err(error) => self.refuse(row.line, error.of_row())?,
                    Ok(score) if !score.reward.is_finite() => {
                        self.refuse(row.line, format!("the reward is {}, no finite number", score.reward))?;
                    }
                    Ok(score) => {
                        self.count(&score, &details);
                        self.write(row, score, details)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn count(&mut self, score: &Score, details: &Map<String, Value>) {
        self.report.scored += 1;
        self.report.reward += f64::from(score.reward);
        for (name, value) in &score.components {
            *self.report.components.entry(name.clone()).or_default() += f64::from(*value);
            *self.component_counts.entry(name.clone()).or_default() += 1;
        }
        for verdict in details.get("instructions").and_then(Value::as_array).into_iter().flatten() {
            self.instructions[0] += 1;
            self.instructions[1] += u64::from(verdict["strict"] == true);
            self.instructions[2] += u64::from(verdict["loose"] == true);
        }
    }

    fn write(&mut self, row: Pending, score: Score, details: Map<String, Value>) -> Result<(), FileError> {
        let mut added = Map::from_iter([
            ("reward".to_string(), number(score.reward)),
            (
                "components".to_string(),
                score.components.into_iter().map(|(name, value)| (name, number(value))).collect(),
            ),
        ]);
        added.extend(details);
        let replaced: Vec<&String> = added.keys().filter(|name| row.row.contains_key(*name)).collect();
        let text = if replaced.is_empty() {
            // The row as it was written: its order, its numbers.
            let open = row.text.trim_end_matches('}').len().max(row.text.len() - 1);
            let comma = if row.row.is_empty() { "" } else { "," };
            let added = Value::Object(added).to_string();
            format!("{}{comma}{}", &row.text[..open], &added[1..])
        } else {
            for name in replaced {
                *self.report.replaced.entry(name.clone()).or_default() += 1;
            }
            let mut whole = row.row;
            whole.extend(added);
            Value::Object(whole).to_string()
        };
        writeln!(self.output, "{text}").map_err(FileError::Write)
    }

    fn finish(mut self) -> Result<FileReport, FileError> {
        self.output.flush().map_err(FileError::Write)?;
        let mut report = self.report;
        let rows = report.scored + report.skipped;
        if rows == 0 {
            return Err(FileError::NoRows);
        }
        let allowed = self.options.max_skipped;
        if report.skipped as f64 > allowed * rows as f64 {
            return Err(FileError::TooManySkipped { skipped: report.skipped, rows, allowed });
        }
        report.reward /= report.scored.max(1) as f64;
        for (name, sum) in &mut report.components {
            *sum /= self.component_counts.get(name).copied().unwrap_or(1) as f64;
        }
        let [all, strict, loose] = self.instructions.map(|count| count as f64);
        report.instruction_accuracy = (all > 0.0).then(|| [strict / all, loose / all]);
        Ok(report)
    }
}

/// The shortest decimal that gives the same f32.
fn number(value: f32) -> Value {
    let shortest = value.to_string().parse::<f64>().ok();
    shortest.and_then(serde_json::Number::from_f64).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests;
