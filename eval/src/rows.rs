//! The rows of a suite: asked, kept for examples, or refused by name.

use arriero_data::{DataError, Objects, OnError};
use serde_json::{Map, Value};

use crate::config::SuiteConfig;
use crate::error::EvalError;

/// How many rows that were left out are kept with their causes.
const EXAMPLES: usize = 20;

/// What was left out, and whether that stops the suite.
#[derive(Debug, Clone)]
pub(crate) struct SkippedRows {
    suite: String,
    on_error: OnError,
    max_skipped: f64,
    /// Rows that were read.
    pub read: u64,
    /// Rows that were left out.
    pub skipped: u64,
    /// The first of them, as `FILE:ROW: cause`.
    pub examples: Vec<String>,
}

impl SkippedRows {
    pub fn new(config: &SuiteConfig) -> Self {
        SkippedRows {
            suite: config.name().to_string(),
            on_error: config.on_error,
            max_skipped: config.max_skipped,
            read: 0,
            skipped: 0,
            examples: Vec::new(),
        }
    }

    /// Leaves a row out, or stops the suite.
    pub fn skip(&mut self, place: &str, cause: String) -> Result<(), EvalError> {
        if self.on_error == OnError::Stop {
            return Err(EvalError::Row { suite: self.suite.clone(), place: place.to_string(), cause });
        }
        self.skipped += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(format!("{place}: {cause}"));
        }
        Ok(())
    }

    /// Whether no more was left out than may be.
    pub fn check(&self) -> Result<(), EvalError> {
        if self.skipped as f64 > self.max_skipped * self.read as f64 {
            return Err(EvalError::TooManySkipped {
                suite: self.suite.clone(),
                skipped: self.skipped,
                rows: self.read,
                allowed: self.max_skipped,
                first: self.examples.first().cloned().unwrap_or_default(),
            });
        }
        Ok(())
    }
}

/// The rows of a file that can be read, one after the other.
pub(crate) struct Rows {
    objects: Objects,
    hint: String,
    suite: String,
}

/// Where a row stands, and its fields.
pub(crate) type Placed = (String, Map<String, Value>);

impl Rows {
    /// Opens the rows of a path.
    pub fn open(config: &SuiteConfig, path: &str) -> Result<Self, EvalError> {
        let is_own = path == config.path || Some(path) == config.shots_path.as_deref();
        let hint = match is_own {
            true => String::new(),
            false => format!(
                "; {path} is where {} was published: give the suite a file of yours where there is no network",
                config.kind.as_str()
            ),
        };
        let suite = config.name().to_string();
        match config.data(path).objects() {
            Ok(objects) => Ok(Rows { objects, hint, suite }),
            Err(cause) => Err(EvalError::Data { suite, cause, hint }),
        }
    }

    /// The next row and where it stands. Broken ones are refused.
    pub fn next(&mut self, skipped_rows: &mut SkippedRows) -> Result<Option<Placed>, EvalError> {
        loop {
            let object = match self.objects.next() {
                None => return Ok(None),
                Some(Ok(object)) => object,
                Some(Err(cause)) => return Err(self.failed(cause)),
            };
            skipped_rows.read += 1;
            let place = object.place();
            match object.fields {
                Ok(fields) => return Ok(Some((place, fields))),
                Err(error) => skipped_rows.skip(&place, error.to_string())?,
            }
        }
    }

    fn failed(&self, cause: DataError) -> EvalError {
        EvalError::Data { suite: self.suite.clone(), cause, hint: self.hint.clone() }
    }
}
