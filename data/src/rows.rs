//! The rows of a dataset, one after the other, and what was left out.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arriero_buffers::{Message, Role};
use serde_json::Value;

use crate::config::{DataConfig, OnError, Template};
use crate::error::{DataError, RowError};
use crate::parse::Parser;
use crate::row::Row;
use crate::source::{self, RawRow, ReadOptions, Reader};

/// How many skipped rows are kept with their causes.
const EXAMPLES: usize = 20;

/// A row and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The file.
    pub file: Arc<str>,
    /// From 1: the line, or the row of a Parquet file.
    pub number: u64,
    /// True if its texts stood without roles (TRL's standard format) and are taken as they are, without a chat
    /// template: first the prompt's text, then the answer's. Each is the one message of its field.
    pub is_plain: bool,
    /// What it says.
    pub row: Row,
}

impl Entry {
    /// `FILE:ROW`, for errors.
    pub fn place(&self) -> String {
        format!("{}:{}", self.file, self.number)
    }

    /// The row as JSON that reads back as the same: in TRL's conversational format, or in the standard one if it is
    /// plain.
    pub fn to_json(&self) -> Value {
        let mut row = self.row.to_json();
        if self.is_plain
            && let Value::Object(fields) = &mut row
        {
            for name in ["prompt", "completion", "chosen", "rejected", "edited"] {
                let text = fields.get(name).and_then(|turns| turns.get(0)?.get("content").cloned());
                if let Some(text) = text {
                    fields.insert(name.to_string(), text);
                }
            }
        }
        row
    }
}

/// What became of a dataset's rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows that were looked at.
    pub read: u64,
    /// Rows that were given out.
    pub given: u64,
    /// Rows on another side of the split.
    pub elsewhere: u64,
    /// Rows that cannot be used, by [`Reason`](crate::Reason).
    pub skipped: BTreeMap<&'static str, u64>,
    /// Where the first of them are, and what is wrong with them.
    pub examples: Vec<(String, RowError)>,
}

impl Counts {
    /// Rows that cannot be used.
    pub fn all_skipped(&self) -> u64 {
        self.skipped.values().sum()
    }

    /// Counts a row that cannot be used.
    pub fn skip(&mut self, place: String, error: RowError) {
        *self.skipped.entry(error.reason.as_str()).or_default() += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push((place, error));
        }
    }

    /// Checks that no greater share was skipped than may be.
    ///
    /// # Errors
    /// With the first that was.
    pub fn check(&self, max_skipped: f64) -> Result<(), DataError> {
        let (skipped, rows) = (self.all_skipped(), self.read);
        if skipped as f64 <= max_skipped * rows as f64 {
            return Ok(());
        }
        let first = self.examples.first();
        let first = first.map_or(String::new(), |(place, error)| format!("{place}: {error}"));
        Err(DataError::TooManySkipped { skipped, rows, allowed: max_skipped, first })
    }

    /// What was skipped, in one line: `3 of 40 rows (2 empty, 1 broken_json), the first: FILE:7: …`. `None` if nothing
    /// was.
    pub fn skipped_line(&self) -> Option<String> {
        let (place, error) = self.examples.first()?;
        let reasons: Vec<String> =
            self.skipped.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let (skipped, reasons) = (self.all_skipped(), reasons.join(", "));
        Some(format!("{skipped} of {} rows ({reasons}), the first: {place}: {error}", self.read))
    }
}

/// One file on its way.
struct Cursor {
    name: Arc<str>,
    reader: Reader,
    parser: Parser,
}

/// The rows of a dataset; see [`DataConfig::open`]. Memory does not grow with the files, except by 16 bytes a
/// row for the index of a shuffled file of JSON lines.
pub struct Rows {
    config: DataConfig,
    cursors: Vec<Cursor>,
    counts: Counts,
    is_over: bool,
}

impl DataConfig {
    /// Opens the dataset; `seed` is that of the shuffled order.
    ///
    /// # Errors
    /// If an option is out of its range, a file cannot be read, or its first row shows no known format.
    pub fn open(&self, seed: u64) -> Result<Rows, DataError> {
        self.checked()?;
        let mut cursors = Vec::new();
        for (index, file) in source::files(&self.path)?.into_iter().enumerate() {
            let parser = self.parser(&file)?;
            let order = ReadOptions {
                shuffle: self.shuffle.then(|| source::stream(seed, index)),
                buffer: self.shuffle_buffer,
                max_row_bytes: self.max_row_bytes,
            };
            let name = Arc::from(file.display().to_string());
            cursors.push(Cursor { name, reader: source::open(&file, order)?, parser });
        }
        cursors.reverse();
        Ok(Rows { config: self.clone(), cursors, counts: Counts::default(), is_over: false })
    }

    /// What the file's rows are, from the first that is an object of a known format.
    fn parser(&self, file: &Path) -> Result<Parser, DataError> {
        let order = ReadOptions { shuffle: None, buffer: 1, max_row_bytes: self.max_row_bytes };
        let mut first_error = None;
        for found in source::open(file, order)? {
            let RawRow { number, fields } = found?;
            match fields.and_then(|fields| Parser::new(self, &fields)) {
                Ok(parser) => return Ok(parser),
                Err(error) => {
                    let place = format!("{}:{number}", file.display());
                    let error = DataError::Row { place, error };
                    if self.on_error == OnError::Stop {
                        return Err(error);
                    }
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or_else(|| DataError::NoRows { path: file.display().to_string() }))
    }
}

impl Rows {
    /// What became of the rows so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// What each file's rows are read as.
    pub fn formats(&self) -> Vec<(Arc<str>, &'static str)> {
        let mut formats: Vec<_> = self
            .cursors
            .iter()
            .map(|cursor| (cursor.name.clone(), cursor.parser.format().as_str()))
            .collect();
        formats.reverse();
        formats
    }

    fn step(&mut self) -> Result<Option<Entry>, DataError> {
        loop {
            if self.config.limit.is_some_and(|limit| self.counts.given >= limit as u64) {
                return self.end();
            }
            let Some(cursor) = self.cursors.last_mut() else { return self.end() };
            let Some(found) = cursor.reader.next() else {
                self.cursors.pop();
                continue;
            };
            let RawRow { number, fields } = found?;
            self.counts.read += 1;
            let file = cursor.name.clone();
            match fields.and_then(|fields| cursor.parser.parse(&fields)) {
                Err(error) => self.refuse(format!("{file}:{number}"), error)?,
                Ok((row, _)) if !self.config.split.holds(row.prompt_hash()) => self.counts.elsewhere += 1,
                Ok((mut row, is_plain)) => {
                    let is_plain = is_plain && self.config.template == Template::Auto;
                    if !is_plain {
                        self.add_system(&mut row);
                    }
                    self.counts.given += 1;
                    return Ok(Some(Entry { file, number, is_plain, row }));
                }
            }
        }
    }

    fn refuse(&mut self, place: String, error: RowError) -> Result<(), DataError> {
        if self.config.on_error == OnError::Stop {
            return Err(DataError::Row { place, error });
        }
        self.counts.skip(place, error);
        Ok(())
    }

    fn add_system(&self, row: &mut Row) {
        let (Some(system), Some(turns)) = (&self.config.system, row.first_turns_mut()) else { return };
        if turns.first().is_some_and(|first| first.role != Role::System) {
            turns.insert(0, Message::new(Role::System, system.as_str()));
        }
    }

    fn end(&mut self) -> Result<Option<Entry>, DataError> {
        self.counts.check(self.config.max_skipped)?;
        if self.counts.given == 0 {
            return Err(DataError::NothingLeft {
                path: self.config.path.clone(),
                read: self.counts.read,
                skipped: self.counts.all_skipped(),
                elsewhere: self.counts.elsewhere,
                causes: self.counts.skipped_line().unwrap_or_default(),
            });
        }
        Ok(None)
    }
}

impl Iterator for Rows {
    type Item = Result<Entry, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let entry = self.step();
        self.is_over = !matches!(entry, Ok(Some(_)));
        entry.transpose()
    }
}
